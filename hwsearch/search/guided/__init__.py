"""Proposing what the solver expects to gain most, corrected by every evaluation."""

"""The loop: ask for a candidate, evaluate it, record it."""

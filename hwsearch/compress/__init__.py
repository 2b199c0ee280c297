"""From a candidate to a compressed model."""

"""From a compressed model to an artifact and numbers, in each runtime."""

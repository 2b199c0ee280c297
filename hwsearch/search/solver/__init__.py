"""One choice per variable with the least loss within limits: exact, and of nothing but numbers."""

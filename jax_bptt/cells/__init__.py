"""Floor 4: one cell a file."""

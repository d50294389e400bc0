"""Floor 5: a cell over a sequence."""

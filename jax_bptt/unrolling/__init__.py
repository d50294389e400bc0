"""Floor 5: a cell over a sequence, checked, and online without a stored sequence."""

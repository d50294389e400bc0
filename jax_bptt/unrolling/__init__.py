"""Floor 5: a cell is run over a sequence, after its arguments are checked, or online, step by step."""

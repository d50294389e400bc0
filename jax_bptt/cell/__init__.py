"""Floor 2: what a cell is."""

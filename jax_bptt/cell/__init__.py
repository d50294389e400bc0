"""Floor 2: what a cell is: two linear maps and a pointwise step, or any step at all."""

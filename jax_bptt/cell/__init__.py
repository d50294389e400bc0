"""Floor 2: a cell is two linear maps and a pointwise step, or any step function at all."""

"""Floor 7: diagnostics of the gradient, one in each file; all of them use the three phases."""

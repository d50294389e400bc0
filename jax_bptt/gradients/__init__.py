"""Floor 4: the gradient methods, one in each file; each is a value for the argument `gradient`."""

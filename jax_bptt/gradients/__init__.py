"""Floor 4: the gradient methods, one a file; each is a value for the argument `gradient`."""

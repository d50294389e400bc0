"""Floor 4: one gradient method a file; each is a value for the argument `gradient`."""

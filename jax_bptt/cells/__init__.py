"""Floor 4: the built-in cells, one a file: the step, and its derivative by hand."""

"""Floor 5: where other frameworks store the weights of a cell, one framework in each file."""

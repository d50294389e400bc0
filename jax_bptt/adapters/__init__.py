"""Floor 5: weights to and from other frameworks, one framework in each file."""

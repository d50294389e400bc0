"""Floor 5: weights of other frameworks."""

"""Floor 6: cells of other frameworks, run and differentiated by ours, one framework in each file."""

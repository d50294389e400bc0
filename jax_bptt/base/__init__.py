"""Floor 1: all folders use these types, errors, checks of single arguments, tree arithmetic and caching."""

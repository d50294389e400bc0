"""Floor 1: types, errors, checks of single arguments, arithmetic on trees, and caching, for all rooms."""

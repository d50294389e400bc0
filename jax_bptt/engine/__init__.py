"""Floor 3: the engine does matrix products, time loops, memory, precision and devices for all cells."""

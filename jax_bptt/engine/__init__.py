"""Floor 3: matrix products, loops over time, memory, layout, precision and devices, once for all cells."""

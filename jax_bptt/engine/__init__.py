"""Floor 3: matrix products, time loops, memory, layout, precision and devices, written once for all cells."""

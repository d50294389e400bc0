"""Floor 6: layers of cells, a readout and a loss."""

"""Floor 6: layers of cells, a readout and a loss, and the gradient from the loss to the first weight."""

"""Floor 6: layers of cells, a readout and a loss, and the gradient of the loss by every weight."""

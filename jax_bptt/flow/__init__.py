"""Floor 7: where does the gradient come from? One question a file; all read the three phases."""

"""Floor 7: where does the gradient come from? One question a file; all of them read the three phases."""

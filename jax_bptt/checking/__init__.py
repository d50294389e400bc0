"""Floor 7: a gradient is checked against three independent computations, with a report."""

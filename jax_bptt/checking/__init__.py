"""Floor 7: is a gradient right? Three independent witnesses, and a report."""

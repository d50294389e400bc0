"""Floor 4: each file defines one built-in cell: its step, and the derivative of the step by hand."""

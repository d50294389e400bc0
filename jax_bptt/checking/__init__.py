"""Floor 7: is a gradient right?"""

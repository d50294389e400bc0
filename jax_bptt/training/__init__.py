"""Floor 7: optax updates, and where their state lies on many devices."""

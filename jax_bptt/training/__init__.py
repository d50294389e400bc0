"""Floor 7: training by optax updates, and shardings of the training state over many devices."""

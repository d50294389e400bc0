"""optax optimizers for strict dtype promotion: their own arithmetic mixes int32 counts with floats."""

import jax
import optax


def lenient(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same optimizer, allowed the standard promotion inside."""

    def update(*args, **extra):
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(*args, **extra)

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


ADAM = lenient(optax.adam(1e-2))
SGD = optax.sgd(0.1)

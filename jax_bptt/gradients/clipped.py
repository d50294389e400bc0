"""λ clipped inside the sweep: an exploding gradient is cut down where it explodes, step by step.

    λ_{t−1} = G_{t−1} + λ̃_{t−1} min(1, c / ‖λ̃_{t−1}‖)    a norm for each row              (CL1)

This is no derivative of the loss: where a step clips, all that lies before it is scaled down against what
lies after it, so both length and direction change. Clipping the norm of the finished gradient
(optax.clip_by_global_norm) changes the length alone. `clipped_share` says how often it happens.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import number
from jax_bptt.base.errors import bad
from jax_bptt.base.trees import norm_of_rows, trailing
from jax_bptt.base.types import DType, S
from jax_bptt.gradients.full import full, full_with
from jax_bptt.gradients.method import GradientMethod


def positive_norm(argument: str, max_norm: object) -> float:
    """A largest norm, or a ValueError."""
    expected = "a positive number"
    found = number(argument, expected, max_norm)
    if found <= 0:
        raise bad(argument, expected, max_norm, "pass the largest norm of a row of lambda")
    return found


@cached(max_norm=positive_norm)
def clipped(max_norm: float) -> GradientMethod:
    """Backpropagation through every step with λ clipped on its way: NOT the gradient of the loss.

    λ_{t−1} = G_{t−1} + λ̃_{t−1} min(1, c / ‖λ̃_{t−1}‖)   (CL1)

    The gradient of `full` where no step clips. Time and memory as `full`.

    Args:
      max_norm: c, the largest norm, for each row over all of its state, with which λ goes on to the step
        before; in the units of dE/ds.

    Returns:
      The `GradientMethod`; the same object for the same norm.

    Raises:
      ValueError: a norm that is not positive.

    Reference: Graves 2013, Generating sequences with recurrent neural networks, section 2.1 (there each
    number of the derivative is clipped, not the norm).

    >>> clipped(1.0)
    clipped(1.0)
    """
    back = full_with(functools.partial(clip, max_norm))
    return GradientMethod("clipped", full().forward, back)


def clip(max_norm: float, lam: S) -> S:
    """λ with rows of at most this norm."""
    norm = norm_of_rows(lam)
    c, one = as_held(max_norm, norm.dtype), jnp.ones_like(norm)
    above = norm > c
    scale = jnp.where(above, c / jnp.where(above, norm, one), one)
    return jax.tree.map(lambda z: z * trailing(scale, z), lam)  # (CL1)


def as_held(max_norm: float, dtype: DType) -> float:
    """The largest number of a dtype in the place of a larger norm."""
    return min(max_norm, float(jnp.finfo(dtype).max))  # type: ignore[no-untyped-call]

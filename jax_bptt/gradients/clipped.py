"""λ clipped inside the sweep: an exploding gradient is cut down where it explodes, step by step.

    λ_{t−1} = G_{t−1} + λ̃_{t−1} min(1, c / ‖λ̃_{t−1}‖)    a norm for each row               (Q1)

This is no derivative of the loss: where a step clips, all that lies before it is scaled down against what
lies after it, so both length and direction change. Clipping the norm of the finished gradient
(optax.clip_by_global_norm) changes the length alone. `clipped_share` says how often it happens.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.errors import bad
from jax_bptt.cell.initializers import number
from jax_bptt.engine.sequence import trailing
from jax_bptt.gradients.full import backward, full
from jax_bptt.gradients.method import GradientMethod


def clipped(max_norm: float) -> GradientMethod:
    """Backpropagation through every step with λ clipped on its way: NOT the gradient of the loss.

    λ_{t−1} = G_{t−1} + λ̃_{t−1} min(1, c / ‖λ̃_{t−1}‖)   (Q1)

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
    expected = "a positive number"
    if number("max_norm", expected, max_norm) <= 0:
        raise bad("max_norm", expected, max_norm, "pass the largest norm of a row of lambda")
    return _clipped(float(max_norm))


@functools.lru_cache(maxsize=256)
def _clipped(max_norm: float) -> GradientMethod:
    back = functools.partial(backward, None, functools.partial(clip, max_norm))
    return GradientMethod(f"clipped({max_norm})", full().forward, back)


def clip(max_norm: float, lam: Any) -> Any:
    """λ with rows of at most this norm."""
    norm = norm_of_rows(lam)
    c, one = as_held(max_norm, norm.dtype), jnp.ones_like(norm)
    above = norm > c
    scale = jnp.where(above, c / jnp.where(above, norm, one), one)
    return jax.tree.map(lambda z: z * trailing(scale, z), lam)  # (Q1)


def as_held(max_norm: float, dtype: Any) -> float:
    """The largest number of a dtype in the place of a larger norm."""
    return min(max_norm, float(jnp.finfo(dtype).max))  # type: ignore[no-untyped-call]


def norm_of_rows(lam: Any) -> Array:
    """‖λ‖ of each row over all fields of the carry: [...] from leaves [..., *].

    Of λ over its largest number: the square of one that explodes would be infinite, and λ clipped to zero.
    """
    axes = lam.h.ndim - 1
    largest = [jnp.abs(z).max(tuple(range(axes, z.ndim)), initial=0) for z in jax.tree.leaves(lam)]
    scale = jax.lax.stop_gradient(functools.reduce(jnp.maximum, largest))
    scale = jnp.where((scale > 0) & jnp.isfinite(scale), scale, jnp.ones_like(scale))
    return scale * root(squares_of_rows(jax.tree.map(lambda z: z / trailing(scale, z), lam)))


def squares_of_rows(lam: Any) -> Array:
    """‖λ‖² of each row."""
    axes = lam.h.ndim - 1
    squares = (jnp.square(z).sum(tuple(range(axes, z.ndim))) for z in jax.tree.leaves(lam))
    return sum(squares, jnp.zeros(lam.h.shape[:axes], lam.h.dtype))


def root(squares: Array) -> Array:
    """The square root, with derivative zero at zero, where it has none: norms are differentiated, too."""
    above = squares > 0
    return jnp.where(above, jnp.sqrt(jnp.where(above, squares, jnp.ones_like(squares))), squares)

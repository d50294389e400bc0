"""The sweep clips λ at every step, so that an exploding gradient is scaled down where it explodes.

    λ_{t−1} = G_{t−1} + λ̃_{t−1} min(1, c / ‖λ̃_{t−1}‖)    a norm for each row              (CL1)

The result is not the derivative of the loss. Where a step clips, the contributions of all earlier steps are
scaled down and those of later steps are not, so the gradient changes in length and in direction. Clipping
the norm of the finished gradient (optax.clip_by_global_norm) changes its length alone. `clipped_share`
reports how often λ is clipped. A second derivative is that of (CL1): it goes through the clipping, too.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import positive
from jax_bptt.base.trees import common_dtype, norm_of_rows, trailing
from jax_bptt.base.types import DType, S
from jax_bptt.gradients.full import full, full_with
from jax_bptt.gradients.method import GradientMethod


def positive_norm(argument: str, max_norm: object) -> float:
    """The largest norm is returned as a float; ValueError unless it is a positive number."""
    fix = "pass the largest norm of a row of lambda, such as 1.0"
    return positive(argument, "a positive number", max_norm, fix)


@cached(max_norm=positive_norm)
def clipped(max_norm: float) -> GradientMethod:
    """This method clips λ on its way back through the steps; the result is NOT the gradient of the loss.

    λ_{t−1} = G_{t−1} + λ̃_{t−1} min(1, c / ‖λ̃_{t−1}‖)   (CL1)

    Where no step clips, the gradient equals that of `full`. Time and memory are those of `full`.

    Args:
      max_norm: c, the largest norm with which λ may go on to the previous step, in units of dE/ds. The norm
        is taken for each row of the batch, over all numbers of its state.

    Returns:
      The `GradientMethod`; the same object for the same norm.

    Raises:
      ValueError: the norm is not a positive number.

    Reference: Graves 2013, Generating sequences with recurrent neural networks, section 2.1 (there each
    number of the derivative is clipped, not the norm).

    >>> clipped(1.0)
    clipped(1.0)
    """
    back = full_with(functools.partial(clip, max_norm))
    return GradientMethod("clipped", full().forward, back)


def clip(max_norm: float, lam: S) -> S:
    """Each row of λ is scaled down to this norm if its own is larger."""
    if not jax.tree.leaves(lam):  # a carry of counters alone
        return lam
    norm = norm_of_rows(lam)
    c, one = as_held(max_norm, norm.dtype), jnp.ones_like(norm)
    above = norm > c  # the inner `where` below avoids a division by zero, also in a derivative of this
    scale = jnp.where(above, c / jnp.where(above, norm, one), one)

    def scaled(z: Array) -> Array:
        dtype = common_dtype((z, norm))
        return (z.astype(dtype) * trailing(scale, z).astype(dtype)).astype(z.dtype)  # (CL1)

    return jax.tree.map(scaled, lam)


def as_held(max_norm: float, dtype: DType) -> float:
    """The norm is returned, or the largest number of the dtype if the norm exceeds that."""
    return min(max_norm, float(jnp.finfo(dtype).max))  # type: ignore[no-untyped-call]

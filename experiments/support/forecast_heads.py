"""What the network of `forecast` says of a number: a normal distribution or quantiles; draws from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

import jax_bptt as jb

LEVELS = (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98)


class Head(NamedTuple):
    """A distribution of one number.

    Attributes:
      outputs: how many numbers the network says for it.
      loss: of these and of what happened.
      draw: the numbers [..., outputs] and a key -> a sample [...].
    """

    outputs: int
    loss: Callable[..., Array]
    draw: Callable[[Array, Array], Array]


def from_normal(said: Array, key: Array) -> Array:
    """A sample of the distribution of this mean and log standard deviation."""
    return said[..., 0] + jnp.exp(said[..., 1]) * jax.random.normal(key, said.shape[:-1], said.dtype)


def from_quantiles(said: Array, key: Array) -> Array:
    """A sample between two quantiles, or as far beyond the outer ones as their slopes lead."""
    levels, ordered = jnp.asarray(LEVELS, said.dtype), jnp.sort(said, -1)  # quantiles may cross
    share = jax.random.uniform(key, said.shape[:-1], said.dtype)
    above = jnp.clip(jnp.searchsorted(levels, share), 1, len(LEVELS) - 1)
    left, right = (jnp.take_along_axis(ordered, at[..., None], -1)[..., 0] for at in (above - 1, above))
    slope = (right - left) / (levels[above] - levels[above - 1])
    return left + slope * (share - levels[above - 1])


quantile_error: Any = jb.quantile_error(LEVELS)
HEADS = {
    "gaussian": Head(2, jb.gaussian_nll, from_normal),
    "quantile": Head(len(LEVELS), quantile_error, from_quantiles),
}

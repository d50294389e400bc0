"""What a body for `jb.scan` is in the tests, and the parts that many of them share.

A body takes its weights as an argument and returns f(carry, x) -> (carry, y), so that a test differentiates
by what f closes over. Where f calls the library itself, `plain` is the same body in JAX alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

T, H = 7, 3


class Body(NamedTuple):
    """One row of the table.

    Attributes:
      build: weights -> f.
      init, xs, weights, length: what the scan takes, and what f closes over.
      tolerance: the largest ratio of norms; that of float64 unless f computes in less.
      plain: weights -> the same f without this library; None where it is `build`.
    """

    build: Callable[[Any], Any]
    init: Any
    xs: Any
    weights: Any
    length: int | None = None
    tolerance: float = 1e-12
    plain: Callable[[Any], Any] | None = None


def draw(seed: int, *shape: int) -> jax.Array:
    """Numbers of size 0.6; NumPy draws them, so that nothing is compiled for them."""
    return jnp.asarray(0.6 * np.random.default_rng(seed).standard_normal(shape))


def _weights() -> dict[str, jax.Array]:
    return {"w_h": draw(1, H, H), "w_x": draw(2, H, H), "b": draw(3, H)}


def tanh_of(w, s, x):
    z = s @ w["w_h"] + x @ w["w_x"]
    return jnp.tanh(z + jnp.broadcast_to(w["b"], z.shape))


def returned(of_step, w):
    """f that returns the new carry as its output, too."""

    def f(s, x):
        new = of_step(w, s, x)
        return new, new

    return f


def tanh_step(w):
    """y reads the carry before the step and the one after it."""

    def f(s, x):
        new = tanh_of(w, s, x)
        return new, s * new + x

    return f


S, X, W = draw(20, H), draw(21, T, H), _weights()
OF_ALL = {  # marks of 7 steps
    "mask": np.arange(T) % 5 != 1,
    "reset": np.arange(T) % 4 == 3,
    "cut": np.array([False, False, False, False, True, True, False]),
}

"""Cells and readouts share these activations g and their derivatives g′.

    s = g(z)                                                                  (AF1)
    g′(z)       written with s where that needs no second transcendental      (AF2)

    tanh       g′ = 1 − s²
    sigmoid    g′ = s (1 − s)
    relu       g′ = 1 where s > 0, else 0     (0 at exactly z = 0, as jax.nn.relu)
    identity   g′ = 1

Any other g is a callable from a number to a number. It is mapped over the numbers of an array, so it is
pointwise by construction, and jax.vjp computes its g′.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import is_function
from jax_bptt.base.errors import bad, running
from jax_bptt.base.trees import vmap_leading

ActivationName: TypeAlias = Literal["tanh", "sigmoid", "relu", "identity"]


class Activation(NamedTuple):
    """An activation is a pointwise function with its derivative.

    Attributes:
      g: z -> s, any shape to the same shape (AF1).
      slope: (z, s) -> g′(z), same shape (AF2).
    """

    g: Callable[[Array], Array]
    slope: Callable[[Array, Array], Array]


_NAMED = {
    "tanh": Activation(jnp.tanh, lambda z, s: 1 - s * s),
    "sigmoid": Activation(jax.nn.sigmoid, lambda z, s: s * (1 - s)),
    "relu": Activation(jax.nn.relu, lambda z, s: (s > 0).astype(s.dtype)),
    "identity": Activation(lambda z: z, lambda z, s: jnp.ones_like(s)),
}


def activation(g: ActivationName | Callable[[Array], Array]) -> Activation:
    """`activation` finds an activation by its name, or makes one from a callable on single numbers.

    s = g(z), with g′(z) beside it.

    Args:
      g: "tanh", "relu", "sigmoid", "identity", or a callable from a scalar to a scalar.

    Returns:
      The `Activation`; the same object for the same g.

    Raises:
      ValueError: an unknown name, or a callable that is not a function of one number (found when it is
        first traced).

    >>> float(activation("tanh").slope(jnp.zeros(()), jnp.zeros(())))
    1.0
    """
    if isinstance(g, str):
        if g not in _NAMED:
            raise bad(
                "activation", f"one of {', '.join(_NAMED)}, or a callable", repr(g), "check the spelling"
            )
        return _NAMED[g]
    if not is_function(g):
        raise bad("activation", "a name or a hashable callable", g, "pass a function of one number")
    return _of_callable(g)


@cached()
def _of_callable(g: Callable[[Array], Array]) -> Activation:
    def pointwise(z: Array) -> Array:
        return vmap_leading(z.ndim, _checked(g))(z)  # (AF1)

    def slope(z: Array, s: Array) -> Array:
        return jax.vjp(pointwise, z)[1](jnp.ones_like(z))[0]  # (AF2)

    return Activation(pointwise, slope)


def _checked(g: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The result is g on one number; a g that needs several numbers (softmax, a layer norm) is refused."""

    def scalar(z: Array) -> Array:
        with running("activation", "it is given a single number; a softmax or a layer norm is no activation"):
            s = g(z)
        if getattr(s, "shape", None) != () or s.dtype != z.dtype:
            raise bad("activation", f"{z.dtype}[] from {z.dtype}[]", s, "return one number of the dtype of z")
        return s

    return scalar

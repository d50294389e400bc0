"""A dense layer has no recurrence: it maps each step by itself, between two layers that remember.

    forward   o_t = g(x_t W + b)           all t at once: one product                        (DE1)
    back      dE/dW, dE/db, dE/dx_t        two factors: it feeds no state of its own

No gradient goes through time here, so JAX differentiates (DE1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import flag, size
from jax_bptt.base.made import Call, by_shape, made
from jax_bptt.base.types import DType, PRNGKey, Shape
from jax_bptt.cell.activations import Activation, ActivationName
from jax_bptt.cell.activations import activation as activation_of
from jax_bptt.cell.cell import without_biases
from jax_bptt.engine.linear_maps import broadcast_leading, product


@by_shape
class DenseParams(NamedTuple):
    """These are the parameters of a dense layer.

    Attributes:
      w: [I, O], weights.
      b: [O], bias.
    """

    w: Array
    b: Array


@made(run="put it into jb.network([cell, dense, cell], readout)")
class Dense(NamedTuple):
    """A `Dense` layer maps x_t to g(x_t W (+ b)); `dense` makes it.

    Attributes:
      input_size: I, the number of input features.
      hidden_size: O, the number of features that it hands out.
      activation: g.
      bias: whether its parameters have a b.
      dtype: the dtype to which the operands of its product are rounded; None for no rounding. See `unroll`.
      made_by: the call that made it, by which it is printed, copied and pickled.
    """

    input_size: int
    hidden_size: int
    activation: Activation
    bias: bool = True
    dtype: DType | None = None
    made_by: Call | None = None

    def init(self, key: PRNGKey) -> DenseParams:
        """This makes parameters, in the default float dtype: a Lecun-normal W and a zero b."""
        dtype = jnp.result_type(float)
        w = jax.nn.initializers.lecun_normal()(key, (self.input_size, self.hidden_size), dtype)
        params = DenseParams(w, jnp.zeros(self.hidden_size, dtype))
        return params if self.bias else without_biases(params)

    def initial_carry(self, params: DenseParams, batch_shape: Shape) -> tuple[()]:
        """A dense layer has no state."""
        return ()

    def forward(self, params: DenseParams, x: Array) -> Array:
        """The features [..., I] of any number of steps give [..., O]."""
        z = product(x, params.w, self.dtype)
        return self.activation.g(z + broadcast_leading(params.b, z.ndim) if self.bias else z)  # (DE1)


@cached(input_size=size, output_size=size, bias=flag)
def dense(
    input_size: int,
    output_size: int,
    *,
    activation: ActivationName | Callable[[Array], Array] = "identity",
    bias: bool = True,
) -> Dense:
    """A dense layer maps the features of each step by itself, for example between two recurrent layers.

    o_t = g(x_t W (+ b))   (DE1)

    Args:
      input_size: I.
      output_size: O.
      activation: g, as for `elman`.
      bias: whether there is a b; False leaves it out of the params.

    Returns:
      The `Dense` layer, for the list of cells of `network`, or for `layer`, which gives it dropout or a
      residual connection. Its carry is ().

    Raises:
      ValueError: a size is below 1, the activation is unknown, or bias is not a bool.

    >>> net = jb.network([jb.gru(3, 8), jb.dense(8, 5, activation="relu"), jb.lstm(5, 4)], jb.readout(4, 2))
    >>> net.init(jax.random.key(0)).cells[1].w.shape
    (8, 5)
    """
    return Dense(input_size, output_size, activation_of(activation), bias)

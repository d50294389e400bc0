"""The Elman cell (Elman 1990) computes the state S_t of the article.

    article   S_t = g₁(W_x X_t + W_s S_{t−1})

    forward   z_t = u_t + v_t                   u_t = x_t W_x (+ b), v_t = h_{t−1} W_h   (EF1)
              h_t = g(z_t)                                                               (EF2)

z_t influences the loss only through h_t, and g is pointwise. With λ_t = dE/dh_t:

    adjoint   a_t = g′(z_t)                                                              (EA1)
              δz_t = a_t λ_t                                                             (EA2)
              δu_t = δv_t = δz_t,   δh_{t−1} = 0 besides the path through v_t            (EA3)

The engine turns δv_t into λ_{t−1} (S3 of `loops`): the factor dS_t/dS_{t−1} of the article is
diag(a_t) W_s, and the product of these factors is what vanishes or explodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

import jax.numpy as jnp
from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import flag, size
from jax_bptt.base.types import Gates, Units
from jax_bptt.cell.activations import Activation, ActivationName
from jax_bptt.cell.activations import activation as activation_of
from jax_bptt.cell.cell import Carry, Cell, Params, StepCotangent, init_of, make_cell
from jax_bptt.cell.initializers import Initializer, orthogonal


@overload
def elman(
    input_size: int,
    hidden_size: int,
    *,
    activation: ActivationName | Callable[[Array], Array] = "tanh",
    recurrent: Initializer = orthogonal(),
    bias: Literal[True] = True,
) -> Cell[Params, Carry]: ...
@overload
def elman(
    input_size: int,
    hidden_size: int,
    *,
    activation: ActivationName | Callable[[Array], Array] = "tanh",
    recurrent: Initializer = orthogonal(),
    bias: bool,
) -> Cell[Any, Carry]: ...
@cached(input_size=size, hidden_size=size, bias=flag)
def elman(
    input_size: int,
    hidden_size: int,
    *,
    activation: ActivationName | Callable[[Array], Array] = "tanh",
    recurrent: Initializer = orthogonal(),
    bias: bool = True,
) -> Cell[Any, Carry]:
    """`elman` makes the cell of the article, S_t = g₁(W_x X_t + W_s S_{t−1}).

    h_t = g(x_t W_x (+ b) + h_{t−1} W_h)

    Args:
      input_size: I.
      hidden_size: H.
      activation: g: "tanh", "relu", "sigmoid", "identity", or a callable from a number to a number.
      recurrent: initialiser of W_h: `orthogonal`, `identity`, or (key, shape, dtype) -> array.
      bias: whether there is a b; False leaves it out of the params.

    Returns:
      The `Cell`, with G = 1 and `Params`; the same object for the same arguments.

    Raises:
      ValueError: a size below 1, an unknown activation, a recurrent that is not a function, or a bias that
        is not a bool.

    Reference: Elman 1990, Finding structure in time.

    >>> elman(3, 5) is elman(3, 5, activation="tanh")
    True
    """
    step, linearise, adjoint = _pointwise(activation_of(activation))
    init = init_of(input_size, hidden_size, 1, recurrent)
    return make_cell(
        input_size, hidden_size, step, init=init, bias=bias, linearise=linearise, adjoint=adjoint
    )


def _pointwise(activation: Activation) -> tuple[Callable[..., Any], ...]:
    g, slope = activation

    def step(units: Units, s_prev: Carry, u: Gates, v: Gates) -> Carry:
        z = u[0] + v[0]  # (EF1)
        return Carry(g(z))  # (EF2)

    def linearise(units: Units, s_prev: Carry, u: Gates, v: Gates, s: Carry) -> Array:
        return slope(u[0] + v[0], s.h)  # (EA1)

    def adjoint(units: Units, a: Array, lam: Carry) -> StepCotangent[Carry]:
        d_z = a * lam.h  # (EA2)
        return StepCotangent(carry=Carry(jnp.zeros_like(d_z)), u=(d_z,), v=(d_z,), units={})  # (EA3)

    return step, linearise, adjoint

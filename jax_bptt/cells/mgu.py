"""The minimal gated unit (Zhou et al. 2016) has one gate that both forgets and resets.

    forward   f = σ(u_f + v_f)                                                              (MF1)
              n = tanh(u_n + f v_n)                                                         (MF2)
              h_t = (1 − f) h_{t−1} + f n                                                   (MF3)

The paper applies the gate before the product, n = tanh(u_n + (f h_{t−1}) W_n). Here, as in `gru`, the gate
comes after it, so that one product per step is enough. With λ = dE/dh_t:

    adjoint   δn̂ = δu_n = k_n λ,        k_n = f (1 − n²)                                    (MA1)
              δv_n = f δn̂                                                                   (MA2)
              δu_f = δv_f = k_f λ,      k_f = (n − h_{t−1} + k_n v_n) f (1 − f)             (MA3)
              δh_{t−1} = (1 − f) λ      besides the path through v                          (MA4)
"""

from __future__ import annotations

from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import flag, size
from jax_bptt.base.types import Gates, Units
from jax_bptt.cell.cell import Carry, Cell, Params, StepCotangent, init_of, make_cell
from jax_bptt.cell.initializers import Initializer, orthogonal

_Slopes = tuple[Array, Array, Array]


@overload
def mgu(
    input_size: int,
    hidden_size: int,
    *,
    recurrent: Initializer = orthogonal(),
    bias: Literal[True] = True,
) -> Cell[Params, Carry]: ...
@overload
def mgu(
    input_size: int, hidden_size: int, *, recurrent: Initializer = orthogonal(), bias: bool
) -> Cell[Any, Carry]: ...
@cached(input_size=size, hidden_size=size, bias=flag)
def mgu(
    input_size: int, hidden_size: int, *, recurrent: Initializer = orthogonal(), bias: bool = True
) -> Cell[Any, Carry]:
    """`mgu` makes a minimal gated unit, with the gate after the product.

    h_t = (1 − f) h_{t−1} + f tanh(u_n + f v_n)   (MF1-MF3)

    Args:
      input_size: I.
      hidden_size: H.
      recurrent: initialiser of each gate's block of W_h.
      bias: whether there is a b; False leaves it out of the params.

    Returns:
      The `Cell`, with gates f, n, `Carry` and `Params`; the same object for the same arguments.

    Raises:
      ValueError: a size below 1, a recurrent that is not a function, or a bias that is not a bool.

    Reference: Zhou et al. 2016, Minimal gated unit for recurrent neural networks.

    >>> mgu(3, 5).init(jax.random.key(0)).w_h.shape
    (5, 10)
    """
    init = init_of(input_size, hidden_size, 2, recurrent)
    return make_cell(
        input_size,
        hidden_size,
        _step,
        gates=("f", "n"),
        init=init,
        bias=bias,
        linearise=_linearise,
        adjoint=_adjoint,
    )


def _gates(u: Gates, v: Gates) -> tuple[Array, Array]:
    f = jax.nn.sigmoid(u[0] + v[0])  # (MF1)
    return f, jnp.tanh(u[1] + f * v[1])  # (MF2)


def _step(units: Units, s_prev: Carry, u: Gates, v: Gates) -> Carry:
    f, n = _gates(u, v)
    return Carry((1 - f) * s_prev.h + f * n)  # (MF3)


def _linearise(units: Units, s_prev: Carry, u: Gates, v: Gates, s: Carry) -> _Slopes:
    f, n = _gates(u, v)
    k_n = f * (1 - n * n)  # (MA1)
    k_f = (n - s_prev.h + k_n * v[1]) * f * (1 - f)  # (MA3)
    return k_f, k_n, f


def _adjoint(units: Units, a: _Slopes, lam: Carry) -> StepCotangent[Carry]:
    k_f, k_n, f = a
    d_f, d_n = k_f * lam.h, k_n * lam.h  # (MA3, MA1)
    d_v_n = f * d_n  # (MA2)
    return StepCotangent(carry=Carry((1 - f) * lam.h), u=(d_f, d_n), v=(d_f, d_v_n), units={})  # (MA4)

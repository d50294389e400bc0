"""This gated recurrent unit applies the reset gate after the product, as cuDNN and PyTorch do.

    forward   r = σ(u_r + v_r)                           v = h_{t−1} W_h (+ b_h)            (GF1)
              z = σ(u_z + v_z)                                                              (GF2)
              n = tanh(u_n + r v_n)                      so b_h is not a second b           (GF3)
              h_t = (1 − z) n + z h_{t−1}                                                   (GF4)

Let λ = dE/dh_t. Every derivative below is λ times a factor that does not depend on λ:

    adjoint   δn̂ = δu_n = k_n λ,        k_n = (1 − z) (1 − n²)                              (GA1)
              δv_n = r δn̂                                                                   (GA2)
              δu_r = δv_r = k_r λ,      k_r = k_n v_n r (1 − r)                             (GA3)
              δu_z = δv_z = k_z λ,      k_z = (h_{t−1} − n) z (1 − z)                       (GA4)
              δh_{t−1} = z λ            besides the path through v                          (GA5)

In (GA5) the gate z does what the forget gate does in an LSTM: where z is near one, λ goes back unchanged.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import flag, size
from jax_bptt.base.errors import bad
from jax_bptt.base.made import by_shape
from jax_bptt.base.types import Gates, PRNGKey, Units
from jax_bptt.cell.cell import Carry, Cell, Params, StepCotangent, init_of, make_cell, without_biases
from jax_bptt.cell.initializers import (
    Chrono,
    Initializer,
    check_gate_bias,
    gate_bias,
    gate_biases,
    orthogonal,
)
from jax_bptt.cell.step_cell import StepCell
from jax_bptt.cells.gru_reset_before import reset_before

_Slopes = tuple[Array, Array, Array, Array, Array]


@by_shape
class GRUParams(NamedTuple):
    """These are the parameters of a GRU with the reset after the product.

    Attributes:
      w_x: [I, 3H].
      w_h: [H, 3H]; [n, H/n, 3H/n] of n > 1 heads.
      b: [3H], added to x W_x.
      b_h: [3H], added to h W_h, so that the reset gate scales its part for n.
    """

    w_x: Array
    w_h: Array
    b: Array
    b_h: Array


@overload
def gru(
    input_size: int,
    hidden_size: int,
    *,
    reset_after: Literal[True] = True,
    update_bias: float | Chrono = 0.0,
    recurrent: Initializer = orthogonal(),
    bias: Literal[True] = True,
    heads: int = 1,
) -> Cell[GRUParams, Carry]: ...
@overload
def gru(
    input_size: int,
    hidden_size: int,
    *,
    reset_after: Literal[False],
    update_bias: float | Chrono = 0.0,
    recurrent: Initializer = orthogonal(),
    bias: Literal[True] = True,
) -> StepCell[Params, Carry]: ...
@overload
def gru(
    input_size: int,
    hidden_size: int,
    *,
    reset_after: bool = True,
    update_bias: float | Chrono = 0.0,
    recurrent: Initializer = orthogonal(),
    bias: bool = True,
    heads: int = 1,
) -> Cell[Any, Carry] | StepCell[Any, Carry]: ...
@cached(input_size=size, hidden_size=size, reset_after=flag, update_bias=gate_bias, bias=flag, heads=size)
def gru(
    input_size: int,
    hidden_size: int,
    *,
    reset_after: bool = True,
    update_bias: float | Chrono = 0.0,
    recurrent: Initializer = orthogonal(),
    bias: bool = True,
    heads: int = 1,
) -> Cell[Any, Carry] | StepCell[Any, Carry]:
    """`gru` makes a gated recurrent unit, whose update gate z mixes the past state with a new value n.

    h_t = (1 − z) n + z h_{t−1}   (GF1-GF4)

    Args:
      input_size: I.
      hidden_size: H.
      reset_after: True for n = tanh(u_n + r (h W_n (+ b_n))), one product per step, as cuDNN and PyTorch;
        False for n = tanh(u_n + (r h) W_n), two products per step, as the paper and Haiku.
      update_bias: the initial bias of the gate z, which keeps the past state: a number, or `chrono`.
      recurrent: initialiser of each gate's block of W_h, of each head.
      bias: whether there are b and b_h; False leaves them out of the params, and then update_bias is to be
        left out.
      heads: n, a divisor of H. With n > 1, W_h is block-diagonal: each of the n heads of H/n units reads only
        itself, so that W_h has 1/n of the numbers. w_h is then [n, H/n, 3H/n], a block for each head.

    Returns:
      The `Cell` with gates r, z, n, `Carry` and `GRUParams`; with the reset before, a `StepCell` with
      `Params`. The same object for the same arguments.

    Raises:
      ValueError: a size below 1, a reset_after or bias that is not a bool, an update_bias that is not a
        number or `chrono` or that comes with bias=False, a recurrent that is not a function, or heads that do
        not divide H or that come with reset_after=False.

    Reference: Cho et al. 2014, Learning phrase representations, equations (5)-(8); Hafner et al. 2023,
    Mastering diverse domains through world models (heads).

    >>> gru(3, 5).init(jax.random.key(0)).b_h.shape
    (15,)
    """
    check_gate_bias("update_bias", update_bias, 0.0, bias)
    if heads > 1 and not reset_after:
        raise bad("heads", "1, as reset_after=False", heads, "leave out reset_after=False or heads")
    plain = init_of(input_size, hidden_size, 3, recurrent, heads)

    def init_before(key: PRNGKey) -> Params:
        params = plain(key)
        # gate 1 is z; a GRU has no gate that opposes it
        b = gate_biases(jax.random.fold_in(key, 1), update_bias, 1, None, params.b, hidden_size)
        return params._replace(b=b)

    def init(key: PRNGKey) -> GRUParams:
        params = init_before(key)
        return GRUParams(*params, jnp.zeros_like(params.b))

    if not reset_after:
        before = init_before if bias else lambda key: without_biases(init_before(key))
        return reset_before(input_size, hidden_size, before)
    return make_cell(
        input_size,
        hidden_size,
        _step,
        gates=("r", "z", "n"),
        init=init,
        bias=bias,
        linearise=_linearise,
        adjoint=_adjoint,
    )


def _gates(u: Gates, v: Gates) -> tuple[Array, Array, Array]:
    r = jax.nn.sigmoid(u[0] + v[0])  # (GF1)
    z = jax.nn.sigmoid(u[1] + v[1])  # (GF2)
    n = jnp.tanh(u[2] + r * v[2])  # (GF3)
    return r, z, n


def _step(units: Units, s_prev: Carry, u: Gates, v: Gates) -> Carry:
    _, z, n = _gates(u, v)
    return Carry((1 - z) * n + z * s_prev.h)  # (GF4)


def _linearise(units: Units, s_prev: Carry, u: Gates, v: Gates, s: Carry) -> _Slopes:
    r, z, n = _gates(u, v)
    k_n = (1 - z) * (1 - n * n)  # (GA1)
    k_r = k_n * v[2] * r * (1 - r)  # (GA3)
    k_z = (s_prev.h - n) * z * (1 - z)  # (GA4)
    return k_r, k_z, k_n, r, z


def _adjoint(units: Units, a: _Slopes, lam: Carry) -> StepCotangent[Carry]:
    k_r, k_z, k_n, r, z = a
    d_r, d_z, d_n = k_r * lam.h, k_z * lam.h, k_n * lam.h  # (GA3, GA4, GA1)
    d_v_n = r * d_n  # (GA2)
    return StepCotangent(carry=Carry(z * lam.h), u=(d_r, d_z, d_n), v=(d_r, d_z, d_v_n), units={})  # (GA5)

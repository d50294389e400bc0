"""Long short-term memory keeps a cell state c_t, which gates write, forget and read.

It was published by Hochreiter & Schmidhuber 1997, and its forget gate by Gers et al. 2000.

    forward   z_i, z_f, z_g, z_o = u_t + v_t              gates in this order
              i = σ(z_i + p_i c_{t−1})                    p: peepholes, absent without them   (LF1)
              f = σ(z_f + p_f c_{t−1})                                                        (LF2)
              g = tanh(z_g)                                                                   (LF3)
              c_t = f c_{t−1} + i g                                                           (LF4)
              o = σ(z_o + p_o c_t)                                                            (LF5)
              h_t = o tanh(c_t)                                                               (LF6)

Step t influences the loss through h_t and through c_t: λʰ = dE/dh_t, λᶜ = dE/dc_t. By (LF6) and (LF5)
h_t depends on c_t as well, so the total derivative by c_t is the λ̄ᶜ of (LA2):

    adjoint   δz_o = k_o λʰ,              k_o = tanh(c_t) o (1 − o)                           (LA1)
              λ̄ᶜ = λᶜ + k_c λʰ,           k_c = o (1 − tanh²c_t) + p_o k_o                    (LA2)
              δz_i = k_i λ̄ᶜ,              k_i = g i (1 − i)                                   (LA3)
              δz_f = k_f λ̄ᶜ,              k_f = c_{t−1} f (1 − f)                             (LA4)
              δz_g = k_g λ̄ᶜ,              k_g = i (1 − g²)                                    (LA5)
              δc_{t−1} = k_s λ̄ᶜ,          k_s = f + p_i k_i + p_f k_f                         (LA6)
              δp_i = c_{t−1} δz_i,  δp_f = c_{t−1} δz_f,  δp_o = c_t δz_o                     (LA7)

Without peepholes (LA6) is λᶜ_{t−1} = f λ̄ᶜ_t: the gradient is multiplied by f alone, not by W_h and not by
the derivative of an activation. While f is near one it neither vanishes nor explodes. That is why the
forget gate starts at σ(1) = 0.73 and not at one half (Jozefowicz et al. 2015).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import flag, or_none, size
from jax_bptt.base.errors import bad
from jax_bptt.base.made import by_shape
from jax_bptt.base.types import Gates, PRNGKey, Units
from jax_bptt.cell.cell import Cell, Params, StepCotangent, init_of, make_cell
from jax_bptt.cell.initializers import (
    Chrono,
    Initializer,
    check_gate_bias,
    gate_bias,
    gate_biases,
    orthogonal,
)
from jax_bptt.cell.step_cell import StepCell
from jax_bptt.cells.lstm_projected import ProjectedParams, projected

_Slopes = tuple[tuple[Array, ...], tuple[Array, ...]]


@by_shape
class LSTMCarry(NamedTuple):
    """The state of an LSTM has two parts.

    Attributes:
      h: the output, [..., H].
      c: the cell state, [..., H].
    """

    h: Array
    c: Array


@by_shape
class PeepholeParams(NamedTuple):
    """These are the parameters of an LSTM with peepholes.

    Attributes:
      w_x: [I, 4H].
      w_h: [H, 4H]; [n, H/n, 4H/n] of n > 1 heads.
      b: [4H].
      p_i, p_f, p_o: [H], from the cell state to each gate.
    """

    w_x: Array
    w_h: Array
    b: Array
    p_i: Array
    p_f: Array
    p_o: Array


@overload
def lstm(
    input_size: int,
    hidden_size: int,
    *,
    forget_bias: float | Chrono = 1.0,
    peephole: Literal[False] = False,
    recurrent: Initializer = orthogonal(),
    bias: Literal[True] = True,
    heads: int = 1,
    projection: None = None,
) -> Cell[Params, LSTMCarry]: ...
@overload
def lstm(
    input_size: int,
    hidden_size: int,
    *,
    forget_bias: float | Chrono = 1.0,
    peephole: Literal[True],
    recurrent: Initializer = orthogonal(),
    bias: Literal[True] = True,
    heads: int = 1,
    projection: None = None,
) -> Cell[PeepholeParams, LSTMCarry]: ...
@overload
def lstm(
    input_size: int,
    hidden_size: int,
    *,
    forget_bias: float | Chrono = 1.0,
    peephole: bool = False,
    recurrent: Initializer = orthogonal(),
    bias: bool = True,
    heads: int = 1,
    projection: None = None,
) -> Cell[Any, LSTMCarry]: ...
@overload
def lstm(
    input_size: int,
    hidden_size: int,
    *,
    forget_bias: float | Chrono = 1.0,
    peephole: Literal[False] = False,
    recurrent: Initializer = orthogonal(),
    bias: Literal[True] = True,
    heads: Literal[1] = 1,
    projection: int,
) -> StepCell[ProjectedParams, LSTMCarry]: ...
@overload
def lstm(
    input_size: int,
    hidden_size: int,
    *,
    forget_bias: float | Chrono = 1.0,
    peephole: bool = False,
    recurrent: Initializer = orthogonal(),
    bias: bool = True,
    heads: int = 1,
    projection: int | None = None,
) -> Cell[Any, LSTMCarry] | StepCell[Any, LSTMCarry]: ...
@cached(
    input_size=size,
    hidden_size=size,
    forget_bias=gate_bias,
    peephole=flag,
    bias=flag,
    heads=size,
    projection=or_none(size),
)
def lstm(
    input_size: int,
    hidden_size: int,
    *,
    forget_bias: float | Chrono = 1.0,
    peephole: bool = False,
    recurrent: Initializer = orthogonal(),
    bias: bool = True,
    heads: int = 1,
    projection: int | None = None,
) -> Cell[Any, LSTMCarry] | StepCell[Any, LSTMCarry]:
    """`lstm` makes a long short-term memory cell, which keeps a cell state c_t beside its output h_t.

    c_t = f c_{t−1} + i g,   h_t = o tanh(c_t)   (LF1-LF6)

    Args:
      input_size: I.
      hidden_size: H.
      forget_bias: the initial bias of the forget gate f, stored in b: a number, or `chrono` for biases of
        f and i.
      peephole: whether the gates also read the cell state, through p_i, p_f and p_o.
      recurrent: initialiser of each gate's block of W_h, of each head.
      bias: whether there is a b; False leaves it out of the params, and then forget_bias is to be left out.
      heads: n, a divisor of H. With n > 1, W_h is block-diagonal: each of the n heads of H/n units reads only
        itself, so that W_h has 1/n of the numbers. w_h is then [n, H/n, 4H/n], a block for each head.
      projection: P, if h_t is to be o tanh(c_t) times a matrix W_p [H, P] (LSTMP, as proj_size in PyTorch);
        h_t is then [P], c_t stays [H], and hidden_size of the cell is P, what the next layer reads.

    Returns:
      The `Cell`, with gates i, f, g, o, `LSTMCarry` and `Params`, or `PeepholeParams` with p = 0; with a
      projection a `StepCell` with `ProjectedParams`. The same object for the same arguments.

    Raises:
      ValueError: a size below 1, a forget_bias that is not a number or `chrono` or that comes with
        bias=False, a peephole or bias that is not a bool, a recurrent that is not a function, heads that do
        not divide H, or a projection with peepholes or heads.

    Reference: Gers & Schmidhuber 2000, Recurrent nets that time and count (peepholes); Sak et al. 2014, Long
    short-term memory recurrent neural network architectures for large scale acoustic modeling (projection);
    Beck et al. 2024, xLSTM (heads).

    >>> lstm(3, 5).init(jax.random.key(0)).b[5:10].tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    check_gate_bias("forget_bias", forget_bias, 1.0, bias)
    if projection is not None and (peephole or heads > 1):
        other = "peephole=True" if peephole else f"heads={heads}"
        raise bad("projection", f"None, as {other}", projection, f"leave out {other} or projection")
    plain = init_of(input_size, hidden_size, 4, recurrent, heads, projection)

    def init(key: PRNGKey) -> Params | PeepholeParams:
        params = plain(key)
        # gate 1 is f; gate 0 is i, which opposes it
        b = gate_biases(jax.random.fold_in(key, 1), forget_bias, 1, 0, params.b, hidden_size)
        none = jnp.zeros(hidden_size, b.dtype)
        return PeepholeParams(*params._replace(b=b), none, none, none) if peephole else params._replace(b=b)

    cell = make_cell(
        input_size,
        hidden_size,
        _step,
        gates=("i", "f", "g", "o"),
        carry_type=LSTMCarry,
        init=init,
        bias=bias,
        linearise=_linearise,
        adjoint=_adjoint,
    )
    return cell if projection is None else projected(cell, projection, LSTMCarry)


def _gates(units: Units, c_prev: Array, u: Gates, v: Gates) -> tuple[Array, Array, Array, Array]:
    z_i, z_f, z_g, z_o = (of_x + of_h for of_x, of_h in zip(u, v, strict=True))
    if units:
        z_i, z_f = z_i + units["p_i"] * c_prev, z_f + units["p_f"] * c_prev
    i = jax.nn.sigmoid(z_i)  # (LF1)
    f = jax.nn.sigmoid(z_f)  # (LF2)
    g = jnp.tanh(z_g)  # (LF3)
    return i, f, g, z_o


def _output(units: Units, z_o: Array, c: Array) -> Array:
    return jax.nn.sigmoid(z_o + units["p_o"] * c if units else z_o)  # (LF5)


def _step(units: Units, s_prev: LSTMCarry, u: Gates, v: Gates) -> LSTMCarry:
    i, f, g, z_o = _gates(units, s_prev.c, u, v)
    c = f * s_prev.c + i * g  # (LF4)
    return LSTMCarry(_output(units, z_o, c) * jnp.tanh(c), c)  # (LF6)


def _linearise(units: Units, s_prev: LSTMCarry, u: Gates, v: Gates, s: LSTMCarry) -> _Slopes:
    i, f, g, z_o = _gates(units, s_prev.c, u, v)
    o, tanh_c = _output(units, z_o, s.c), jnp.tanh(s.c)
    k_o = tanh_c * o * (1 - o)  # (LA1)
    k_c = o * (1 - tanh_c * tanh_c)  # (LA2)
    k_i = g * i * (1 - i)  # (LA3)
    k_f = s_prev.c * f * (1 - f)  # (LA4)
    k_g = i * (1 - g * g)  # (LA5)
    k_s = f  # (LA6)
    if not units:
        return (k_i, k_f, k_g, k_o, k_c, k_s), ()
    k_c = k_c + units["p_o"] * k_o  # (LA2)
    k_s = k_s + units["p_i"] * k_i + units["p_f"] * k_f  # (LA6)
    return (k_i, k_f, k_g, k_o, k_c, k_s), (s_prev.c, s.c)


def _adjoint(units: Units, a: _Slopes, lam: LSTMCarry) -> StepCotangent[LSTMCarry]:
    (k_i, k_f, k_g, k_o, k_c, k_s), cells = a
    d_o = k_o * lam.h  # (LA1)
    lam_c = lam.c + k_c * lam.h  # (LA2)
    d_i, d_f, d_g = k_i * lam_c, k_f * lam_c, k_g * lam_c  # (LA3, LA4, LA5)
    d_prev = LSTMCarry(jnp.zeros_like(lam.h), k_s * lam_c)  # (LA6)
    d_units = {}
    if units:
        c_prev, c = cells
        d_units = {"p_i": c_prev * d_i, "p_f": c_prev * d_f, "p_o": c * d_o}  # (LA7)
    d_z = (d_i, d_f, d_g, d_o)
    return StepCotangent(carry=d_prev, u=d_z, v=d_z, units=d_units)

"""LSTMs and GRUs with other functions than σ and tanh, as frameworks offer them by gate_fn and activation_fn.

    z_i, z_f, z_g, z_o = u_t + v_t                                                            (AD1)
    c_t = σ(z_f) c_{t−1} + σ(z_i) g(z_g),   h_t = σ(z_o) g(c_t)                               (AD2)

    r = σ(u_r + v_r),   z = σ(u_z + v_z),   n = g(u_n + r v_n)                                (AD3)
    h_t = (1 − z) n + z h_{t−1}                                                               (AD4)

Here σ and g are any functions of one number. jax.vjp differentiates these steps; with σ and tanh the cells
are `lstm` and `gru`, whose steps are differentiated by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import is_function
from jax_bptt.base.types import Gates, Units
from jax_bptt.cell.activations import ActivationName
from jax_bptt.cell.activations import activation as activation_of
from jax_bptt.cell.cell import Carry, Cell, make_cell
from jax_bptt.cells.elman import elman
from jax_bptt.cells.gru import gru
from jax_bptt.cells.lstm import LSTMCarry, lstm

Function: TypeAlias = Callable[[Array], Array]

_NAMES: dict[Function, ActivationName] = {
    jnp.tanh: "tanh",
    jax.nn.tanh: "tanh",
    jax.nn.sigmoid: "sigmoid",
    jax.nn.relu: "relu",
    jax.nn.identity: "identity",
}


@cached()
def is_pointwise(f: Function) -> bool:
    """Whether a function gives each number a value of its own; a softmax does not, nor a module."""
    if not is_function(f) or not jax.tree_util.all_leaves([f]):
        return False  # it may hold weights
    if f in _NAMES:
        return True
    z = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    with jax.ensure_compile_time_eval():
        try:
            whole, alone = f(jnp.asarray(z)), [f(jnp.asarray(number)) for number in z.flat]
        except Exception:  # it wants more than one number
            return False
        return whole.shape == z.shape and bool(np.allclose(whole, np.reshape(alone, z.shape), 1e-5, 1e-6))


def elman_with(input_size: int, hidden_size: int, activation: Function, bias: bool) -> Cell[Any, Carry]:
    """`elman` with any activation that is a function of one number."""
    return elman(input_size, hidden_size, activation=_NAMES.get(activation, activation), bias=bias)


def lstm_with(
    input_size: int, hidden_size: int, gate: Function, activation: Function, bias: bool
) -> Cell[Any, LSTMCarry]:
    """`lstm`, or the same with other functions for σ and tanh."""
    plain = lstm(input_size, hidden_size, bias=bias)
    return plain if _are_usual(gate, activation) else _lstm(plain, gate, activation)


def gru_with(
    input_size: int, hidden_size: int, gate: Function, activation: Function, bias: bool
) -> Cell[Any, Carry]:
    """`gru` with the reset after the product, or the same with other functions for σ and tanh."""
    plain = gru(input_size, hidden_size, bias=bias)
    assert isinstance(plain, Cell)  # as the reset is after the product
    return plain if _are_usual(gate, activation) else _gru(plain, gate, activation)


@cached()
def _lstm(plain: Cell[Any, LSTMCarry], gate: Function, activation: Function) -> Cell[Any, LSTMCarry]:
    s, g = _of_one_number(gate), _of_one_number(activation)

    def step(units: Units, s_prev: LSTMCarry, u: Gates, v: Gates) -> LSTMCarry:
        z_i, z_f, z_g, z_o = (u_k + v_k for u_k, v_k in zip(u, v, strict=True))  # (AD1)
        c = s(z_f) * s_prev.c + s(z_i) * g(z_g)  # (AD2)
        return LSTMCarry(s(z_o) * g(c), c)  # (AD2)

    sizes = plain.input_size, plain.hidden_size
    return make_cell(*sizes, step, gates=plain.gate_names, carry_type=LSTMCarry, init=plain.init)


@cached()
def _gru(plain: Cell[Any, Carry], gate: Function, activation: Function) -> Cell[Any, Carry]:
    s, g = _of_one_number(gate), _of_one_number(activation)

    def step(units: Units, s_prev: Carry, u: Gates, v: Gates) -> Carry:
        r, z = s(u[0] + v[0]), s(u[1] + v[1])  # (AD3)
        n = g(u[2] + r * v[2])  # (AD3)
        return Carry((1 - z) * n + z * s_prev.h)  # (AD4)

    return make_cell(plain.input_size, plain.hidden_size, step, gates=plain.gate_names, init=plain.init)


def _of_one_number(f: Function) -> Function:
    return activation_of(_NAMES.get(f, f)).g


def _are_usual(gate: Function, activation: Function) -> bool:
    return _NAMES.get(gate) == "sigmoid" and _NAMES.get(activation) == "tanh"

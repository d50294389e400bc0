"""LSTMs and GRUs with other functions than σ and tanh, as frameworks offer them by gate_fn and activation_fn.

    z_i, z_f, z_g, z_o = u_t + v_t                                                            (AD1)
    c_t = σ(z_f) c_{t−1} + σ(z_i) g(z_g),   h_t = σ(z_o) g(c_t)                               (AD2)

    r = σ(u_r + v_r),   z = σ(u_z + v_z),   n = g(u_n + r v_n)                                (AD3)
    h_t = (1 − z) n + z h_{t−1}                                                               (AD4)

Here σ and g are any functions of one number. jax.vjp differentiates these steps; with σ and tanh the cells
are `lstm` and `gru`, whose steps are differentiated by hand.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from jax_bptt.adapters.functions_of_numbers import NAMES, Function, program_of
from jax_bptt.base.caching import cached
from jax_bptt.base.types import Gates, Units
from jax_bptt.cell.activations import activation as activation_of
from jax_bptt.cell.cell import Carry, Cell, make_cell
from jax_bptt.cells.elman import elman
from jax_bptt.cells.gru import gru
from jax_bptt.cells.lstm import LSTMCarry, lstm

_ProgramsOf: TypeAlias = tuple[str | None, ...]  # of the functions; part of the key of a cell


def elman_with(input_size: int, hidden_size: int, activation: Function, bias: bool) -> Cell[Any, Carry]:
    """`elman` with any activation that is a function of one number."""
    if activation in NAMES:
        return elman(input_size, hidden_size, activation=NAMES[activation], bias=bias)
    return elman_of(input_size, hidden_size, activation, bias, program_of(activation))


def lstm_with(
    input_size: int, hidden_size: int, gate: Function, activation: Function, bias: bool
) -> Cell[Any, LSTMCarry]:
    """`lstm`, or the same with other functions for σ and tanh."""
    plain = lstm(input_size, hidden_size, bias=bias)
    programs = program_of(gate), program_of(activation)
    return plain if programs == _USUAL else gated_lstm(plain, gate, activation, programs)


def gru_with(
    input_size: int, hidden_size: int, gate: Function, activation: Function, bias: bool
) -> Cell[Any, Carry]:
    """`gru` with the reset after the product, or the same with other functions for σ and tanh."""
    plain = gru(input_size, hidden_size, bias=bias)
    assert isinstance(plain, Cell)  # as the reset is after the product
    programs = program_of(gate), program_of(activation)
    return plain if programs == _USUAL else gated_gru(plain, gate, activation, programs)


_USUAL = "sigmoid", "tanh"


@cached()
def elman_of(
    input_size: int, hidden_size: int, activation: Function, bias: bool, program: str | None
) -> Cell[Any, Carry]:
    # a function of its own for each program, by which `elman` remembers the cell
    return elman(input_size, hidden_size, activation=lambda z: activation(z), bias=bias)


@cached()
def gated_lstm(
    plain: Cell[Any, LSTMCarry], gate: Function, activation: Function, programs: _ProgramsOf
) -> Cell[Any, LSTMCarry]:
    s, g = _of_one_number(gate), _of_one_number(activation)

    def step(units: Units, s_prev: LSTMCarry, u: Gates, v: Gates) -> LSTMCarry:
        z_i, z_f, z_g, z_o = (u_k + v_k for u_k, v_k in zip(u, v, strict=True))  # (AD1)
        c = s(z_f) * s_prev.c + s(z_i) * g(z_g)  # (AD2)
        return LSTMCarry(s(z_o) * g(c), c)  # (AD2)

    sizes = plain.input_size, plain.hidden_size
    return make_cell(*sizes, step, gates=plain.gate_names, carry_type=LSTMCarry, init=plain.init)


@cached()
def gated_gru(
    plain: Cell[Any, Carry], gate: Function, activation: Function, programs: _ProgramsOf
) -> Cell[Any, Carry]:
    s, g = _of_one_number(gate), _of_one_number(activation)

    def step(units: Units, s_prev: Carry, u: Gates, v: Gates) -> Carry:
        r, z = s(u[0] + v[0]), s(u[1] + v[1])  # (AD3)
        n = g(u[2] + r * v[2])  # (AD3)
        return Carry((1 - z) * n + z * s_prev.h)  # (AD4)

    return make_cell(plain.input_size, plain.hidden_size, step, gates=plain.gate_names, init=plain.init)


def _of_one_number(f: Function) -> Function:
    return activation_of(NAMES.get(f, f)).g

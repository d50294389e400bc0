"""The cells of flax.linen and of flax.nnx have the same equations, options and traps.

SimpleCell(residual=True) adds h_{t−1} before the activation: W_h + 1 takes the place of W_h, where both are
rounded alike.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.adapters.adopted import C_H, H_ALONE, Adopted, adopted, run
from jax_bptt.adapters.flax_sequences import Runner
from jax_bptt.adapters.functions_of_numbers import program_of
from jax_bptt.adapters.gated import elman_with, gru_with, lstm_with
from jax_bptt.base.errors import bad
from jax_bptt.base.types import ArrayTree, DType, Foreign, Mark
from jax_bptt.cell.cell import Params
from jax_bptt.cells.gru import GRUParams
from jax_bptt.gradients.method import GradientMethod


def can_be_ours(cell: Foreign) -> bool:
    """Whether the functions of a simple cell, LSTM or GRU are pointwise, and its numbers real."""
    functions = [cell.activation_fn, *([cell.gate_fn] if hasattr(cell, "gate_fn") else [])]
    own, asked = jnp.dtype(cell.param_dtype), _dtype(cell)
    is_real = all(jnp.issubdtype(dtype, jnp.floating) for dtype in (own, asked or own))
    is_rounded = getattr(cell, "residual", False) and asked not in (None, own)
    return is_real and not is_rounded and None not in map(program_of, functions)


def as_ours(cell: Foreign, params: Params | GRUParams) -> Adopted:
    """A usual cell of flax, with its weights as ours, becomes one of ours."""
    input_size, hidden_size = len(params.w_x), len(params.w_h)
    bias, dtype = hasattr(params, "b"), _dtype(cell)
    if not hasattr(cell, "gate_fn"):
        if cell.residual:
            params = params._replace(w_h=params.w_h + jnp.eye(hidden_size, dtype=params.w_h.dtype))
        return adopted(elman_with(input_size, hidden_size, cell.activation_fn, bias), params, H_ALONE, dtype)
    is_gru = type(cell).__name__ == "GRUCell"
    make, order = (gru_with, H_ALONE) if is_gru else (lstm_with, C_H)
    return adopted(
        make(input_size, hidden_size, cell.gate_fn, cell.activation_fn, bias), params, order, dtype
    )


def runner_of(cell: Foreign, found: Adopted, gradient: GradientMethod) -> Runner:
    """A cell of flax runs as ours; like its products, ours reads the inputs in the dtype of the cell."""
    dtype = _dtype(cell)

    def runner(carry: ArrayTree, xs: Array, mask: Mark, reverse: bool) -> tuple[ArrayTree, ArrayTree]:
        read = xs if dtype is None else xs.astype(dtype)
        return run(found, carry, read, gradient, mask=mask, reverse=reverse)

    return runner


def check_direction(rnn: Foreign) -> None:
    """An RNN that is adopted must read forward, as its cell does, or a ValueError is raised."""
    for argument in ("reverse", "keep_order"):
        if getattr(rnn, argument):
            fix = "adopt its cell, and pass reverse=True to jb.unroll, which keeps the order of the outputs"
            raise bad(f"cell.{argument}", "False, as a cell has no direction", True, fix)


def check_begins_at_zero(cell: Foreign) -> None:
    """A cell that becomes ours must begin at zeros, or a ValueError is raised."""
    if cell.carry_init not in (None, jax.nn.initializers.zeros):
        fix = "adopt a cell without it, and pass the carry of cell.initialize_carry to jb.unroll"
        raise bad("cell.carry_init", "the default, zeros", cell.carry_init, fix)


def known_input_size(cell: Foreign, input_size: int | None) -> int:
    """It must be a cell, and the size of its inputs known, or a ValueError is raised."""
    if not hasattr(cell, "initialize_carry"):
        raise bad("cell", "a cell, or an RNN with one cell", cell, "adopt each of its cells by itself")
    if input_size is None:
        fix = f"pass input_size=I, as a {type(cell).__name__} does not say it"
        raise bad("input_size", "the size of the inputs", None, fix)
    return input_size


def _dtype(cell: Foreign) -> DType | None:
    return None if cell.dtype is None else jnp.dtype(cell.dtype)

"""Cells of flax.nnx are adopted with their weights; `RNN` is nnx.RNN with a gradient method.

SimpleCell(residual=True) adds h_{t−1} before the activation: W_h + 1 takes the place of W_h.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from jax import Array

from jax_bptt.adapters.adopted import C_H, H_ALONE, Adopted, adopted
from jax_bptt.adapters.foreign import Calls, as_step_cell
from jax_bptt.adapters.gated import elman_with, gru_with, is_pointwise, lstm_with
from jax_bptt.base.errors import bad
from jax_bptt.base.types import ArrayTree, Foreign, Shape
from jax_bptt.cell.step_cell import AnyCell
from jax_bptt.weights.flax_nnx import from_nnx


def adopted_cell(cell: Foreign, params: Foreign, input_size: int | None) -> tuple[AnyCell, ArrayTree]:
    """A cell of flax.nnx, or the cell of an nnx.RNN, becomes one of ours, see `adopt`."""
    if params is not None:
        cell = nnx.merge(nnx.graphdef(cell), params)
    found = recognised(cell)
    if found is not None:
        return found.cell, found.params
    graph, weights, rest = nnx.split(cell, nnx.Param, ...)
    if nnx.to_pure_dict(rest):
        fix = "keep no other state in the cell, or run it by jb.scan"
        raise bad("cell", "a cell whose only state is its nnx.Param", list(rest), fix)
    return as_step_cell(_CALLS, graph, nnx.to_pure_dict(weights), input_size or cell.in_features)


def recognised(cell: Foreign) -> Adopted | None:
    """A cell whose equations are those of one of ours, or None."""
    kind = type(cell)
    if kind not in (nnx.SimpleCell, nnx.GRUCell, nnx.LSTMCell, nnx.OptimizedLSTMCell) or _is_changed(cell):
        return None
    params = from_nnx(nnx.to_pure_dict(nnx.state(cell, nnx.Not(nnx.RngState))))
    sizes = cell.in_features, cell.hidden_features
    if kind is nnx.SimpleCell:
        if cell.residual:
            w_h = params.w_h
            params = params._replace(w_h=w_h + jnp.eye(len(w_h), dtype=w_h.dtype))
        return adopted(elman_with(*sizes, cell.activation_fn, True), params, H_ALONE, cell.dtype)
    functions = cell.gate_fn, cell.activation_fn
    if kind is nnx.GRUCell:
        return adopted(gru_with(*sizes, *functions, True), params, H_ALONE, cell.dtype)
    return adopted(lstm_with(*sizes, *functions, True), params, C_H, cell.dtype)


def _is_changed(cell: Foreign) -> bool:
    """Whether a product of the cell is no plain one, or a function of it reads several numbers."""
    parts = [part for part in vars(cell).values() if isinstance(part, nnx.Module)]
    functions = [cell.activation_fn, *([cell.gate_fn] if hasattr(cell, "gate_fn") else [])]
    is_plain = all(type(part) is nnx.Linear and part.promote_dtype is dtypes.promote_dtype for part in parts)
    return not (is_plain and all(map(is_pointwise, functions)))


def _step(graph: Foreign, params: ArrayTree, state: ArrayTree, x: Array) -> tuple[ArrayTree, Array]:
    return nnx.merge(graph, nnx.State(params))(state, x)


def _begin(graph: Foreign, params: ArrayTree, batch_shape: Shape, input_size: int) -> ArrayTree:
    cell = nnx.merge(graph, nnx.State(params))
    return cell.initialize_carry((*batch_shape, input_size), nnx.Rngs(carry=0))


_CALLS = Calls(_step, _begin)

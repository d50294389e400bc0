"""Cells of flax.nnx are adopted with their weights; `RNN` is nnx.RNN with a gradient method."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np
from flax import nnx
from flax.nnx.nn import dtypes
from jax import Array

from jax_bptt.adapters.adopted import Adopted
from jax_bptt.adapters.flax_cells import (
    as_ours,
    can_be_ours,
    check_begins_at_zero,
    check_direction,
    known_input_size,
    runner_of,
)
from jax_bptt.adapters.flax_sequences import Runner, arrangement, asked, over_sequence, without_time
from jax_bptt.adapters.foreign import Calls, as_step_cell
from jax_bptt.base.errors import bad, describe, named, naming
from jax_bptt.base.types import ArrayTree, Foreign, Mark, Shape
from jax_bptt.cell.step_cell import AnyCell
from jax_bptt.gradients.full import full
from jax_bptt.gradients.method import GradientMethod
from jax_bptt.unrolling.arguments import check_method
from jax_bptt.unrolling.scan import scan
from jax_bptt.weights.flax_nnx import from_nnx

__all__ = ["RNN"]

_PRODUCTS = {  # the dense layers of a cell
    nnx.SimpleCell: ["dense_i", "dense_h"],
    nnx.GRUCell: ["dense_i", "dense_h"],
    nnx.OptimizedLSTMCell: ["dense_i", "dense_h"],
    nnx.LSTMCell: ["ii", "if_", "ig", "io", "hi", "hf", "hg", "ho"],
}


class RNN(nnx.RNN):
    """`RNN` is nnx.RNN with a gradient method; its state is the same, under the same paths.

    (c_t, y_t) = cell(c_{t−1}, x_t)

    Args:
      cell: as for nnx.RNN. SimpleCell, GRUCell, LSTMCell and OptimizedLSTMCell run as cells of this library,
        with one product a step; every other cell is called as it is, and what it changes in itself, such as
        statistics and counts of its random numbers, goes on from step to step.
      time_major, return_carry, reverse, keep_order, rngs: as for nnx.RNN.
      unroll, state_axes, broadcast_rngs: what they are by default; there is nothing else here.
      gradient: the gradient method.

    Returns:
      A module whose call has the arguments and results of nnx.RNN, with two differences behind the
      seq_lengths of a row: outputs are zero there, and the last carry of a row of length 0 is its initial
      carry.

    Raises:
      ValueError: unroll, state_axes or broadcast_rngs is not what it is by default.

    >>> rnn = RNN(nnx.GRUCell(3, 5, rngs=nnx.Rngs(0)), gradient=jb.truncated(10))
    >>> rnn(jnp.ones((2, 7, 3)), seq_lengths=jnp.array([7, 4])).shape
    (2, 7, 5)
    """

    @named("flax_nnx.RNN")
    def __init__(
        self,
        cell: nnx.Module,
        *,
        time_major: bool = False,
        return_carry: bool = False,
        reverse: bool = False,
        keep_order: bool = False,
        unroll: int = 1,
        state_axes: Mapping[str, Foreign] | None = None,
        broadcast_rngs: Foreign = None,
        rngs: nnx.Rngs | nnx.RngStream | bool = True,
        gradient: GradientMethod = full(),
    ) -> None:
        given = {"unroll": (unroll, 1), "state_axes": (state_axes, None)}
        for argument, (value, default) in {**given, "broadcast_rngs": (broadcast_rngs, None)}.items():
            if value != default:
                raise bad(argument, repr(default), repr(value), "leave it out, or use nnx.RNN")
        check_method(gradient)
        super().__init__(
            cell,
            time_major=time_major,
            return_carry=return_carry,
            reverse=reverse,
            keep_order=keep_order,
            rngs=rngs,
        )
        self.gradient = nnx.static(gradient)

    @named("flax_nnx.RNN")
    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: ArrayTree | None = None,
        seq_lengths: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> Foreign:
        how = arrangement(self, inputs, time_major=time_major, reverse=reverse, keep_order=keep_order)
        rngs = self.rngs if rngs is None else rngs
        if initial_carry is None:
            stream = rngs.carry.fork() if isinstance(rngs, nnx.Rngs) else rngs
            initial_carry = self.cell.initialize_carry(without_time(inputs, how.time_axis), stream)
        runner = _runner(self.cell, self.gradient)
        carry, outputs = over_sequence(runner, initial_carry, inputs, seq_lengths, **how._asdict())
        return (carry, outputs) if asked(self, "return_carry", return_carry) else outputs


def adopted_cell(cell: nnx.Module, params: Foreign, input_size: int | None) -> tuple[AnyCell, ArrayTree]:
    """A cell of flax.nnx, or the cell of an nnx.RNN, becomes one of ours, see `adopt`."""
    if params is not None:
        cell = _with_params(cell, params)
    if isinstance(cell, nnx.RNN):
        check_direction(cell)
        cell = cell.cell
    found = recognised(cell)
    if found is not None:
        check_begins_at_zero(cell)
        return found.cell, found.params
    graph, weights, rest = nnx.split(cell, nnx.Param, ...)
    if nnx.to_pure_dict(rest):
        fix = "keep no other state in the cell, or run it by flax_nnx.RNN"
        raise bad("cell", "a cell whose only state is its nnx.Param", list(rest), fix)
    input_size = input_size or getattr(cell, "in_features", None)
    return as_step_cell(_CALLS, graph, nnx.to_pure_dict(weights), known_input_size(cell, input_size))


def _with_params(cell: nnx.Module, params: Foreign) -> nnx.Module:
    """A copy of the cell with other weights, which must be all of its own."""
    cell = nnx.clone(cell)
    own = nnx.to_pure_dict(nnx.state(cell, nnx.Param))
    with naming("params", "an nnx.State", "pass nnx.state(cell, nnx.Param) of such a cell"):
        given = nnx.to_pure_dict(params) if isinstance(params, nnx.State) else params
        is_whole = jax.tree.map(np.shape, given) == jax.tree.map(np.shape, own)
    if not is_whole:
        raise bad("params", describe(own), given, "pass nnx.state(cell, nnx.Param) of such a cell")
    nnx.update(cell, params)
    return cell


def recognised(cell: nnx.Module) -> Adopted | None:
    """A cell whose equations are those of one of ours, or None."""
    products: dict[str, Foreign] = {name: getattr(cell, name, None) for name in _PRODUCTS.get(type(cell), ())}
    if not products or not can_be_ours(cell):
        return None
    if not all(_is_plain(part, cell.dtype) for part in products.values()):
        return None
    weights = {
        name: {"kernel": part.kernel[...], "bias": None if part.bias is None else part.bias[...]}
        for name, part in products.items()
    }
    return as_ours(cell, from_nnx(weights))


def _is_plain(part: Foreign, dtype: Foreign) -> bool:
    """Whether a part of a cell is what the cell made: inputs times kernel, plus bias, all in its dtype."""
    options = ("promote_dtype", "dot_general", "precision", "preferred_element_type", "dtype")
    usual = (dtypes.promote_dtype, jax.lax.dot_general, None, None, dtype)
    return type(part) is nnx.Linear and tuple(getattr(part, name) for name in options) == usual


def _runner(cell: nnx.Module, gradient: GradientMethod) -> Runner:
    """The cell runs as one of ours, or as it is."""
    found = recognised(cell)
    if found is not None:
        return runner_of(cell, found, gradient)

    def runner(carry: ArrayTree, xs: Array, mask: Mark, reverse: bool) -> tuple[ArrayTree, ArrayTree]:
        is_changed = _changed_by_a_step(cell, carry, xs[0])
        graph, changed, fixed = nnx.split(cell, is_changed, ...)
        if mask is not None and jax.tree.leaves(changed):
            fix = "leave it out, or keep no statistics and no random numbers in the cell"
            raise bad("seq_lengths", "None for a cell that changes its own state", "lengths", fix)

        def body(state: ArrayTree, x: Array) -> tuple[ArrayTree, ArrayTree]:
            c, changed = state
            one = nnx.merge(graph, changed, fixed)
            c, y = one(c, x)
            return (c, nnx.state(one, is_changed)), y

        (carry, changed), ys = scan(body, (carry, changed), xs, reverse=reverse, gradient=gradient, mask=mask)
        nnx.update(cell, changed)
        return carry, ys

    return runner


def _changed_by_a_step(cell: nnx.Module, carry: ArrayTree, x: Array) -> Foreign:
    """A filter for the variables of a cell that its step replaces; they are found on shapes alone."""
    paths: set[tuple[Foreign, ...]] = set()

    def step(carry: ArrayTree, x: Array) -> None:
        one = nnx.clone(cell)
        before = dict(nnx.to_flat_state(nnx.state(one)))
        values = {path: variable[...] for path, variable in before.items()}
        one(carry, x)
        after = dict(nnx.to_flat_state(nnx.state(one)))
        paths.update(path for path in after if after[path][...] is not values.get(path))

    jax.eval_shape(step, carry, x)
    return lambda path, _: path in paths


def _step(graph: nnx.GraphDef, params: ArrayTree, state: ArrayTree, x: Array) -> tuple[ArrayTree, Array]:
    return nnx.merge(graph, nnx.State(params))(state, x)


def _begin(graph: nnx.GraphDef, params: ArrayTree, batch_shape: Shape, input_size: int) -> ArrayTree:
    cell = nnx.merge(graph, nnx.State(params))
    return cell.initialize_carry((*batch_shape, input_size), nnx.Rngs(carry=0))


_CALLS = Calls(_step, _begin)

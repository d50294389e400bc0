"""Cells of Equinox are adopted with their weights; `unroll` stands for a jax.lax.scan over such a cell.

Any module that is called as cell(x, hidden) and returns the next hidden state is a cell here.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.adapters.adopted import H_ALONE, H_C, Adopted, adopted, run, zero_where_masked
from jax_bptt.adapters.foreign import Calls, as_step_cell
from jax_bptt.base.checks import as_arrays, check_like, flag, is_floating
from jax_bptt.base.errors import bad, named, naming, running, shown
from jax_bptt.base.trees import select, vmap_leading
from jax_bptt.base.types import ArrayTree, Foreign, Mark, Shape
from jax_bptt.cell.step_cell import AnyCell
from jax_bptt.cells.gru import gru
from jax_bptt.cells.lstm import lstm
from jax_bptt.engine.sequence import Sequence, without_padding
from jax_bptt.gradients.full import full
from jax_bptt.gradients.method import GradientMethod
from jax_bptt.unrolling.arguments import check_mark, check_method
from jax_bptt.unrolling.scan import scan
from jax_bptt.weights.equinox import from_equinox

__all__ = ["unroll"]


def adopted_cell(cell: eqx.Module, params: Foreign, input_size: int | None) -> tuple[AnyCell, ArrayTree]:
    """A cell of Equinox becomes one of ours, see `adopt`; params take the place of its arrays."""
    if params is not None:
        with naming(
            "params", "the arrays of the cell", "make them by eqx.filter(cell, eqx.is_inexact_array)"
        ):
            cell = eqx.combine(params, cell)
    found = recognised(cell)
    if found is not None:
        return found.cell, found.params
    weights, rest = eqx.partition(cell, eqx.is_inexact_array)
    if not jax.tree.leaves(weights):
        raise bad("cell", "a cell with weights", cell, "run it by equinox.unroll")
    inputs = input_size or getattr(cell, "input_size", None)
    if inputs is None:
        fix = "pass input_size=I, the length of one x"
        raise bad("input_size", "a size, as the cell has no attribute input_size", None, fix)
    leaves, structure = jax.tree.flatten(rest)
    for leaf in leaves:
        if isinstance(leaf, jax.core.Tracer):
            fix = "run it by equinox.unroll"
            raise bad("cell", "a cell whose integers and keys are known when it is traced", leaf, fix)
    return as_step_cell(_CALLS, (tuple(leaves), structure), weights, inputs)


def recognised(cell: eqx.Module) -> Adopted | None:
    """A cell whose equations are those of one of ours, or None."""
    kind = type(cell)
    if kind not in (eqx.nn.GRUCell, eqx.nn.LSTMCell):
        return None
    names = ["weight_ih", "weight_hh"]
    if cell.use_bias:
        names += ["bias", "bias_n"] if kind is eqx.nn.GRUCell else ["bias"]
    weights = {name: getattr(cell, name) for name in names}
    if not all(map(is_floating, weights.values())):  # something else was put there, which has its own product
        return None
    make, order = (gru, H_ALONE) if kind is eqx.nn.GRUCell else (lstm, H_C)
    params = from_equinox({name: jnp.asarray(weight) for name, weight in weights.items()})
    return adopted(make(cell.input_size, cell.hidden_size, bias=cell.use_bias), params, order)


@named("equinox.unroll")
def unroll(
    cell: eqx.Module,
    xs: Array,
    hidden: ArrayTree | None = None,
    *,
    gradient: GradientMethod = full(),
    mask: Mark = None,
    reset: Mark = None,
    reverse: bool = False,
) -> tuple[Any, Array]:
    """`unroll` runs a cell of Equinox over a sequence, as jax.lax.scan does, with a gradient method.

    s_t = cell(x_t, s_{t−1})

    It stands for jax.lax.scan over a function that calls the cell, and for the jax.vmap over rows around it.
    It is differentiable by the arrays of the cell, xs and hidden.

    Args:
      cell: an equinox.nn.GRUCell or LSTMCell, which runs as `gru` or `lstm`, with one product a step; or any
        module that is called as cell(x, hidden) for one row and returns the next hidden state.
      xs: [T, ..., I], time first, with any number of batch axes or none.
      hidden: as the cell has it, h [..., H] or (h, c), of any floating dtype; None for zeros.
      gradient: the gradient method that jax.grad uses.
      mask: bool [T, ...]; where False the hidden state is held, the output is zero, and x_t is not read.
      reset: bool [T, ...]; where True the step starts from a hidden state of zeros.
      reverse: whether to go from the last step to the first, as jax.lax.scan does.

    Returns:
      (hidden, outputs): the last hidden state, and h of every step, [T, ..., H], where h is the hidden state,
      or the first array of it.

    Raises:
      ValueError: at trace time, if an argument is wrong; it says which one, what was expected and what came.

    >>> import equinox as eqx
    >>> cell = eqx.nn.LSTMCell(3, 5, key=jax.random.key(0))
    >>> (h, c), outputs = unroll(cell, jnp.ones((7, 2, 3)))
    >>> h.shape, c.shape, outputs.shape
    ((2, 5), (2, 5), (7, 2, 5))
    """
    check_method(gradient)
    flag("reverse", reverse)
    xs = as_arrays("xs", xs)
    if not isinstance(xs, jax.Array) or xs.ndim < 2:
        fix = "put the time first; other inputs are read by jb.scan, with a function that calls the cell"
        raise bad("xs", "an array [T, ..., I]", xs, fix)
    leading, rows = xs.shape[:-1], xs.shape[1:-1]
    mask, reset = check_mark("mask", mask, leading), check_mark("reset", reset, leading)
    hidden = _zeros(cell, rows, (cell, xs)) if hidden is None else _checked(hidden, rows)
    found = None if xs.shape[0] == 0 else recognised(cell)
    if found is None:
        return _by_scan(cell, hidden, Sequence(xs, mask, reset), gradient, reverse)
    like = jax.eval_shape(lambda: _zeros(cell, rows, xs))
    check_like("hidden", hidden, like, None, "it is h [..., H] of a GRUCell and (h, c) of an LSTMCell")
    last, hs = run(found, hidden, xs, gradient, mask=mask, reset=reset, reverse=reverse)
    return last, zero_where_masked(mask, hs)


def _by_scan(
    cell: eqx.Module, hidden: ArrayTree, sequence: Sequence, gradient: GradientMethod, reverse: bool
) -> tuple[Any, Array]:
    """Any cell runs by its own step, for every row; marks mean what they mean in jb.unroll."""
    call = vmap_leading(len(sequence.rows), cell)
    xs, mask, reset, *_ = without_padding(sequence)

    def step(hidden: ArrayTree, at: tuple[Array, Mark, Mark]) -> tuple[ArrayTree, Array]:
        x, is_there, is_start = at
        if is_start is not None:
            hidden = select(is_start, jax.tree.map(jnp.zeros_like, hidden), hidden)
        with running("cell", "a cell that is not called as cell(x, hidden) for one row is run by jb.scan"):
            made = call(x, hidden)
        check_like(
            "hidden", hidden, made, None, "pass what the cell returns for one row, with the rows in front"
        )
        return select(is_there, made, hidden), zero_where_masked(is_there, _h(made))

    last, ys = scan(step, hidden, (xs, mask, reset), reverse=reverse, gradient=gradient)
    return last, ys


def _h(hidden: ArrayTree) -> Array:
    """The output: the hidden state, or the first array of it."""
    return jax.tree.leaves(hidden)[0]


def _zeros(cell: eqx.Module, rows: Shape, beside: ArrayTree) -> ArrayTree:
    """The hidden state that a sequence begins with: (h, c) of an LSTMCell, one array of any other cell.

    It has the dtype to which JAX promotes the arrays beside it.
    """
    size = getattr(cell, "hidden_size", None)
    if size is None:
        fix = "pass one, or run the cell by jb.scan, or write it as a jb.step_cell"
        raise bad("hidden", "a hidden state, as the cell has no attribute hidden_size", None, fix)
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(eqx.filter(beside, eqx.is_inexact_array))]
    with jax.numpy_dtype_promotion("standard"):
        zeros = jnp.zeros((*rows, size), jnp.result_type(*dtypes or [float]))
    return (zeros, zeros) if isinstance(cell, eqx.nn.LSTMCell) else zeros


def _checked(hidden: ArrayTree, rows: Shape) -> ArrayTree:
    """Every array of it must have the batch axes of xs in front."""
    hidden = jax.tree.map(jnp.asarray, as_arrays("hidden", hidden))
    for leaf in jax.tree.leaves(hidden):
        if leaf.shape[: len(rows)] != rows:
            fix = "jnp.broadcast_to gives each row its own; hidden=None stands for zeros"
            raise bad("hidden", f"arrays [{shown((*rows, '...'))}], as the rows of xs", leaf, fix)
    return hidden


def _step(static: Foreign, params: ArrayTree, hidden: ArrayTree, x: Array) -> tuple[ArrayTree, Array]:
    leaves, structure = static
    hidden = eqx.combine(params, structure.unflatten(leaves))(x, hidden)
    return hidden, _h(hidden)


def _begin(static: Foreign, params: ArrayTree, batch_shape: Shape, input_size: int) -> ArrayTree:
    leaves, structure = static
    cell = eqx.combine(params, structure.unflatten(leaves))
    return _zeros(cell, batch_shape, params)


_CALLS = Calls(_step, _begin)

"""The gradient of a stream without an end: real-time recurrent learning, one step at a time.

No sequence is stored. Beside the carry goes its influence P_t = ds_t/dparams, by the recursion of
`gradients.rtrl`, and the gradient of what is lost at step t is there at step t:

    dE_t/dparams = Σ over rows of (∂E_t/∂h_t) dh_t/dparams

It is exact while the parameters stand still. Where they move at every step, P_t carries derivatives
taken at the slightly older parameters of the steps behind it (Williams & Zipser 1989): the smaller the
learning rate, the smaller the difference.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from jax_bptt.base.checks import as_arrays, check_batch_shape, check_like, is_array, is_floating
from jax_bptt.base.compiling import compiled
from jax_bptt.base.errors import bad, named, shown
from jax_bptt.base.made import by_shape
from jax_bptt.base.trees import vmap_leading
from jax_bptt.base.types import ArrayTree, Foreign, Mark, P, S, Shape, State
from jax_bptt.cell.cell import Cell
from jax_bptt.cell.step_cell import AnyCell, StepCell
from jax_bptt.engine.devices import replicate
from jax_bptt.engine.run import Run
from jax_bptt.engine.sequence import Sequence
from jax_bptt.gradients.rtrl import Influenced, advance, loss_term
from jax_bptt.unrolling.arguments import (
    check_cell,
    check_mark,
    check_params,
    check_step,
    parameter_shapes,
)


@by_shape
class RTRLState(NamedTuple):
    """What a stream remembers.

    Attributes:
      carry: s_t, leaves [..., H] or as the cell has them.
      influence: ds_t/dparams, [..., S, P]: S numbers of one row's carry by P numbers of params, each in
        the order of jax.flatten_util.ravel_pytree.
    """

    carry: State
    influence: Array


@named()
@compiled("cell", "batch_shape")
def rtrl_init(cell: Cell[P, S] | StepCell[P, S], params: P, batch_shape: Shape) -> RTRLState:
    """The beginning of a stream.

    s_0 = cell.initial_carry(params),   P_0 = ds_0/dparams

    Args:
      cell: the cell.
      params: from `cell.init`, all of one floating dtype.
      batch_shape: of the rows that are read side by side, () for none. All begin alike.

    Returns:
      The `RTRLState`, with B·S·P numbers of influence.

    Raises:
      ValueError: naming the argument, what was expected and what came.

    Reference: Williams & Zipser 1989.

    >>> cell = jb.elman(3, 5)
    >>> rtrl_init(cell, cell.init(jax.random.key(0)), (2,)).influence.shape
    (2, 5, 45)
    """
    params = _check_cell(cell, params)
    check_batch_shape(batch_shape)
    check_step(cell, params, batch_shape)
    return _beginning(cell, params, batch_shape)


@named()
@compiled("cell")
def rtrl_step(
    cell: Cell[P, S] | StepCell[P, S],
    params: P,
    state: RTRLState,
    x: Array,
    *,
    mask: Mark = None,
    reset: Mark = None,
    cut: Mark = None,
) -> tuple[RTRLState, Array]:
    """One step of a stream; `unroll` of the steps so far gives the same h.

    s_t = step(s_{t−1}, x_t),   P_t = (∂s_t/∂s_{t−1}) P_{t−1} + ∂s_t/∂params

    Args:
      cell: the cell.
      params: those of now.
      state: from `rtrl_init` or the step before.
      x: [..., I], dtype of params.
      mask: bool [...]; where False the carry and its influence are held and x is not read.
      reset: bool [...]; where True the step begins from the initial carry of params.
      cut: bool [...]; where True the influence of all steps before is forgotten.

    Returns:
      The next state, and h_t, [..., H].

    Raises:
      ValueError: naming the argument, what was expected and what came.

    Reference: Williams & Zipser 1989.

    >>> cell = jb.elman(3, 5)
    >>> params = cell.init(jax.random.key(0))
    >>> state, h = rtrl_step(cell, params, rtrl_init(cell, params, (2,)), jnp.ones((2, 3)))
    >>> h.shape
    (2, 5)
    """
    params = _check_cell(cell, params)
    state, x = as_arrays((state, x))
    rows = _check_x(cell, params, x)
    _check_state(cell, params, state, rows)
    marks = {"mask": mask, "reset": reset, "cut": cut}
    at_t = Sequence(x, **{name: check_mark(name, mark, rows) for name, mark in marks.items()})
    params, state, at_t = replicate((params, state, at_t))
    start, d_start = None, None
    if at_t.reset is not None:
        start, d_start = cell.initial_carry(params, ()), _initial_influence(cell, params)

    def one_row(carry: State, influence: Array, at_t: Sequence) -> RTRLState:
        run, before = Run(params, carry, start, at_t), Influenced(carry, influence)
        return RTRLState(*advance(cell, run, d_start, before, at_t, lambda direct: direct.by_params))

    state = vmap_leading(len(rows), one_row)(state.carry, state.influence, at_t)
    return state, state.carry.h


@named()
@compiled()
def rtrl_gradient(params: P, state: RTRLState, d_h: Array) -> P:
    """The gradient of the current step's loss.

    dE_t/dparams = Σ over rows of (∂E_t/∂h_t) dh_t/dparams

    Args:
      params: of the cell.
      state: after step t.
      d_h: ∂E_t/∂h_t, [..., H].

    Returns:
      dE_t/dparams, like params, with all earlier steps in it.

    Raises:
      ValueError: d_h that is not like h, or params of another cell.

    Reference: Williams & Zipser 1989.

    >>> cell = jb.elman(3, 5)
    >>> params = cell.init(jax.random.key(0))
    >>> rtrl_gradient(params, rtrl_init(cell, params, (2,)), jnp.ones((2, 5))).b.shape
    (5,)
    """
    params, state, d_h = as_arrays((params, state, d_h))
    rows = _check_after(state)
    h, numbers = state.carry.h, state.influence.shape[-1]
    check_like("d_h", d_h, h, h.dtype, "give the derivative of the loss by every h")
    leaves = jax.tree.leaves(params)
    if not all(is_array(p) and p.dtype == h.dtype for p in leaves) or sum(p.size for p in leaves) != numbers:
        expected = f"{numbers} numbers of {h.dtype}"
        raise bad("params", expected, params, "pass the params that rtrl_init was given")
    params, state, d_h = replicate((params, state, d_h))

    def one_row(d_h: Array, carry: State, influence: Array) -> Array:
        return loss_term(d_h, Influenced(carry, influence))

    by_row = vmap_leading(len(rows), one_row)(d_h, state.carry, state.influence)
    gradient: P = ravel_pytree(params)[1](by_row.reshape(-1, numbers).sum(0))
    return gradient


def _beginning(cell: AnyCell, params: ArrayTree, rows: Shape) -> RTRLState:
    """s_0 and P_0 of all rows."""
    influence = _initial_influence(cell, params)
    spread = jnp.broadcast_to(influence, (*rows, *influence.shape))
    return RTRLState(cell.initial_carry(params, rows), spread)


def _initial_influence(cell: AnyCell, params: ArrayTree) -> Array:
    """ds_0/dparams of one row, [S, P]: zero but where the initial carry is learned."""
    theta, params_of = ravel_pytree(params)
    return jax.jacrev(lambda theta: ravel_pytree(cell.initial_carry(params_of(theta), ()))[0])(theta)


def _check_cell(cell: Foreign, params: Foreign) -> Any:
    """params as arrays, or a ValueError."""
    check_cell(cell)
    params = as_arrays(params)
    check_params(params, parameter_shapes(cell), "make them by cell.init(key)")
    return params


def _check_x(cell: AnyCell, params: ArrayTree, x: Foreign) -> Shape:
    """The rows of x, or a ValueError."""
    dtype, shape = jax.tree.leaves(params)[0].dtype, f"one step [..., {cell.input_size}]"
    if not is_array(x) or x.ndim < 1 or x.shape[-1] != cell.input_size:
        raise bad("x", shape, x, "a stream is read one step at a time, features last")
    if x.dtype != dtype:
        raise bad("x", f"{dtype} as params", x, f"cast by x.astype({str(dtype)!r})")
    return tuple(x.shape[:-1])


def _check_after(state: Foreign) -> Shape:
    """The rows of a state, or a ValueError unless its parts fit each other."""
    fix = "pass what jb.rtrl_step returns"
    if not isinstance(state, RTRLState):
        raise bad("state", "an RTRLState", state, fix)
    h: Foreign = getattr(state.carry, "h", None)
    if not is_floating(h) or not h.ndim:
        raise bad("state.carry", "a carry with h [..., H]", state.carry, fix)
    rows: Shape = h.shape[:-1]
    leaves = jax.tree.leaves(state.carry)
    alike = (is_array(s) and s.dtype == h.dtype and s.shape[: len(rows)] == rows for s in leaves)
    if not all(alike):
        raise bad("state.carry", f"leaves of {h.dtype} and of the rows of h", state.carry, fix)
    size = sum(math.prod(s.shape[len(rows) :]) for s in leaves)
    influence, wanted = state.influence, (*rows, size)
    if not is_array(influence) or influence.dtype != h.dtype or influence.shape[:-1] != wanted:
        raise bad("state.influence", f"{h.dtype}[{shown(wanted)},P] as the carry", influence, fix)
    return rows


def _check_state(cell: AnyCell, params: ArrayTree, state: object, rows: Shape) -> None:
    """ValueError unless the state is that of a stream of these rows."""
    expected = jax.eval_shape(lambda: _beginning(cell, params, rows))
    dtype = jax.tree.leaves(params)[0].dtype
    fix = f"make it by jb.rtrl_init(cell, params, {rows}), the batch axes of x"
    check_like("state", state, expected, dtype, fix)

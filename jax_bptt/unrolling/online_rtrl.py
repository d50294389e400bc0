"""Real-time recurrent learning computes the gradient of an endless stream, one step at a time.

No sequence is stored. Each step also updates P_t = ds_t/dparams, the influence of the parameters on the
carry, by the recursion of `gradients.rtrl`. So the gradient of the loss E_t is known at step t:

    dE_t/dparams = Σ over rows of (∂E_t/∂h_t) dh_t/dparams

The gradient is exact as long as the parameters stay constant. If they change at every step, P_t contains
derivatives at the slightly older parameters of earlier steps (Williams & Zipser 1989): the smaller the
learning rate, the smaller the error. Without a gradient, `step` takes one step.
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
from jax_bptt.base.trees import differentiable, to_vector, vmap_leading
from jax_bptt.base.types import ArrayTree, Foreign, Mark, P, S, Shape, State
from jax_bptt.cell.cell import Cell
from jax_bptt.cell.step_cell import AnyCell, StepCell
from jax_bptt.engine.devices import replicate
from jax_bptt.engine.emission import H
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
from jax_bptt.unrolling.inputs import check_x


@by_shape
class RTRLState(NamedTuple):
    """This is what real-time recurrent learning stores between two steps.

    Attributes:
      carry: s_t, leaves [..., H] or other shapes that the cell defines.
      influence: ds_t/dparams, [..., S, P], where one row's carry has S numbers and params have P numbers,
        each in the order of jax.flatten_util.ravel_pytree.
    """

    carry: State
    influence: Array


@named()
@compiled("cell", "batch_shape")
def rtrl_init(cell: Cell[P, S] | StepCell[P, S], params: P, batch_shape: Shape) -> RTRLState:
    """`rtrl_init` makes the state before the first step of a stream.

    s_0 = cell.initial_carry(params),   P_0 = ds_0/dparams

    Args:
      cell: the cell.
      params: from `cell.init`, all of one floating dtype.
      batch_shape: the batch axes of x, such as (32,), or () for none. All rows start from the same carry.

    Returns:
      The `RTRLState`; its influence has B·S·P numbers.

    Raises:
      ValueError: an argument is wrong; it says which one, what was expected and what was passed.

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
    """`rtrl_step` takes one step of a stream; its h is the same as that of `unroll` over all steps so far.

    s_t = step(s_{t−1}, x_t),   P_t = (∂s_t/∂s_{t−1}) P_{t−1} + ∂s_t/∂params

    Args:
      cell: the cell.
      params: the present parameters.
      state: from `rtrl_init` or from the previous step.
      x: [..., I], dtype of params.
      mask: bool [...]; where False the carry and its influence are held and x is not read.
      reset: bool [...]; where True the step starts from the initial carry of params.
      cut: bool [...]; where True the influence of all earlier steps is set to zero.

    Returns:
      The next state, and h_t, [..., H].

    Raises:
      ValueError: an argument is wrong; it says which one, what was expected and what was passed.

    Reference: Williams & Zipser 1989.

    >>> cell = jb.elman(3, 5)
    >>> params = cell.init(jax.random.key(0))
    >>> state, h = rtrl_step(cell, params, rtrl_init(cell, params, (2,)), jnp.ones((2, 3)))
    >>> h.shape
    (2, 5)
    """
    params = _check_cell(cell, params)
    state, x = as_arrays("state", state), as_arrays("x", x)
    rows = check_x(x, cell.input_size, jax.tree.leaves(params)[0].dtype).shape[:-1]
    _check_state(cell, params, state, rows)
    marks = {"mask": mask, "reset": reset, "cut": cut}
    mask, reset, cut = (check_mark(name, mark, rows) for name, mark in marks.items())
    at_t = Sequence(x, mask, reset, cut)
    params, state, at_t = replicate((params, state, at_t))
    # without resets nothing goes back to the initial carry, so it is not computed
    start, d_start = None, None
    if at_t.reset is not None:
        start, d_start = cell.initial_carry(params, ()), _initial_influence(cell, params)

    def one_row(carry: State, influence: Array, at_t: Sequence) -> RTRLState:
        run, before = Run(params, carry, start, at_t), Influenced(carry, influence)
        after = advance(cell, run, d_start, before, at_t, lambda direct: direct.by_params)
        return RTRLState(after.carry, after.influence)

    state = vmap_leading(len(rows), one_row)(state.carry, state.influence, at_t)
    return state, state.carry.h


@named()
@compiled()
def rtrl_gradient(params: P, state: RTRLState, d_h: Array) -> P:
    """`rtrl_gradient` computes the gradient of the current step's loss.

    dE_t/dparams = Σ over rows of (∂E_t/∂h_t) dh_t/dparams

    Args:
      params: the parameters of the cell.
      state: the state after step t.
      d_h: ∂E_t/∂h_t, [..., H].

    Returns:
      dE_t/dparams, like params, through all earlier steps.

    Raises:
      ValueError: a d_h without the shape and dtype of h, or params of another cell.

    Reference: Williams & Zipser 1989.

    >>> cell = jb.elman(3, 5)
    >>> params = cell.init(jax.random.key(0))
    >>> rtrl_gradient(params, rtrl_init(cell, params, (2,)), jnp.ones((2, 5))).b.shape
    (5,)
    """
    params, state = as_arrays("params", params), as_arrays("state", state)
    d_h = as_arrays("d_h", d_h)
    rows = _check_after(state)
    h, numbers = state.carry.h, state.influence.shape[-1]
    check_like("d_h", d_h, h, h.dtype, "pass the derivative of the loss by h")
    leaves = jax.tree.leaves(params)
    if not all(is_array(p) and p.dtype == h.dtype for p in leaves) or sum(p.size for p in leaves) != numbers:
        expected = f"{numbers} numbers of {h.dtype}"
        raise bad("params", expected, params, "pass the params that rtrl_init was given")
    params, state, d_h = replicate((params, state, d_h))

    def one_row(d_h: Array, carry: State, influence: Array) -> Array:
        return loss_term(H, d_h, Influenced(carry, influence))

    by_row = vmap_leading(len(rows), one_row)(d_h, state.carry, state.influence)
    gradient: P = ravel_pytree(params)[1](by_row.reshape(-1, numbers).sum(0))
    return gradient


def _beginning(cell: AnyCell, params: ArrayTree, rows: Shape) -> RTRLState:
    """The result is s_0 and P_0 of all rows."""
    influence = _initial_influence(cell, params)
    of_all_rows = jnp.broadcast_to(influence, (*rows, *influence.shape))
    return RTRLState(cell.initial_carry(params, rows), of_all_rows)


def _initial_influence(cell: AnyCell, params: ArrayTree) -> Array:
    """ds_0/dparams of one row is [S, P]; it is zero unless the initial carry is trained."""
    theta, params_of = ravel_pytree(params)

    def start(theta: Array) -> Array:
        return to_vector(differentiable(cell.initial_carry(params_of(theta), ())))

    return jax.jacrev(start)(theta)


def _check_cell(cell: Foreign, params: Foreign) -> Any:
    """cell and params must fit each other; params are returned as arrays."""
    check_cell(cell)
    params = as_arrays("params", params)
    check_params(params, parameter_shapes(cell), "make them by cell.init(key)")
    return params


def _check_after(state: Foreign) -> Shape:
    """The parts of a state must fit each other; its batch axes are returned."""
    fix = "pass what jb.rtrl_step returns"
    if not isinstance(state, RTRLState):
        raise bad("state", "an RTRLState", state, fix)
    h: Foreign = getattr(state.carry, "h", None)
    if not is_floating(h) or not h.ndim:
        raise bad("state.carry", "a carry with h [..., H]", state.carry, fix)
    rows: Shape = h.shape[:-1]
    leaves = jax.tree.leaves(state.carry)
    alike = (is_array(s) and s.shape[: len(rows)] == rows for s in leaves)
    numbers = [s for s in leaves if is_array(s) and jnp.issubdtype(s.dtype, jnp.inexact)]
    if not all(alike) or {s.dtype for s in numbers} != {h.dtype}:
        raise bad("state.carry", f"leaves of {h.dtype} and of the rows of h", state.carry, fix)
    size = sum(math.prod(s.shape[len(rows) :]) for s in numbers)
    influence, wanted = state.influence, (*rows, size)
    if not is_array(influence) or influence.dtype != h.dtype or influence.shape[:-1] != wanted:
        raise bad("state.influence", f"{h.dtype}[{shown(wanted)},P] as the carry", influence, fix)
    return rows


def _check_state(cell: AnyCell, params: ArrayTree, state: object, rows: Shape) -> None:
    """The state must belong to this cell and have these batch axes, or a ValueError is raised."""
    expected = jax.eval_shape(lambda: _beginning(cell, params, rows))
    dtype = jax.tree.leaves(params)[0].dtype
    fix = f"make it by jb.rtrl_init(cell, params, {rows}), the batch axes of x"
    check_like("state", state, expected, dtype, fix)

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

from jax_bptt.base.errors import bad
from jax_bptt.cell.cell import Cell, as_arrays, check_batch_shape, is_array, is_floating
from jax_bptt.cell.step_cell import StepCell
from jax_bptt.engine.devices import whole
from jax_bptt.engine.sequence import Sequence, over
from jax_bptt.gradients.rtrl import advance, spent
from jax_bptt.unrolling.arguments import check_like, check_mark, check_params, check_step, parameter_shapes


class RTRLState(NamedTuple):
    """What a stream remembers.

    Attributes:
      carry: s_t, leaves [..., H] or as the cell has them.
      influence: ds_t/dparams, [..., S, P]: S numbers of one row's carry by P numbers of params, each in
        the order of jax.flatten_util.ravel_pytree.
    """

    carry: Any
    influence: Array


def rtrl_init(cell: Any, params: Any, batch_shape: tuple[int, ...]) -> RTRLState:
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


def rtrl_step(
    cell: Any,
    params: Any,
    state: RTRLState,
    x: Array,
    *,
    mask: Array | None = None,
    reset: Array | None = None,
    cut: Array | None = None,
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
    params, state, at_t = whole((params, state, at_t))
    begun = None if at_t.reset is None else _begun(cell, params)
    start = None if at_t.reset is None else cell.initial_carry(params, ())

    def of_params(by_params: Array, by_x: Array) -> Array:
        return by_params

    def of_rows(s_prev: Any, influence: Array, at_t: Sequence) -> tuple[Any, Array]:
        return advance(cell, params, start, begun, s_prev, influence, at_t, of_params)

    state = RTRLState(*over(len(rows), of_rows)(state.carry, state.influence, at_t))
    return state, state.carry.h


def rtrl_gradient(params: Any, state: RTRLState, d_h: Array) -> Any:
    """The gradient of what is lost now.

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
    params, state, d_h = whole((params, state, d_h))
    by_row = over(len(rows), spent)(d_h, state.carry, state.influence)
    return ravel_pytree(params)[1](by_row.reshape(-1, numbers).sum(0))


def _beginning(cell: Any, params: Any, rows: tuple[int, ...]) -> RTRLState:
    """s_0 and P_0 of all rows."""
    begun = _begun(cell, params)
    return RTRLState(cell.initial_carry(params, rows), jnp.broadcast_to(begun, (*rows, *begun.shape)))


def _begun(cell: Any, params: Any) -> Array:
    """ds_0/dparams of one row, [S, P]: zero but where the initial carry is learned."""
    theta, params_of = ravel_pytree(params)
    return jax.jacrev(lambda theta: ravel_pytree(cell.initial_carry(params_of(theta), ()))[0])(theta)


def _check_cell(cell: Any, params: Any) -> Any:
    """params as arrays, or a ValueError."""
    if not isinstance(cell, (Cell, StepCell)):
        raise bad("cell", "a Cell", cell, "make one by jb.elman(input_size, hidden_size) or jb.make_cell")
    params = as_arrays(params)
    check_params(params, parameter_shapes(cell), "make them by cell.init(key)")
    return params


def _check_x(cell: Any, params: Any, x: Any) -> tuple[int, ...]:
    """The rows of x, or a ValueError."""
    dtype, shape = jax.tree.leaves(params)[0].dtype, f"one step [..., {cell.input_size}]"
    if not is_array(x) or x.ndim < 1 or x.shape[-1] != cell.input_size:
        raise bad("x", shape, x, "a stream is read one step at a time, features last")
    if x.dtype != dtype:
        raise bad("x", f"{dtype} as params", x, f"cast by x.astype({str(dtype)!r})")
    return tuple(x.shape[:-1])


def _check_after(state: Any) -> tuple[int, ...]:
    """The rows of a state, or a ValueError unless its parts fit each other."""
    fix = "pass what jb.rtrl_step returns"
    if not isinstance(state, RTRLState):
        raise bad("state", "an RTRLState", state, fix)
    h: Any = getattr(state.carry, "h", None)
    if not is_floating(h) or not h.ndim:
        raise bad("state.carry", "a carry with h [..., H]", state.carry, fix)
    rows, leaves = h.shape[:-1], jax.tree.leaves(state.carry)
    alike = (is_array(s) and s.dtype == h.dtype and s.shape[: len(rows)] == rows for s in leaves)
    if not all(alike):
        raise bad("state.carry", f"leaves of {h.dtype} and of the rows of h", state.carry, fix)
    size = sum(math.prod(s.shape[len(rows) :]) for s in leaves)
    influence, wanted = state.influence, (*rows, size)
    if not is_array(influence) or influence.dtype != h.dtype or influence.shape[:-1] != wanted:
        shape = ",".join(map(str, wanted))
        raise bad("state.influence", f"{h.dtype}[{shape},P] as the carry", influence, fix)
    return rows


def _check_state(cell: Any, params: Any, state: Any, rows: tuple[int, ...]) -> None:
    """ValueError unless the state is that of a stream of these rows."""
    expected = jax.eval_shape(lambda: _beginning(cell, params, rows))
    dtype = jax.tree.leaves(params)[0].dtype
    fix = f"make it by jb.rtrl_init(cell, params, {rows}), the batch axes of x"
    check_like("state", state, expected, dtype, fix)

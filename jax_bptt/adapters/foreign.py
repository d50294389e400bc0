"""Any other cell of a framework becomes a step cell, whose step calls the cell for one row.

    (c_t, y_t) = their cell(weights, c_{t−1}, x_t),   h_t = y_t

h_t is a part of the carry that no later step reads. What is static about the cell is the key of a cache, so
that the same cell with other weights compiles nothing again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.checks import is_hashable
from jax_bptt.base.errors import bad, naming
from jax_bptt.base.trees import common_dtype
from jax_bptt.base.types import ArrayTree, Foreign, PRNGKey, Shape
from jax_bptt.cell.step_cell import StepCell, step_cell


class ForeignCarry(NamedTuple):
    """The carry of a cell of another framework.

    Attributes:
      h: y_t, the output of the cell, [..., H].
      state: its carry, as the framework has it.
    """

    h: Array
    state: ArrayTree


class Calls(NamedTuple):
    """How a framework runs a cell.

    Attributes:
      step: (static, params, state, x) -> (state, y), for one row.
      begin: (static, params, batch shape, input size) -> the initial state of all rows.
    """

    step: Callable[[Foreign, ArrayTree, ArrayTree, Array], tuple[ArrayTree, Array]]
    begin: Callable[[Foreign, ArrayTree, Shape, int], ArrayTree]


def as_step_cell(
    calls: Calls, static: Foreign, params: ArrayTree, input_size: int
) -> tuple[StepCell[ArrayTree, ForeignCarry], ArrayTree]:
    """A cell of another framework becomes a step cell.

    Args:
      calls: functions of a module, the same objects each time.
      static: all that is needed beside the weights, hashable, and equal for cells that compute the same;
        one that cannot be hashed works too, but its cell is made and compiled anew each time.
      params: the weights, a pytree of floating arrays of one dtype.
      input_size: I.

    Returns:
      The cell, whose carry is a `ForeignCarry`, and the params.

    Raises:
      ValueError: the cell has no weights, or what it returns for one row is no vector.
    """
    leaves, structure = jax.tree.flatten(params)
    if not leaves:
        raise bad("cell", "a cell with weights", type(static).__name__, "run it by jb.scan")
    shapes = tuple(jax.ShapeDtypeStruct(p.shape, p.dtype) for p in leaves)
    make = _cell if is_hashable(static) else _cell.__wrapped__
    return make(calls, static, structure, shapes, input_size), params


@functools.lru_cache(maxsize=256)
def _cell(
    calls: Calls,
    static: Foreign,
    structure: jax.tree_util.PyTreeDef,
    shapes: tuple[jax.ShapeDtypeStruct, ...],
    input_size: int,
) -> StepCell[ArrayTree, ForeignCarry]:
    dtype = common_dtype(shapes)

    def init(key: PRNGKey) -> ArrayTree:
        if not isinstance(key, jax.core.Tracer):
            fix = "use the params that jb.adopt returned"
            raise bad("init", "a cell of this library", "an adopted cell, which its framework makes", fix)
        return structure.unflatten(jnp.full(p.shape, jnp.nan, p.dtype) for p in shapes)

    def step(params: ArrayTree, s_prev: ForeignCarry, x: Array) -> ForeignCarry:
        state, y = calls.step(static, params, s_prev.state, x)
        return ForeignCarry(y, state)

    def output(params: ArrayTree) -> Array:
        x = jnp.zeros(input_size, dtype)
        return calls.step(static, params, calls.begin(static, params, (), input_size), x)[1]

    with naming("cell", "a cell whose step takes one row, x [I]", "see the error above"):
        y = jax.eval_shape(output, structure.unflatten(shapes))
    if getattr(y, "ndim", None) != 1:
        raise bad("cell", "a cell with one output [H] for one row", y, "run it by jb.scan")

    def initial_carry(params: ArrayTree, batch_shape: Shape) -> ForeignCarry:
        h = jnp.zeros((*batch_shape, y.shape[0]), dtype)
        return ForeignCarry(h, calls.begin(static, params, batch_shape, input_size))

    return step_cell(input_size, y.shape[0], step, init, carry_type=ForeignCarry, initial_carry=initial_carry)

"""Any other cell of a framework becomes a step cell, whose step calls the cell for one row.

    (c_t, y_t) = their cell(weights, c_{t−1}, x_t),   h_t = y_t

h_t is a part of the carry that no later step reads. What is static about the cell, and the program of its
step, are the key of a cache, so that the same cell with other weights compiles nothing again, and a cell that
computes something else since is another one. A number that the step reads from outside would get no gradient;
if it may have one, which only a traced number has, the cell is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_bptt.adapters.functions_of_numbers import without_addresses
from jax_bptt.base.checks import is_hashable
from jax_bptt.base.errors import bad, describe, naming
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


class _Program(NamedTuple):
    """What a step computes.

    Attributes:
      text: its operations.
      numbers: the shapes and bytes of the arrays in it that are known.
      outputs: H.
    """

    text: str
    numbers: tuple[tuple[Shape, bytes], ...]
    outputs: int


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
      ValueError: the cell has no weights, its step reads another traced value, or what it returns for one
        row is no vector.
    """
    leaves, structure = jax.tree.flatten(params)
    if not leaves:
        raise bad("cell", "a cell with weights", type(static).__name__, "run it by jb.scan")
    shapes = tuple(jax.ShapeDtypeStruct(p.shape, p.dtype) for p in leaves)
    program = _program_of(calls, static, jax.tree.unflatten(structure, shapes), input_size)
    make = _cell if is_hashable(static) else _cell.__wrapped__
    return make(calls, static, structure, shapes, input_size, program), params


def _program_of(calls: Calls, static: Foreign, params: ArrayTree, input_size: int) -> _Program:
    """The program of the first step of one row, and the numbers in it."""

    def step(params: ArrayTree, x: Array) -> ArrayTree:
        return calls.step(static, params, calls.begin(static, params, (), input_size), x)

    x = jax.ShapeDtypeStruct((input_size,), common_dtype(params))
    with naming("cell", "a cell whose step takes one row, x [I]", "see the error above"):
        program, (_, y) = jax.make_jaxpr(step, return_shape=True)(params, x)
    if getattr(y, "ndim", None) != 1:
        raise bad("cell", "a cell with one output [H] for one row", y, "run it by jb.scan")
    for number in program.consts:
        if isinstance(number, jax.core.Tracer):
            came = f"a step that reads another traced value, {describe(number)}"
            fix = "make it a weight of the cell, or run the cell by jb.scan"
            raise bad("cell", "a step of its weights, its carry and x alone", came, fix)
    numbers = tuple((np.shape(c), np.asarray(c).tobytes()) for c in program.consts)
    return _Program(without_addresses(program), numbers, len(y))


@functools.lru_cache(maxsize=256)
def _cell(
    calls: Calls,
    static: Foreign,
    structure: jax.tree_util.PyTreeDef,
    shapes: tuple[jax.ShapeDtypeStruct, ...],
    input_size: int,
    program: _Program,
) -> StepCell[ArrayTree, ForeignCarry]:
    dtype, hidden_size = common_dtype(shapes), program.outputs

    def init(key: PRNGKey) -> ArrayTree:
        if not isinstance(key, jax.core.Tracer):
            fix = "use the params that jb.adopt returned"
            raise bad("init", "a cell of this library", "an adopted cell, which its framework makes", fix)
        return structure.unflatten(jnp.full(p.shape, jnp.nan, p.dtype) for p in shapes)

    def step(params: ArrayTree, s_prev: ForeignCarry, x: Array) -> ForeignCarry:
        state, y = calls.step(static, params, s_prev.state, x)
        return ForeignCarry(y, state)

    def initial_carry(params: ArrayTree, batch_shape: Shape) -> ForeignCarry:
        h = jnp.zeros((*batch_shape, hidden_size), dtype)
        return ForeignCarry(h, calls.begin(static, params, batch_shape, input_size))

    return step_cell(
        input_size, hidden_size, step, init, carry_type=ForeignCarry, initial_carry=initial_carry
    )

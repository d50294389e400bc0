"""`step` takes one step of a cell, for agents and generators, where the next input depends on this output.

    s_t = step(s̃_{t−1}, x_t)             see `one_step`

In a loop it gives the numbers of `unroll`.
"""

from __future__ import annotations

import functools

from jax import Array
from jax.typing import DTypeLike

from jax_bptt.base.compiling import compiled
from jax_bptt.base.errors import named
from jax_bptt.base.types import ArrayTree, Mark, P, S, State
from jax_bptt.cell.cell import Cell
from jax_bptt.cell.step_cell import AnyCell, StepCell
from jax_bptt.engine.devices import ALL, ROWS, STEPS, on_devices, rows_of
from jax_bptt.engine.one_step import one_step
from jax_bptt.engine.sequence import Sequence
from jax_bptt.unrolling.arguments import (
    check_cell,
    check_one_step,
    check_step,
    parameter_shapes,
    with_dtype,
)
from jax_bptt.unrolling.inputs import Sizes
from jax_bptt.unrolling.unroll import begin


@named()
@compiled("cell", "dtype")
def step(
    cell: Cell[P, S] | StepCell[P, S],
    params: P,
    carry: S | None,
    x: Array,
    *,
    mask: Mark = None,
    reset: Mark = None,
    dtype: DTypeLike | None = None,
) -> tuple[S, Array]:
    """`step` takes one step of a cell; in a loop over x_1..x_T it gives the numbers of `unroll`.

    s_t = step(s_{t−1}, x_t)

    On a CPU they are the same bit for bit where the sequence multiplies at least 96 rows at a time (T·B; or
    K·B in chunks of K steps). For fewer rows XLA adds in another order, and `unroll` of a short sequence
    differs from `unroll` of a longer one by the same rounding. See experiments/MEASURED.md, "One step and
    the sequence".

    Args:
      cell: the cell.
      params: from `cell.init`, all of one floating dtype.
      carry: s_{t−1}, from cell.initial_carry or the step before, leaves [..., H], dtype of params; None for
        the initial carry of these params.
      x: x_t, [..., I], with any number of batch axes or none; dtype of params.
      mask: bool [...]; where False the carry is held and x is not read.
      reset: bool [...]; where True the step starts from the initial carry of params.
      dtype: jnp.bfloat16 for mixed precision, see `unroll`.

    Returns:
      (carry, h): s_t, leaves [..., H], and h_t, [..., H]. Both are differentiable with respect to params,
      carry and x, in reverse and in forward mode. For second derivatives of many steps put the step into
      `scan`, or take `unroll`: those through jax.lax.scan are an error.

    Raises:
      ValueError: at trace time, if an argument is wrong; it says which one, what was expected and what was
        passed.

    >>> cell = jb.gru(3, 5)
    >>> params = cell.init(jax.random.key(0))
    >>> carry, h = step(cell, params, None, jnp.ones((2, 3)))
    >>> carry, h = step(cell, params, carry, jnp.ones((2, 3)))
    >>> h.shape
    (2, 5)
    """
    check_cell(cell)
    sizes = Sizes(parameter_shapes(cell), cell.input_size)
    params, carry, sequence = check_one_step("cell", cell, sizes, params, carry, x, mask, reset)
    check_step(cell, params, sequence.rows)
    run = functools.partial(step_checked, with_dtype(dtype, cell, params))
    rows = rows_of(sequence.xs, params, carry)
    s, h = on_devices(run, rows, (ALL, ROWS, STEPS), (ROWS, ROWS))(params, carry, sequence)
    return s, h


def step_checked(
    cell: AnyCell, params: ArrayTree, carry: State | None, sequence: Sequence
) -> tuple[State, Array]:
    """This is `step` for arguments that have been checked; sequence is that of the one step."""
    s = one_step(cell, begin(cell, params, carry, sequence))
    return s, s.h

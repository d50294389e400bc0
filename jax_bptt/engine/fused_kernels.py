"""The kernels run on the arrays of the engine: laid out for them on the way in, and back on the way out."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_bptt.base.trees import last_step
from jax_bptt.base.types import ArrayTree, Gates, Slopes, State, Units
from jax_bptt.cell.step_cell import Projected
from jax_bptt.engine.emission import emission_of
from jax_bptt.engine.engine import Forward, Swept
from jax_bptt.engine.fused_arrays import Layout, backward_weights, forward_weights
from jax_bptt.engine.fused_step import Rewritten, rewritten
from jax_bptt.engine.fused_table import GROUP, Blocks
from jax_bptt.engine.linear_maps import PointwiseCell
from jax_bptt.engine.run import Outputs, Run


class ForwardPlan(NamedTuple):
    """This is what the forward kernel is made from.

    Attributes:
      step, linearise: the functions of the cell on the units and rows of a warpgroup; without linearise no
        slopes are kept.
      slopes: a tree like a_t, or None.
      blocks: how the kernel is cut into blocks.
    """

    step: Rewritten
    linearise: Rewritten | None
    slopes: Slopes | None
    blocks: Blocks


class BackwardPlan(NamedTuple):
    """This is what the backward kernel is made from.

    Attributes:
      adjoint: that of the cell on the units and rows of a warpgroup, without derivatives by u and p.
      blocks: how the kernel is cut into blocks.
    """

    adjoint: Rewritten
    blocks: Blocks


def plan_forward(cell: PointwiseCell, carry: State, slopes: Slopes | None, blocks: Blocks) -> ForwardPlan:
    """The step, and linearise where slopes like these are kept, are traced for a warpgroup."""
    number, units = _of_a_group(cell, blocks)
    s, gates = jax.tree.map(lambda _: number, carry), (number,) * cell.gates
    step = rewritten(cell.step, units, s, gates, gates)
    linearise = None if slopes is None else rewritten(cell.linearise, units, s, gates, gates, s)
    return ForwardPlan(step, linearise, slopes, blocks)


def plan_backward(cell: PointwiseCell, carry: State, slopes: Slopes, blocks: Blocks) -> BackwardPlan:
    """The adjoint is traced for a warpgroup."""

    def adjoint(units: Units, a: Slopes, lam: State) -> tuple[State, Gates]:
        towards = cell.adjoint(units, a, lam)
        return towards.carry, towards.v

    number, units = _of_a_group(cell, blocks)
    a, lam = jax.tree.map(lambda _: number, (slopes, carry))
    return BackwardPlan(rewritten(adjoint, units, a, lam), blocks)


def _of_a_group(cell: PointwiseCell, blocks: Blocks) -> tuple[Any, dict[str, Any]]:
    number = jax.ShapeDtypeStruct((GROUP, blocks.tile), jnp.float32)
    return number, dict.fromkeys(cell.layout.units, number)


def forward_by_kernel(
    cell: PointwiseCell, plan: ForwardPlan, run: Run, u: Projected, interpret: Any = None
) -> Forward:
    """This is `loops.scan_forward` by the kernel.

    Args:
      cell: the cell.
      plan: from `plan_forward`.
      run: parameters, s_0, the initial carry and the marks.
      u: u_1..u_T.
      interpret: see `fused_parts.call`.

    Returns:
      s_T, s_1..s_T, and a_1..a_T if the plan keeps them.
    """
    from jax_bptt.engine import fused_forward  # it imports Pallas

    layout, marks = _layout(cell, run.carry, plan.blocks), run.sequence.marks
    b_h = run.params._asdict()["b_h"] if cell.layout.recurrent_bias else None
    arrays = fused_forward.ForwardArrays(
        forward_weights(run.params.w_h, plan.blocks),
        _units(cell, layout, run.params),
        None if b_h is None else layout.of_units(b_h.reshape(cell.gates, cell.hidden_size)),
        layout.of_rows(run.carry),
        layout.of_rows(run.start),
        layout.of_steps(marks.starts),
        layout.of_gates(u),
        layout.of_mark(marks.mask),
        layout.of_mark(marks.reset),
    )
    found = fused_forward.forward_kernel(
        plan.step, plan.linearise, arrays, plan.slopes, plan.blocks, interpret
    )
    states, slopes = layout.steps_back(found)
    return Forward(last_step(states), states, (), slopes)


def backward_by_kernel(
    cell: PointwiseCell, plan: BackwardPlan, run: Run, slopes: Slopes, d: Outputs, interpret: Any = None
) -> Swept:
    """This is `loops.scan_backward` by the kernel.

    Args:
      cell: the cell.
      plan: from `plan_backward`.
      run: parameters and marks; s_0 and the inputs are not read.
      slopes: a_1..a_T.
      d: dE/ds_T and dE/dy_1..dE/dy_T.
      interpret: see `fused_parts.call`.

    Returns:
      dE/ds_0, dE/dstart or dE/dstarts, and λ_1..λ_T.
    """
    from jax_bptt.engine import fused_backward  # it imports Pallas

    layout, marks = _layout(cell, d.carry, plan.blocks), run.sequence.marks
    arrays = fused_backward.BackwardArrays(
        backward_weights(run.params.w_h, plan.blocks),
        _units(cell, layout, run.params),
        layout.of_steps(slopes),
        layout.of_rows(d.carry),
        layout.of_steps(d.ys),
        layout.of_mark(marks.mask),
        layout.of_mark(marks.reset),
        layout.of_mark(marks.cut),
        layout.of_mark(marks.factor),
    )
    to_state, one_start = emission_of(cell).to_state, run.start is not None
    found = fused_backward.backward_kernel(plan.adjoint, to_state, arrays, one_start, plan.blocks, interpret)
    carry, start = layout.rows_back((found.carry, found.start))
    starts, lam = layout.steps_back((found.starts, found.lam))
    return Swept(carry, start, starts, lam)


def _layout(cell: PointwiseCell, carry: State, blocks: Blocks) -> Layout:
    return Layout(carry.h.shape[:-1], cell.hidden_size, blocks.tile, blocks.units)


def _units(cell: PointwiseCell, layout: Layout, params: ArrayTree) -> dict[str, Any]:
    return {name: layout.of_units(params._asdict()[name]) for name in cell.layout.units}

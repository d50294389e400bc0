"""The kernels run on the arrays of the engine: laid out for them on the way in, and back on the way out."""

from __future__ import annotations

from typing import Any

from jax_bptt.base.trees import last_step
from jax_bptt.base.types import ArrayTree, Slopes, State
from jax_bptt.cell.step_cell import Projected
from jax_bptt.engine.emission import emission_of
from jax_bptt.engine.engine import Forward, Swept
from jax_bptt.engine.kernels.arrays import Layout, backward_weights, forward_weights
from jax_bptt.engine.kernels.plan import Plan
from jax_bptt.engine.kernels.table import Blocks
from jax_bptt.engine.linear_maps import PointwiseCell
from jax_bptt.engine.run import Outputs, Run


def forward_by_kernel(
    cell: PointwiseCell,
    plan: Plan,
    run: Run,
    u: Projected,
    keep_slopes: bool,
    interpret: Any = None,
) -> Forward:
    """This is `loops.scan_forward` by the kernel.

    Args:
      cell: the cell.
      plan: from `plan_or_reason`.
      run: parameters, s_0, the initial carry and the marks.
      u: u_1..u_T.
      keep_slopes: whether a_1..a_T are stored.
      interpret: see `parts.call`.

    Returns:
      s_T, s_1..s_T, and a_1..a_T if they are asked for.
    """
    from jax_bptt.engine.kernels import forward  # it imports Pallas

    layout, marks = _layout(cell, run.carry, plan.blocks), run.sequence.marks
    b_h = run.params._asdict()["b_h"] if cell.layout.recurrent_bias else None
    arrays = forward.ForwardArrays(
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
    linearise = plan.linearise if keep_slopes else None
    found = forward.forward_kernel(plan.step, linearise, arrays, plan.blocks, interpret)
    states, slopes = layout.steps_back(found)
    return Forward(last_step(states), states, (), slopes)


def backward_by_kernel(
    cell: PointwiseCell, plan: Plan, run: Run, slopes: Slopes, d: Outputs, interpret: Any = None
) -> Swept:
    """This is `loops.scan_backward` by the kernel.

    Args:
      cell: the cell.
      plan: from `plan_or_reason`.
      run: parameters and marks; s_0 and the inputs are not read.
      slopes: a_1..a_T.
      d: dE/ds_T and dE/dy_1..dE/dy_T.
      interpret: see `parts.call`.

    Returns:
      dE/ds_0, dE/dstart or dE/dstarts, and λ_1..λ_T.
    """
    from jax_bptt.engine.kernels import backward  # it imports Pallas

    layout, marks = _layout(cell, d.carry, plan.blocks), run.sequence.marks
    arrays = backward.BackwardArrays(
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
    found = backward.backward_kernel(plan.adjoint, to_state, arrays, one_start, plan.blocks, interpret)
    carry, start = layout.rows_back((found.carry, found.start))
    starts, lam = layout.steps_back((found.starts, found.lam))
    return Swept(carry, start, starts, lam)


def _layout(cell: PointwiseCell, carry: State, blocks: Blocks) -> Layout:
    return Layout(carry.h.shape[:-1], cell.hidden_size, blocks.tile, blocks.units)


def _units(cell: PointwiseCell, layout: Layout, params: ArrayTree) -> dict[str, Any]:
    return {name: layout.of_units(params._asdict()[name]) for name in cell.layout.units}

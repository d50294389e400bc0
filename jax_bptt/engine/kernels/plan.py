"""From what are the kernels of a cell made, or why are there none for this cell and these arrays?"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_bptt.base.checks import is_known
from jax_bptt.base.types import ArrayTree, Gates, Shape, Slopes, State, Units
from jax_bptt.engine.kernels.step import Rewritten, rewritten
from jax_bptt.engine.kernels.table import GROUP, Blocks, choose
from jax_bptt.engine.linear_maps import PointwiseCell


class Plan(NamedTuple):
    """The two kernels of a cell are made from this.

    Attributes:
      blocks: how they are cut into blocks.
      step: (units, s_prev, u, v) -> s, on the units and rows of a warpgroup.
      linearise: (units, s_prev, u, v, s) -> a, likewise.
      adjoint: (units, a, lam) -> δs̃_{t−1}, δv_t, likewise.
    """

    blocks: Blocks
    step: Rewritten
    linearise: Rewritten
    adjoint: Rewritten


def plan_or_reason(cell: PointwiseCell, carry: State, shape: Shape, arrays: ArrayTree) -> Plan | str:
    """The plan for a cell, or the reason for which there is none.

    Args:
      cell: the cell.
      carry: a state of it.
      shape: [T, ..., H] of the states.
      arrays: all that a loop reads.
    """
    dtypes = {z.dtype for z in jax.tree.leaves(arrays)} - {jnp.dtype(bool)}
    if not cell.layout.recurrent:
        return "the cell has no recurrent product"
    if cell.layout.heads:
        return "the kernels are made for a whole W_h, and this one has heads"
    if dtypes - {jnp.dtype(jnp.float32)} or cell.dtype not in (None, jnp.float32, jnp.bfloat16):
        return "the kernels are made for float32 arrays, with products in float32 or bfloat16"
    if not all(map(is_known, shape)):
        return "the sizes of the arrays are symbols"
    if not math.prod(shape):
        return "there are no steps or no rows"
    numbers = "bfloat16" if cell.dtype == jnp.bfloat16 else "float32"
    blocks = choose(cell.gates, cell.hidden_size, parts=1 if numbers == "bfloat16" else 2)
    if blocks is None:
        return f"W_h of {cell.gates} gates of {cell.hidden_size} units does not fit in {numbers}"
    try:
        plan = plan_of(cell, carry, blocks)
    except (TypeError, ValueError):  # it has run with H units
        return f"the step does not run with another number of units than {cell.hidden_size}"
    foreign = (f.foreign() for f in (plan.step, plan.linearise, plan.adjoint))
    found = next(filter(None, foreign), None)
    return f"the compiler of kernels does not take {found}" if found else plan


def plan_of(cell: PointwiseCell, carry: State, blocks: Blocks) -> Plan:
    """The functions of the cell are traced for a warpgroup."""

    def adjoint(units: Units, a: Slopes, lam: State) -> tuple[State, Gates]:
        towards = cell.adjoint(units, a, lam)
        return towards.carry, towards.v

    number = jax.ShapeDtypeStruct((GROUP, blocks.tile), jnp.float32)
    units, gates = dict.fromkeys(cell.layout.units, number), (number,) * cell.gates
    s = jax.tree.map(lambda _: number, carry)
    linearise = rewritten(cell.linearise, units, s, gates, gates, s)
    a = jax.tree.unflatten(linearise.result, [number] * linearise.result.num_leaves)
    step = rewritten(cell.step, units, s, gates, gates)
    return Plan(blocks, step, linearise, rewritten(adjoint, units, a, s))

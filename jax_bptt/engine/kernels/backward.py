"""The backward loop as one kernel: W_h stays in shared memory and λ in registers, for all T steps.

    once     W_h into shared memory; dE/ds_T into registers                                           (KB1)
    step t   λ_t = what comes from step t + 1, and G_t                                                (KB2)
             λ_t is written, zero where mask_t is False                                               (KB3)
             δs̃_{t−1}, δv_t = adjoint(a_t, λ_t)                                                       (KB4)
             δv_t of all gates to all units                                   share                   (KB5)
             λ̃_{t−1} = δs̃_{t−1} + W_h δv_t where mask_t, λ_t elsewhere        gather, product         (KB6)
             where reset_t: λ̃_{t−1} goes to start or start_t; then, or where
             cut_t, nothing goes to s_{t−1}; elsewhere λ̃_{t−1}, times the factor                      (KB7)

This is the backward loop of `engine.loops`, with the products of `engine.pointwise`. Arrays are [T, units,
rows], see `arrays`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

from jax_bptt.base.trees import add_to_h, plus, select
from jax_bptt.base.types import ArrayTree, Slopes, State, Units
from jax_bptt.engine.kernels.parts import (
    FLOAT,
    Operand,
    Place,
    Ref,
    call,
    in_registers,
    plgpu,
    products,
    weights_memory,
)
from jax_bptt.engine.kernels.step import Rewritten
from jax_bptt.engine.kernels.table import GROUP, Blocks


class BackwardArrays(NamedTuple):
    """These are the arrays that the backward kernel reads.

    Attributes:
      w_h: W_h in bfloat16, [parts, H′, G H′].
      units: the unit-wise parameters, [H′].
      slopes: a_1..a_T, leaves [T, H′, B′].
      d_carry: dE/ds_T, leaves [H′, B′].
      d_ys: dE/dy_1..dE/dy_T, leaves [T, H′, B′].
      mask: numbers [T, B′], or None.
      reset: numbers [T, B′], or None.
      cut: numbers [T, B′], or None.
      factor: numbers [T, B′], or None.
    """

    w_h: Array
    units: Units
    slopes: Slopes
    d_carry: State
    d_ys: ArrayTree
    mask: Array | None
    reset: Array | None
    cut: Array | None
    factor: Array | None


class BackwardResults(NamedTuple):
    """These are the results of the backward kernel.

    Attributes:
      carry: dE/ds_0, leaves [H′, B′].
      start: dE/dstart, leaves [H′, B′]; None without one start of all resets.
      starts: λ̃_{t−1} where reset_t, zero elsewhere, leaves [T, H′, B′]; None where there are no starts.
      lam: λ_1..λ_T, leaves [T, H′, B′].
    """

    carry: Any
    start: Any
    starts: Any
    lam: Any


def backward_kernel(
    adjoint: Rewritten,
    to_state: Callable[[State, ArrayTree], State],
    arrays: BackwardArrays,
    one_start: bool,
    blocks: Blocks,
    interpret: Any = None,
) -> BackwardResults:
    """λ backwards through time.

    Args:
      adjoint: (units, a, lam) -> δs̃_{t−1}, δv_t, on [units, rows] of a warpgroup.
      to_state: (λ_t, dE/dy_t) -> λ_t with G_t, see `emission`.
      arrays: what the kernel reads.
      one_start: whether all resets go back to one start, so that its derivatives are summed.
      blocks: how the kernel is cut into blocks.
      interpret: see `parts.call`.

    Returns:
      The results.
    """
    steps, columns = len(jax.tree.leaves(arrays.slopes)[0]), arrays.w_h.shape[2]
    has_reset = arrays.reset is not None

    def written(*before: int) -> State:
        return jax.tree.map(lambda z: jax.ShapeDtypeStruct((*before, *z.shape), FLOAT), arrays.d_carry)

    def body(
        read: BackwardArrays, write: BackwardResults, w_h: Ref, loaded: Ref, memory: Ref, barrier: Ref
    ) -> None:
        at, d_v = Place(blocks), Operand(blocks, memory, barrier)

        @pl.when(at.is_first_group)
        def _() -> None:
            own = read.w_h.at[:, pl.ds(at.first_of_block, at.own)]
            plgpu.copy_gmem_to_smem(own, w_h, loaded)  # (KB1)

        plgpu.barrier_wait(loaded)
        units = {name: at.per_unit(ref) for name, ref in read.units.items()}
        zero = at.zeros_like(arrays.d_carry)

        def one_step(k: Array, towards: tuple[State, State | None]) -> tuple[State, State | None]:
            d_s, d_start = towards
            t = steps - 1 - k
            lam = to_state(d_s, at.load(read.d_ys, t))  # (KB2)
            mask = at.marked(read.mask, t)
            lam_step = select(mask, lam, zero)
            at.store(write.lam, lam_step, t)  # (KB3)
            back, of_gates = in_registers(adjoint(units, at.load(read.slopes, t), lam_step))  # (KB4)
            d_v.share(t, [(g * blocks.units + at.first, z) for g, z in enumerate(of_gates)])  # (KB5)
            d_v.gather(t)
            (d_h,) = products([at.of_weights], w_h, d_v.at(t), at.shape)
            lam_prev = select(mask, add_to_h(back, d_h), lam)  # (KB6)
            if has_reset:
                reset = at.marked(read.reset, t)
                to_start = select(reset, lam_prev, zero)
                lam_prev = select(reset, zero, lam_prev)  # (KB7)
                if d_start is None:
                    at.store(write.starts, to_start, t)  # (KB7)
                else:
                    d_start = plus(d_start, to_start)  # (KB7)
            lam_prev = select(at.marked(read.cut, t), zero, lam_prev) if read.cut is not None else lam_prev
            if read.factor is not None:
                lam_prev = jax.tree.map(lambda z: z * at.of_row(read.factor, t), lam_prev)  # (KB7)
            return lam_prev, d_start

        towards = at.load(read.d_carry), zero if one_start else None  # (KB1)
        d_s, d_start = lax.fori_loop(jnp.int32(0), jnp.int32(steps), one_step, towards)
        at.store(write.carry, d_s)
        at.store(write.start, d_start)

    scratch = [
        weights_memory(blocks, GROUP * blocks.groups, columns),
        plgpu.Barrier(),
        *Operand.scratch(blocks, columns, writes=columns // blocks.units),
    ]
    per_step = has_reset and not one_start
    results = BackwardResults(
        written(), written() if one_start else None, written(steps) if per_step else None, written(steps)
    )
    return call(body, blocks, arrays, results, scratch, interpret)

"""The forward loop as one kernel: W_h stays in shared memory and the state in registers, for all T steps.

    once     W_h into shared memory; s_0 into registers                                               (KF1)
    step t   s̃_{t−1} = start or start_t where reset_t, s_{t−1} elsewhere                              (KF2)
             h̃_{t−1} to all units                                             share                   (KF3)
             u_t is read while the others write                                                       (KF4)
             v_t = W_hᵀ h̃_{t−1} (+ b_h), a product a gate                     gather, product         (KF5)
             s_t = step(s̃_{t−1}, u_t, v_t) where mask_t, s̃_{t−1} elsewhere                            (KF6)
             s_t is written, and a_t if the slopes are kept                                           (KF7)

This is the forward loop of `engine.loops`, with the products of `engine.pointwise`. Arrays are [T, units,
rows], see `arrays`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

from jax_bptt.base.trees import select
from jax_bptt.base.types import Slopes, State, Units
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


class ForwardArrays(NamedTuple):
    """These are the arrays that the forward kernel reads.

    Attributes:
      w_h: W_hᵀ in bfloat16, [parts, G H′, H′].
      units: the unit-wise parameters, [H′].
      b_h: [G, H′] or None.
      carry: s_0, leaves [H′, B′].
      start: the initial carry of resets, like carry, or None.
      starts: where the resets of each step go back to, leaves [T, H′, B′], or None.
      u: [T, G, H′, B′].
      mask: numbers [T, B′], or None.
      reset: numbers [T, B′], or None.
    """

    w_h: Array
    units: Units
    b_h: Array | None
    carry: State
    start: State | None
    starts: State | None
    u: Array
    mask: Array | None
    reset: Array | None


class _Results(NamedTuple):
    states: State
    slopes: Slopes | None


def forward_kernel(
    step: Rewritten,
    linearise: Rewritten | None,
    arrays: ForwardArrays,
    blocks: Blocks,
    interpret: Any = None,
) -> tuple[State, Slopes | None]:
    """s_1..s_T, leaves [T, H′, B′], and a_1..a_T if they are asked for.

    Args:
      step: (units, s_prev, u, v) -> s, on [units, rows] of a warpgroup.
      linearise: (units, s_prev, u, v, s) -> a, likewise; None if no slopes are kept.
      arrays: what the kernel reads.
      blocks: how the kernel is cut into blocks.
      interpret: see `parts.call`.

    Returns:
      The states, and the slopes or None.
    """
    steps, gates = arrays.u.shape[:2]

    like = jax.ShapeDtypeStruct((steps, *arrays.carry.h.shape), FLOAT)

    def body(read: ForwardArrays, write: _Results, w_h: Ref, loaded: Ref, memory: Ref, barrier: Ref) -> None:
        at, h = Place(blocks), Operand(blocks, memory, barrier)

        @pl.when(at.is_first_group)
        def _() -> None:
            for g in range(gates):
                first = g * blocks.units + at.first_of_block
                for i in range(blocks.parts):
                    to = w_h.at[i, pl.ds(g * at.own, at.own)]
                    plgpu.copy_gmem_to_smem(read.w_h.at[i, pl.ds(first, at.own)], to, loaded)  # (KF1)

        plgpu.barrier_wait(loaded)
        units = {name: at.per_unit(ref) for name, ref in read.units.items()}
        b_h = None if read.b_h is None else [at.per_unit(read.b_h, g) for g in range(gates)]
        of_gates = [g * at.own + at.of_weights for g in range(gates)]

        def one_step(t: Array, s: State) -> State:
            if read.reset is not None:
                begun = at.load(read.start) if read.starts is None else at.load(read.starts, t)
                s = select(at.marked(read.reset, t), begun, s)  # (KF2)
            h.share(t, [(at.first, s.h)])  # (KF3)
            u = tuple(at.load(read.u, t, g) for g in range(gates))  # (KF4)
            h.gather(t)
            v = products(of_gates, w_h, h.at(t), at.shape)  # (KF5)
            if b_h is not None:
                v = tuple(z + b for z, b in zip(v, b_h, strict=True))  # (KF5)
            s_new = select(at.marked(read.mask, t), in_registers(step(units, s, u, v)), s)  # (KF6)
            at.store(write.states, s_new, t)  # (KF7)
            if linearise is not None:
                at.store(write.slopes, in_registers(linearise(units, s, u, v, s_new)), t)  # (KF7)
            return s_new

        lax.fori_loop(jnp.int32(0), jnp.int32(steps), one_step, at.load(read.carry))  # (KF1)

    scratch = [
        weights_memory(blocks, gates * GROUP * blocks.groups, blocks.units),
        plgpu.Barrier(num_arrivals=gates * blocks.parts),
        *Operand.scratch(blocks, blocks.units, writes=1),
    ]
    slopes = None if linearise is None else linearise.result.unflatten([like] * linearise.result.num_leaves)
    results = _Results(jax.tree.map(lambda _: like, arrays.carry), slopes)
    found = call(body, blocks, arrays, results, scratch, interpret)
    return found.states, found.slopes

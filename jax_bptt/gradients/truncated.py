"""Truncated backpropagation: each loss sees some h steps of the past, and earlier carries are constants.

BPTT(h; h′), Williams & Peng 1990: every h′ steps a block of h′ losses goes back, h steps from its end.
Steps count from 1; the loss at step t is in block j = ⌈t/h′⌉, which ends at e_j = min(j h′, T), and sees

    e_j − h + 1  ≤  i  ≤  t                           between h − h′ + 1 and h steps          (W1)

    h′ = 1    sliding: every loss sees exactly h steps. Costs h backward passes.
    h′ = h    chunked: the sequence in pieces of h steps, the state is carried on and the gradient cut.
              One backward pass; a loss at place p of its piece sees p steps, (h + 1)/2 on average.
              A shorter last piece sees no more than itself.

Chunked is `full` with a cut before each piece:

    cut_t where h divides t − 1 and t > 1                                                      (W2)

For h′ < h all ⌈T/h′⌉ blocks go back at once, side by side, one step back for each lag l = 0..h−1; at lag
l block j is at step t = e_j − l:

    λʲ ← λʲ + G_t       while t > (j − 1) h′: the losses of the block                          (W3)
    λ_t ← λ_t + λʲ      the sum over blocks, as `contract` is linear in λ                      (W4)
    λʲ ← λ̃ʲ             one step back, (S2, S3) of `loops`; as it is before the first step     (W5)
    dE/ds_0 = Σ λʲ      of the blocks that have reached the beginning                          (W6)

so that h steps of ⌈T/h′⌉ B rows are done one after the other, and one contraction.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import or_none, size
from jax_bptt.base.errors import bad
from jax_bptt.base.trees import add_to_h, plus, select, sum_over_first_axis, zeros_like
from jax_bptt.base.types import Slopes, State
from jax_bptt.cell.step_cell import AnyCell
from jax_bptt.engine import chunks, loops, phases
from jax_bptt.engine.engine import Swept
from jax_bptt.engine.run import Cotangents, Kept, Outputs, Run
from jax_bptt.engine.sequence import Sequence
from jax_bptt.gradients.full import full
from jax_bptt.gradients.method import Carry, Data, GradientMethod, Recurrence, Streamed, Weights


@cached(window=size, stride=or_none(size))
def truncated(window: int, stride: int | None = None) -> GradientMethod:
    """Truncated backpropagation through time, chunked or sliding.

    the loss at step t sees the steps min(⌈t/h′⌉ h′, T) − h + 1 to t   (W1)

    Chunked: time as `full`; memory as `full`, but in `value_and_grad` that of one piece only (as
    `checkpointed`, with the same exceptions). Otherwise: T h/h′ steps backward, ⌈T/h′⌉ of them side by
    side, and the derivative of all steps is kept, O(T·B·G·H), more than JAX keeps of the plain scan. From
    h >= T on the gradient is the exact one. Pieces and blocks count from the first step of the call, the
    last step of a reversed one.

    In a network of L layers the chunks of all layers are the same; with h′ < h each layer goes h steps back
    from the gradient that it is given, so that a loss reaches up to L (h − 1) + 1 steps. A truncated
    gradient is that of a program in which carries are constants: it is not the derivative of the loss.

    Args:
      window: h, steps from the end of a block to where its gradient ends.
      stride: h′ <= h, losses that go back together; None for h, chunked; 1 for sliding.

    Returns:
      The `GradientMethod`; the same object for the same arguments.

    Raises:
      ValueError: a window or stride below 1, or a stride above the window.

    Reference: Williams & Peng 1990, An efficient gradient-based algorithm for on-line training of
    recurrent network trajectories; Williams & Zipser 1995.

    >>> truncated(20), truncated(20, stride=1)
    (truncated(20), truncated(20, stride=1))
    """
    if stride is None:
        forward, stream = functools.partial(_forward_with_cuts, window), functools.partial(_stream, window)
        return GradientMethod("truncated", forward, full().backward, stream)
    if stride > window:
        fix = "losses between two blocks would be lost; pass stride=None for chunks of the window"
        raise bad("stride", f"at most window={window}", stride, fix)
    if stride == window:
        return truncated(window)
    back = functools.partial(_backward, window, stride)
    return GradientMethod("truncated", full(recompute=True).forward, back)


def _forward_with_cuts(window: int, cell: AnyCell, run: Run) -> tuple[Outputs, Kept]:
    sequence = run.sequence
    steps = len(sequence.xs)
    if steps <= window:
        return full().forward(cell, run)
    t = jnp.arange(1, 1 + steps).reshape(-1, *[1] * len(sequence.rows))
    between = ((t - 1) % window == 0) & (t > 1)  # (W2)
    cut = between if sequence.cut is None else between | sequence.cut
    return full().forward(cell, run._replace(sequence=sequence._replace(cut=cut)))


def _stream(
    window: int, recurrence: Recurrence, weights: Weights, carry: Carry, sequence: Sequence, data: Data
) -> Streamed:
    """Each piece forward and back before the next: nothing waits for a gradient from behind."""

    def piece(
        state: tuple[Carry, Weights, Carry], first: chunks.First, here: Data
    ) -> tuple[tuple[Carry, Weights, Carry], Data]:
        s, d_weights, d_carry = state
        found = recurrence.reverse(weights, s, here, zeros_like(s))
        d_carry = jax.tree.map(lambda z, new: jnp.where(first == 0, new, z), d_carry, found.d_carry)
        out = jax.tree.map(lambda z: z[None], found.out)
        return (found.carry, chunks.add_to(d_weights, found.d_weights), d_carry), out

    state = carry, chunks.zero_sums(weights), zeros_like(carry)
    (carry, d_weights, d_carry), out = chunks.scan(piece, state, data, min(window, len(sequence.xs)))
    return Streamed(carry, chunks.sums_as(d_weights, weights), d_carry, [out])


def _backward(window: int, stride: int, cell: AnyCell, kept: Kept, d: Outputs) -> Cotangents:
    run, states = kept.run, kept.states
    assert states is not None  # `full` keeps them
    s_prev = phases.previous(run, states)
    slopes = phases.linearise(cell, run, s_prev, states)
    swept = _sweep_of_blocks(window, stride, cell, run, slopes, d)
    d_params, d_xs = phases.contract(cell, run, s_prev, slopes, swept.lam)
    return Cotangents(d_params, swept.carry, swept.start, d_xs)


class _Sums(NamedTuple):
    """Over all blocks so far: λ_1..λ_T (W4), and dE/dstart."""

    lam: State
    start: State | None


def _sweep_of_blocks(window: int, stride: int, cell: AnyCell, run: Run, slopes: Slopes, d: Outputs) -> Swept:
    """`phases.sweep`, the sum over all blocks of losses."""
    steps, marks = len(d.hs), run.sequence.marks
    firsts = jnp.arange(0, steps, stride)  # of each block, counted from 0
    ends = jnp.minimum(firsts + stride, steps) - 1  # (W1)
    step_back = loops.step_back_of(phases.engine_of(cell), cell, run.params)

    def block_back(lam: State, first: Array, t: Array) -> loops.StepBack:
        d_h, a, marks_t = jax.tree.map(lambda z: z[jnp.maximum(t, 0)], (d.hs, slopes, marks))
        d_s = add_to_h(select(t == steps - 1, d.carry, zeros_like(d.carry)), d_h)
        lam = plus(lam, select((t >= first) & (t >= 0), d_s, zeros_like(d_s)))  # (W3)
        back = step_back(lam, a, marks_t)
        return select(t >= 0, back, zeros_like(back)._replace(carry=lam))  # (W5)

    def back_one_lag(state: tuple[State, _Sums], lag: Array) -> tuple[tuple[State, _Sums], None]:
        lam, sums = state
        t = ends - lag
        back = jax.vmap(block_back)(lam, firsts, t)
        at = jnp.where(t >= 0, t, steps)  # before the first step: out of range, dropped
        total = jax.tree.map(lambda z, new: z.at[at].add(new, mode="drop"), sums.lam, back.lam)  # (W4)
        return (back.carry, _Sums(total, plus(sums.start, sum_over_first_axis(back.start)))), None

    lam = jax.tree.map(lambda z: jnp.zeros_like(z, shape=(len(ends), *z.shape)), d.carry)
    total = jax.tree.map(lambda z: jnp.zeros_like(z, shape=(steps, *z.shape)), d.carry)
    sums = _Sums(total, None if marks.reset is None else zeros_like(d.carry))
    lags = min(window, steps)
    (lam, sums), _ = jax.lax.scan(back_one_lag, (lam, sums), jnp.arange(lags))
    lam = select(ends < lags, lam, zeros_like(lam))
    return Swept(sum_over_first_axis(lam), sums.start, sums.lam)  # (W6)

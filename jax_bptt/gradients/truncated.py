"""Truncated backpropagation sends each loss back at most h steps and treats earlier carries as constants.

The losses form blocks of h′ steps. The gradient of a block goes back h steps, counted from the end of the
block; this is BPTT(h; h′) of Williams & Peng 1990. Steps count from 1. The loss at step t belongs to block
j = ⌈t/h′⌉, which ends at step e_j = min(j h′, T). With h′ < h this loss sees the steps i with

    e_j − h + 1  ≤  i  ≤  t                           between h − h′ + 1 and h steps          (W1)

    h′ = 1    sliding: every loss sees exactly h steps. Costs h backward passes.
    h′ = h    chunked: the sequence in pieces of h steps, the state is carried on and the gradient cut.
              One backward pass; a loss at place p of its piece sees p steps, (h + 1)/2 on average.
              A shorter last piece sees no more than itself.

The chunked form is `full` with a cut before each piece:

    cut_t where h divides t − 1 and t > 1                                                      (W2)

With h′ < h all ⌈T/h′⌉ blocks go back side by side: for each lag l = 0..h−1 every block goes one step back.
At lag l block j is at step t = e_j − l:

    λʲ ← λʲ + G_t       while t > (j − 1) h′: the losses of the block                          (W3)
    λ_t ← λ_t + λʲ      the sum over blocks, as `contract` is linear in λ                      (W4)
    λʲ ← λ̃ʲ             one step back, (S2, S3) of `loops`; as it is before the first step     (W5)
    dE/ds_0 = Σ λʲ      of the blocks that have reached the beginning                          (W6)

So the backward loop has h steps, each over ⌈T/h′⌉ B rows, and one contraction follows.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import is_known, or_none, size
from jax_bptt.base.errors import bad
from jax_bptt.base.trees import differentiable, plus, select, sum_over_first_axis, trailing, zeros_like
from jax_bptt.base.types import Slopes, State, Tree
from jax_bptt.engine import chunks, loops, phases
from jax_bptt.engine.emission import emission_of
from jax_bptt.engine.engine import Runnable, Swept
from jax_bptt.engine.run import Cotangents, Kept, Outputs, Run
from jax_bptt.engine.sequence import Sequence
from jax_bptt.gradients.full import full
from jax_bptt.gradients.method import (
    Carry,
    Data,
    GradientMethod,
    Recurrence,
    Streamed,
    Weights,
    check_on_one_device,
    differentiated_once,
)


@cached(window=size, stride=or_none(size))
def truncated(window: int, stride: int | None = None) -> GradientMethod:
    """This method computes the gradient of truncated backpropagation through time, chunked or sliding.

    the loss at step t sees the steps min(⌈t/h′⌉ h′, T) − h + 1 to t   (W1)

    There is one exception: in the chunked form (h′ = h) no loss sees a step before its own piece, also in a
    shorter last piece. With T = 7 and h = h′ = 4 the loss at step 5 sees step 5 only.

    If h >= T the gradient is exact. Pieces and blocks count from the first step of the call, with
    reverse=True from the last. A truncated gradient treats some carries as constants, so it is not the
    derivative of the loss. In the chunked form a second derivative treats the same carries as constants;
    with h′ < h each block has constants of its own, and a second derivative is a ValueError.

    The chunked form takes the time of `full`. It takes the memory of `full`, but in `value_and_grad` that of
    one piece only, with the same exceptions as `checkpointed`. With h′ < h the backward pass takes T h/h′
    steps, ⌈T/h′⌉ of them side by side, and stores the derivatives of all steps, O(T·B·G·H); this is more
    than JAX stores for the plain scan.

    In a network of L layers the pieces of all layers are the same. With h′ < h each layer goes h steps back
    from the gradient that it is given, so a loss can reach L (h − 1) + 1 steps.

    Args:
      window: h, the steps that a gradient goes back, counted from the end of its block of losses.
      stride: h′ <= h, the number of losses in a block; they go back together. None stands for h, the
        chunked form; 1 for the sliding form.

    Returns:
      The `GradientMethod`; the same object for the same arguments.

    Raises:
      ValueError: window or stride is below 1, or stride is above window.

    Reference: Williams & Peng 1990, An efficient gradient-based algorithm for on-line training of
    recurrent network trajectories; Williams & Zipser 1995.

    >>> truncated(20), truncated(20, stride=1)
    (truncated(20), truncated(20, stride=1))
    """
    if stride is None:
        with_cuts, stream = functools.partial(_forward_with_cuts, window), functools.partial(_stream, window)
        return GradientMethod("truncated", with_cuts, full().backward, stream)
    if stride > window:
        fix = "pass a smaller stride, or stride=None for chunks of `window` steps"
        raise bad("stride", f"at most window={window}", stride, fix)
    if stride == window:
        return truncated(window)
    came = f"a second derivative through jb.truncated({window}, stride={stride})"
    once = functools.partial(differentiated_once, came, f"use jb.truncated({window}) or jb.full()")

    check = functools.partial(check_on_one_device, "jb.truncated with a stride")

    def forward(cell: Runnable, run: Run) -> tuple[Outputs, Kept]:
        return once(functools.partial(full(recompute=True).forward, cell))(run)

    def backward(cell: Runnable, kept: Kept, d: Outputs) -> Cotangents:
        return once(functools.partial(_backward, window, stride, cell))(kept, d)

    return GradientMethod("truncated", forward, backward, check=check)


def _forward_with_cuts(window: int, cell: Runnable, run: Run) -> tuple[Outputs, Kept]:
    sequence = run.sequence
    steps = sequence.steps
    if is_known(steps) and steps <= window:
        return full().forward(cell, run)
    t = jnp.arange(1, 1 + steps)
    between = ((t - 1) % window == 0) & (t > 1)  # (W2)
    cut = between if sequence.cut is None else trailing(between, sequence.cut) | sequence.cut
    return full().forward(cell, run._replace(sequence=sequence._replace(cut=cut)))


def _stream(
    window: int, recurrence: Recurrence, weights: Weights, carry: Carry, sequence: Sequence, data: Data
) -> Streamed:
    """Each piece runs forward and back before the next one, as it needs no gradient from later pieces."""

    def piece(
        state: tuple[Carry, Weights, Carry], first: chunks.First, here: Data
    ) -> tuple[tuple[Carry, Weights, Carry], Data]:
        s, d_weights, d_carry = state
        # constants for a derivative of this gradient, too
        s = jax.tree.map(lambda z: jnp.where(first == 0, z, jax.lax.stop_gradient(z)), s)
        found = recurrence.reverse(weights, s, here, zeros_like(differentiable(s)))
        # only the first piece begins from s_0; the carries of the others are constants
        d_carry = jax.tree.map(lambda z, new: jnp.where(first == 0, new, z), d_carry, found.d_carry)
        out = jax.tree.map(lambda z: z[None], found.out)
        return (found.carry, chunks.add_to(d_weights, found.d_weights), d_carry), out

    state = carry, chunks.zero_sums(differentiable(weights)), zeros_like(differentiable(carry))
    steps = min(window, chunks.fixed(sequence.steps))
    (carry, d_weights, d_carry), out = chunks.scan(piece, state, data, steps)
    return Streamed(carry, chunks.sums_as(d_weights, differentiable(weights)), d_carry, [out])


def _backward(window: int, stride: int, cell: Runnable, kept: Kept, d: Outputs) -> Cotangents:
    run, states = kept.run, kept.states
    assert states is not None  # `full` keeps them
    s_prev = phases.previous(run, states)
    slopes = phases.linearise(cell, run, s_prev, states)
    swept = _sweep_of_blocks(window, stride, cell, run, slopes, d)
    d_own = phases.derivatives_by_own(cell, run, d)
    d_params, d_xs = phases.contract(cell, run, s_prev, slopes, swept.lam, d_own)
    return Cotangents(d_params, swept.carry, swept.start, d_xs, swept.starts)


class _Sums(NamedTuple):
    """These are sums over the lags so far: λ_1..λ_T (W4), and dE/dstart or dE/dstarts."""

    lam: State
    start: State | None
    starts: State | None


def _sweep_of_blocks(window: int, stride: int, cell: Runnable, run: Run, slopes: Slopes, d: Outputs) -> Swept:
    """This replaces `phases.sweep`: all blocks of losses go back side by side and their λ are summed."""
    steps, marks = chunks.fixed(run.sequence.steps), run.sequence.marks
    firsts = jnp.arange(0, steps, stride)  # the first step of each block, counted from 0
    ends = jnp.minimum(firsts + stride, steps) - 1  # (W1)
    step_back = loops.step_back_of(phases.engine_of(cell), cell, run.params)
    emission = emission_of(cell)

    def block_back(lam: State, first: Array, t: Array) -> loops.StepBack:
        # a block that has passed the first step (t < 0) reads step 0, and the result is dropped
        d_y, a, marks_t = jax.tree.map(lambda z: z[jnp.maximum(t, 0)], (d.ys, slopes, marks))
        d_y = select((t >= first) & (t >= 0), d_y, zeros_like(d_y))  # the losses of the block
        of_end = select((t >= first) & (t == steps - 1), d.carry, zeros_like(d.carry))
        lam = emission.to_state(plus(lam, of_end), d_y)  # (W3)
        back = step_back(lam, emission.to_own(d_y), a, marks_t)
        return select(t >= 0, back, zeros_like(back)._replace(carry=lam))  # (W5)

    def back_one_lag(state: tuple[State, _Sums], lag: Array) -> tuple[tuple[State, _Sums], None]:
        lam, sums = state
        t = ends - lag
        back = jax.vmap(block_back)(lam, firsts, t)
        at = jnp.where(t >= 0, t, steps)  # before the first step: out of range, dropped

        def added(so_far: Tree, new: Tree) -> Tree:
            return jax.tree.map(lambda z, new: z.at[at].add(new, mode="drop"), so_far, new)

        sum_lam, start, starts = added(sums.lam, back.lam), sums.start, sums.starts  # (W4)
        if starts is not None:
            starts = added(starts, back.start)
        elif start is not None:
            start = plus(start, sum_over_first_axis(back.start))
        return (back.carry, _Sums(sum_lam, start, starts)), None

    lam = jax.tree.map(lambda z: jnp.zeros_like(z, shape=(len(ends), *z.shape)), d.carry)
    sum_lam = jax.tree.map(lambda z: jnp.zeros_like(z, shape=(steps, *z.shape)), d.carry)
    sums = _Sums(sum_lam, zeros_like(differentiable(run.start)), zeros_like(differentiable(marks.starts)))
    lags = min(window, steps)
    (lam, sums), _ = jax.lax.scan(back_one_lag, (lam, sums), jnp.arange(lags))
    lam = select(ends < lags, lam, zeros_like(lam))  # other blocks end before they reach s_0
    return Swept(sum_over_first_axis(lam), sums.start, sums.starts, sums.lam)  # (W6)

"""Truncated backpropagation: each loss sees some h steps of the past, and what came before as numbers.

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
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.errors import bad
from jax_bptt.cell.cell import size
from jax_bptt.engine import chunks, loops
from jax_bptt.engine.sequence import Sequence, select, zeros_like
from jax_bptt.gradients.full import full
from jax_bptt.gradients.method import GradientMethod, Recurrence, Streamed


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
    gradient is that of a program in which carries are numbers: it is not the derivative of the loss.

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
    window = size("window", window)
    stride = window if stride is None else size("stride", stride)
    if stride > window:
        fix = "losses between two blocks would be lost; pass stride=None for chunks of the window"
        raise bad("stride", f"at most window={window}", stride, fix)
    return _truncated(window, stride)


@functools.lru_cache(maxsize=256)
def _truncated(window: int, stride: int) -> GradientMethod:
    if stride < window:
        back = functools.partial(_backward, window, stride)
        return GradientMethod(f"truncated({window}, stride={stride})", full(recompute=True).forward, back)
    forward, stream = functools.partial(_forward_with_cuts, window), functools.partial(_stream, window)
    return GradientMethod(f"truncated({window})", forward, full().backward, stream)


def _forward_with_cuts(
    window: int, cell: Any, params: Any, carry: Any, start: Any, sequence: Sequence
) -> tuple[tuple[Any, Array], Any]:
    xs, cut = sequence.xs, sequence.cut
    if len(xs) <= window:
        return full().forward(cell, params, carry, start, sequence)
    t = jnp.arange(1, 1 + len(xs)).reshape(-1, *[1] * (xs.ndim - 2))
    between = ((t - 1) % window == 0) & (t > 1)  # (W2)
    cut = between if cut is None else between | cut
    return full().forward(cell, params, carry, start, sequence._replace(cut=cut))


def _stream(
    window: int, whole: Recurrence, weights: Any, carry: Any, sequence: Sequence, data: Any
) -> Streamed:
    """Each piece forward and back before the next: nothing waits for a gradient from behind."""

    def piece(state: Any, first: Any, here: Any) -> tuple[Any, Any]:
        s, d_weights, d_carry = state
        s, d_part, d_s, out = whole.reverse(weights, s, here, zeros_like(s))
        d_carry = jax.tree.map(lambda z, new: jnp.where(first == 0, new, z), d_carry, d_s)
        out = jax.tree.map(lambda z: z[None], out)
        return (s, chunks.add_to(d_weights, d_part), d_carry), out

    state = carry, chunks.zero_sums(weights), zeros_like(carry)
    (carry, d_weights, d_carry), out = chunks.scan(piece, state, data, min(window, len(sequence.xs)))
    return Streamed(carry, chunks.sums_as(d_weights, weights), d_carry, [out])


def _backward(
    window: int, stride: int, cell: Any, residuals: Any, d_carry: Any, d_hs: Array
) -> tuple[Any, Any, Any, Array]:
    params, carry, start, sequence, states, _ = residuals
    s_prev = loops.previous(carry, start, sequence, states)
    a = loops.linearise(cell, params, s_prev, sequence, states)
    d_carry, d_start, lam = _sweep_of_blocks(window, stride, cell, params, a, sequence, d_carry, d_hs)
    d_params, d_xs = loops.contract(cell, params, s_prev, sequence, a, lam)
    return d_params, d_carry, d_start, d_xs


def _sweep_of_blocks(
    window: int, stride: int, cell: Any, params: Any, a: Any, sequence: Sequence, d_carry: Any, d_hs: Array
) -> tuple[Any, Any, Any]:
    """`loops.sweep`, the sum over all blocks of losses."""
    steps, marks = len(d_hs), (sequence.mask, sequence.reset, sequence.cut)
    firsts = jnp.arange(0, steps, stride)  # of each block, counted from 0
    ends = jnp.minimum(firsts + stride, steps) - 1  # (W1)
    fixed = loops.engine_of(cell).before_sweep(cell, params)

    def of_block(lam: Any, first: Array, t: Array) -> tuple[Any, Any, Any]:
        here = jax.tree.map(lambda z: z[jnp.maximum(t, 0)], (d_hs, a, *marks))
        d_h, a_t, *marks_t = here
        d_s = select(t == steps - 1, d_carry, zeros_like(d_carry))
        d_s = d_s._replace(h=d_s.h + d_h)
        lam = loops.plus(lam, select((t >= first) & (t >= 0), d_s, zeros_like(d_s)))  # (W3)
        back = loops.step_back(cell, params, fixed, None, lam, a_t, *marks_t)
        return select(t >= 0, back, (lam, *zeros_like(back[1:])))  # (W5)

    def at_lag(state: Any, lag: Array) -> tuple[Any, None]:
        lam, total, d_start = state
        t = ends - lag
        lam, begun, lam_step = jax.vmap(of_block)(lam, firsts, t)
        at = jnp.where(t >= 0, t, steps)  # before the first step: out of range, dropped
        total = jax.tree.map(lambda z, new: z.at[at].add(new, mode="drop"), total, lam_step)  # (W4)
        return (lam, total, loops.plus(d_start, jax.tree.map(lambda z: z.sum(0), begun))), None

    lam = jax.tree.map(lambda z: jnp.zeros_like(z, shape=(len(ends), *z.shape)), d_carry)
    total = jax.tree.map(lambda z: jnp.zeros_like(z, shape=(steps, *z.shape)), d_carry)
    d_start = None if sequence.reset is None else zeros_like(d_carry)
    lags = min(window, steps)
    (lam, total, d_start), _ = jax.lax.scan(at_lag, (lam, total, d_start), jnp.arange(lags))
    lam = select(ends < lags, lam, zeros_like(lam))
    return jax.tree.map(lambda z: z.sum(0), lam), d_start, total  # (W6)

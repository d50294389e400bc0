"""Exact backpropagation through every step works on one chunk of steps at a time.

    forward    s_1..s_T, kept; the u_t of a chunk by one product                              (B1)

    backward   for the last chunk first, given what came from the chunks behind it:
               s̃_{t−1} of the chunk are known: their v_t, and u_t, by one product each,
               a_t = the derivative of the steps                          linearise           (B2)
               λ_t, down to λ̃ of the chunk before                         sweep               (B3)
               its part of dE/dW, one product for each matrix             contract            (B4)
               dE/dW = the sum of the parts; a_t and λ_t are forgotten                        (B5)

The gates of a step and its slopes a_t (the derivatives of the step) are O(B·G·H) numbers; they exist for
the K steps of one chunk only. jax.checkpoint cannot do (B2), because it would run the loop of the chunk
again. The slopes of all steps, or of the last ones, can also be stored instead of recomputed: the forward
pass then keeps a_t beside s_t, and (B2) only reads it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import number, or_none, size
from jax_bptt.base.errors import bad
from jax_bptt.base.trees import differentiable
from jax_bptt.base.types import ArrayTree, Foreign, Slopes, State
from jax_bptt.engine import chunks, phases
from jax_bptt.engine.engine import Forward, Runnable, Transform
from jax_bptt.engine.run import Cotangents, Kept, Outputs, Run
from jax_bptt.engine.sequence import Sequence
from jax_bptt.gradients import kept_slopes
from jax_bptt.gradients.method import GradientMethod

_Towards: TypeAlias = tuple[State, tuple[ArrayTree, State | None]]  # dE/ds; sums of dE/dparams, dE/dstart
_OfSteps: TypeAlias = tuple[ArrayTree, State | None]  # dE/dxs, dE/dstarts


def _share_of_steps(argument: str, share: Foreign) -> float | None:
    """The share becomes a float; True, False and None stay as they are."""
    if share is None or isinstance(share, bool):
        return share
    expected = "True, False, None or a share from 0 to 1"
    found = number(argument, expected, share)
    if not 0 <= found <= 1:
        raise bad(argument, expected, share, "0 stores all slopes, 1 recomputes all of them")
    return bool(found) if found in (0, 1) else found


@cached(chunk=or_none(size), recompute=_share_of_steps)
def full(chunk: int | None = None, recompute: float | None = None) -> GradientMethod:
    """This method computes the exact gradient, by a backward pass that is derived by hand.

    λ_{t−1} = G_{t−1} + (ds_t/ds_{t−1})ᵀ λ_t,   dE/dW = Σ_t (∂s_t/∂W)ᵀ λ_t

    It takes O(T) time. It stores the states of all steps, T·B·H numbers for each field of the state, and
    the slopes of K steps, O(K·B·G·H), or of all steps where they are kept. It works in reverse mode and in
    any mode over that (grad of grad, hessian); for jvp and jacfwd of the unroll itself use `autodiff`.

    Args:
      chunk: K, the number of steps that are linearised, swept and contracted together. T or more puts all
        steps into one chunk; None chooses K (`kept_slopes`).
      recompute: the fraction of the steps whose slopes are recomputed in the backward pass: the earliest
        steps. The forward pass stores the slopes of the other steps. True recomputes all slopes, False
        none. None chooses by size: they are kept where they fit the caches or cost many products, and
        computed again elsewhere (`kept_slopes`).

    Returns:
      The `GradientMethod`; the same object for the same arguments.

    Raises:
      ValueError: chunk is below 1, or recompute is not a fraction from 0 to 1.

    Reference: Rumelhart, Hinton & Williams 1986; Werbos 1990.

    >>> full(), full(chunk=32) is full(32)
    (full(), True)
    """
    return GradientMethod(
        "full",
        functools.partial(_forward, chunk, recompute),
        functools.partial(backward, chunk, None),
    )


def full_with(transform: Transform) -> Callable[[Runnable, Kept, Outputs], Cotangents]:
    """This is the backward pass of `full`, but λ̃ is transformed on its way to the previous step."""
    return functools.partial(backward, None, transform)


def _forward(chunk: int | None, recompute: float | None, cell: Runnable, run: Run) -> tuple[Outputs, Kept]:
    steps, total = chunk or kept_slopes.chunk_of(cell, run), run.sequence.steps
    share = kept_slopes.share_recomputed(cell, run, steps) if recompute is None else recompute
    if share in (0, 1):
        kept_from = total if share else 0
    else:  # rounded up to whole chunks, so that no chunk is split between the two parts
        kept_from = min(math.ceil(share * chunks.fixed(total) / steps) * steps, total)

    def run_steps(carry: State, keep_slopes: bool, begin: int, end: int) -> Forward:
        def run_chunk(s: State, first: chunks.First, here: Sequence) -> tuple[State, Forward]:
            stretch = run._replace(carry=s, sequence=here)
            found = phases.forward(cell, stretch, keep_slopes)  # (B1)
            return found.carry, found._replace(carry=None)  # the last carry comes from the loop

        last, found = chunks.scan(run_chunk, carry, run.sequence, steps, begin=begin, end=end)
        of_all: Forward = found._replace(carry=last)
        return of_all

    if kept_from in (0, total):
        found = run_steps(run.carry, kept_from == 0, 0, total)
    else:
        early = run_steps(run.carry, False, 0, kept_from)
        late = run_steps(early.carry, True, kept_from, total)
        both = (early.states, early.own), (late.states, late.own)
        states, own = jax.tree.map(lambda z, y: jnp.concatenate([z, y]), *both)
        found = late._replace(states=states, own=own)
    return phases.outputs(cell, found), Kept(run, found.states, found.slopes)


def backward(
    chunk: int | None, transform: Transform | None, cell: Runnable, kept: Kept, d: Outputs
) -> Cotangents:
    """The chunks go back one by one, the last one first (B2-B5); for transform see `loops.step_back_of`."""
    run, states, slopes = kept.run, kept.states, kept.slopes
    assert states is not None  # the forward pass keeps them
    steps, total = chunk or kept_slopes.chunk_of(cell, run), run.sequence.steps
    kept_from = total if slopes is None else total - chunks.length(slopes)

    def back_through_chunk(
        slopes: Slopes | None, towards: _Towards, first: chunks.First, here: tuple[Sequence, ArrayTree, State]
    ) -> tuple[_Towards, _OfSteps]:
        d_s, sums = towards
        part, d_y, s = here
        stretch = run._replace(carry=_state_before(first, run.carry, states), sequence=part)
        if slopes is not None:
            slopes = chunks.take_steps(slopes, first - kept_from, part.steps)
        found = phases.backward(cell, Kept(stretch, s, slopes), Outputs(d_s, d_y), transform)  # (B2, B3, B4)
        sums = chunks.add_to(sums, (found.params, found.start))  # (B5)
        return (found.carry, sums), (found.xs, found.starts)

    like = differentiable((run.params, run.start))
    towards: _Towards = d.carry, chunks.zero_sums(like)
    of_steps: list[_OfSteps] = []
    # the late steps, whose slopes are stored, come first: a backward pass runs from the end
    for of_these, begin, end in ((slopes, kept_from, total), (None, 0, kept_from)):
        if begin < end:
            back, data = functools.partial(back_through_chunk, of_these), (run.sequence, d.ys, states)
            towards, of_these_steps = chunks.scan(
                back, towards, data, steps, reverse=True, begin=begin, end=end
            )
            of_steps.insert(0, of_these_steps)
    d_carry, sums = towards
    d_params, d_start = chunks.sums_as(sums, like)
    d_xs, d_starts = jax.tree.map(lambda *z: jnp.concatenate(z), *of_steps)
    return Cotangents(d_params, d_carry, d_start, d_xs, d_starts)


def _state_before(first: chunks.First, carry: State, states: State) -> State:
    """Step `first`, counted from 0, began from this state."""
    if isinstance(first, int):
        return jax.tree.map(lambda s_0, s: s[first - 1] if first else s_0, carry, states)
    return jax.tree.map(lambda s_0, s: jnp.where(first > 0, s[jnp.maximum(first - 1, 0)], s_0), carry, states)

"""Backpropagation through every step: linearise, sweep, contract, a chunk of steps at a time.

    forward    s_1..s_T, kept; the u_t of a chunk by one product                              (B1)

    backward   for the last chunk first, given what came from the chunks behind it:
               s̃_{t−1} of the chunk are known: their v_t, and u_t, by one product each,
               a_t = the derivative of the steps                          linearise           (B2)
               λ_t, down to λ̃ of the chunk before                         sweep               (B3)
               its part of dE/dW, one product for each matrix             contract            (B4)
               dE/dW = the sum of the parts; a_t and λ_t are forgotten                        (B5)

So the slopes and gates of a step, O(B·G·H) numbers, exist for the K steps of one chunk only.
jax.checkpoint cannot do (B2): it runs the loop of the chunk again. Without recomputation, of all steps
or of the last ones, the forward pass keeps a_t beside s_t, and (B2) is a read.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import number, or_none, size
from jax_bptt.base.errors import bad
from jax_bptt.base.trees import num_parameters
from jax_bptt.base.types import ArrayTree, Foreign, Slopes, State
from jax_bptt.cell.step_cell import AnyCell
from jax_bptt.engine import chunks, phases
from jax_bptt.engine.engine import Forward, Transform
from jax_bptt.engine.run import Cotangents, Kept, Outputs, Run
from jax_bptt.engine.sequence import Sequence
from jax_bptt.gradients.method import GradientMethod

_Towards: TypeAlias = tuple[State, tuple[ArrayTree, State | None]]  # dE/ds; sums dE/dparams and dE/dstart


def _share_of_steps(argument: str, share: Foreign) -> float | None:
    """A share as a float; True, False and None as they are."""
    if share is None or isinstance(share, bool):
        return share
    expected = "True, False, None or a share from 0 to 1"
    found = number(argument, expected, share)
    if not 0 <= found <= 1:
        raise bad(argument, expected, share, "say which share of the slopes is made again")
    return bool(found) if found in (0, 1) else found


@cached(chunk=or_none(size), recompute=_share_of_steps)
def full(chunk: int | None = None, recompute: float | None = None) -> GradientMethod:
    """The exact gradient, derived by hand.

    λ_{t−1} = G_{t−1} + (ds_t/ds_{t−1})ᵀ λ_t,   dE/dW = Σ_t (∂s_t/∂W)ᵀ λ_t

    Time O(T). Memory: the states of all steps, T·B·H numbers each, and the slopes of K steps,
    O(K·B·G·H); with recompute=False those of all. Reverse mode, and any mode over it (grad of grad,
    hessian); for jvp and jacfwd of the unroll itself take `autodiff`.

    Args:
      chunk: K, the steps that are linearised, swept and contracted together; None for a choice by
        length, batch and weights (`chunks.chunk_of`); T or more for all at once.
      recompute: the share of steps, the first ones, whose slopes are made again in the backward pass by
        products of a chunk; those of the others are kept from the forward pass. True for all, False for
        none, None for a choice by what that takes and saves: none where one chunk holds all steps, for
        then they exist together anyway; two thirds from a million weights on; all below. With none the
        time on 2 cores was 0.85 to 0.95 of that with all at H >= 512, and more at H <= 256.

    Returns:
      The `GradientMethod`; the same object for the same arguments.

    Raises:
      ValueError: a chunk below 1, or recompute that is no share.

    Reference: Rumelhart, Hinton & Williams 1986; Werbos 1990.

    >>> full(), full(chunk=32) is full(32)
    (full(), True)
    """
    return GradientMethod(
        "full",
        functools.partial(_forward, chunk, recompute),
        functools.partial(backward, chunk, None),
    )


def full_with(transform: Transform) -> Callable[[AnyCell, Kept, Outputs], Cotangents]:
    """The backward pass of `full` in which λ̃ is transformed on its way to the step before."""
    return functools.partial(backward, None, transform)


def _forward(chunk: int | None, recompute: float | None, cell: AnyCell, run: Run) -> tuple[Outputs, Kept]:
    steps, total = chunk or chunks.chunk_of(run.sequence, run.params), len(run.sequence.xs)
    share = _share(steps, run) if recompute is None else recompute
    kept_from = min(math.ceil(share * total / steps) * steps, total)

    def run_steps(carry: State, keep_slopes: bool, begin: int, end: int) -> Forward:
        def run_chunk(
            s: State, first: chunks.First, here: Sequence
        ) -> tuple[State, tuple[State, Slopes | None]]:
            stretch = run._replace(carry=s, sequence=here)
            found = phases.forward(cell, stretch, keep_slopes)  # (B1)
            return found.carry, (found.states, found.slopes)

        last, (states, slopes) = chunks.scan(run_chunk, carry, run.sequence, steps, begin=begin, end=end)
        return Forward(last, states, slopes)

    if kept_from in (0, total):
        last, states, slopes = run_steps(run.carry, kept_from == 0, 0, total)
    else:
        early = run_steps(run.carry, False, 0, kept_from)
        last, late, slopes = run_steps(early.carry, True, kept_from, total)
        states = jax.tree.map(lambda z, y: jnp.concatenate([z, y]), early.states, late)
    return Outputs(last, states.h), Kept(run, states, slopes)


def _share(steps: int, run: Run) -> float:
    """The share of steps whose slopes are made again, where the user does not say."""
    if steps >= len(run.sequence.xs):
        return 0
    return 2 / 3 if num_parameters(run.params) >= 1e6 else 1


def backward(
    chunk: int | None, transform: Transform | None, cell: AnyCell, kept: Kept, d: Outputs
) -> Cotangents:
    """(B2-B5) over all chunks; transform as in `loops.step_back_of`."""
    run, states, slopes = kept.run, kept.states, kept.slopes
    assert states is not None  # the forward pass keeps them
    steps, total = chunk or chunks.chunk_of(run.sequence, run.params), len(d.hs)
    kept_from = total if slopes is None else total - chunks.length(slopes)

    def back_through_chunk(
        slopes: Slopes | None, towards: _Towards, first: chunks.First, here: tuple[Sequence, Array, State]
    ) -> tuple[_Towards, Array]:
        d_s, sums = towards
        part, d_h, s = here
        stretch = run._replace(carry=_state_before(first, run.carry, states), sequence=part)
        if slopes is not None:
            slopes = chunks.take_steps(slopes, first - kept_from, len(d_h))
        found = phases.backward(cell, Kept(stretch, s, slopes), Outputs(d_s, d_h), transform)  # (B2, B3, B4)
        return (found.carry, chunks.add_to(sums, (found.params, found.start))), found.xs  # (B5)

    like = run.params, run.start
    towards: _Towards = d.carry, chunks.zero_sums(like)
    d_xs: list[Array] = []
    for of_these, begin, end in ((slopes, kept_from, total), (None, 0, kept_from)):
        if begin < end:
            back, data = functools.partial(back_through_chunk, of_these), (run.sequence, d.hs, states)
            towards, d_x = chunks.scan(back, towards, data, steps, reverse=True, begin=begin, end=end)
            d_xs.insert(0, d_x)
    d_carry, sums = towards
    d_params, d_start = chunks.sums_as(sums, like)
    return Cotangents(d_params, d_carry, d_start, jnp.concatenate(d_xs))


def _state_before(first: chunks.First, carry: State, states: State) -> State:
    """The state with which step `first` (counted from 0) began."""
    if isinstance(first, int):
        return jax.tree.map(lambda s_0, s: s[first - 1] if first else s_0, carry, states)
    return jax.tree.map(lambda s_0, s: jnp.where(first > 0, s[jnp.maximum(first - 1, 0)], s_0), carry, states)

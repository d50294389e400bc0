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
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.errors import bad
from jax_bptt.cell.cell import size
from jax_bptt.cell.initializers import number
from jax_bptt.engine import chunks, loops
from jax_bptt.engine.sequence import Sequence
from jax_bptt.gradients.method import GradientMethod, called

Alter = Callable[[Any], Any] | None


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
    if recompute is not None and not isinstance(recompute, bool):
        expected = "True, False, None or a share from 0 to 1"
        if not 0 <= number("recompute", expected, recompute) <= 1:
            raise bad("recompute", expected, recompute, "say which share of the slopes is made again")
        recompute = bool(recompute) if recompute in (0, 1) else float(recompute)
    return _full(None if chunk is None else size("chunk", chunk), recompute)


@functools.lru_cache(maxsize=256)
def _full(chunk: int | None, recompute: float | None) -> GradientMethod:
    name = called("full", chunk=(chunk, None), recompute=(recompute, None))
    forward = functools.partial(_forward, chunk, recompute)
    return GradientMethod(name, forward, functools.partial(backward, chunk, None))


def _forward(
    chunk: int | None,
    recompute: float | None,
    cell: Any,
    params: Any,
    carry: Any,
    start: Any,
    sequence: Sequence,
) -> tuple[tuple[Any, Array], Any]:
    steps, total = chunk or chunks.chunk_of(sequence, params), len(sequence.xs)
    share = _share(steps, sequence, params) if recompute is None else recompute
    kept_from = math.ceil(share * total / steps) * steps if share < 1 else total

    def over(run: Any, s: Any, begin: int, end: int) -> tuple[Any, Any]:
        def of_chunk(s: Any, first: Any, here: Sequence) -> tuple[Any, Any]:
            return run(cell, params, s, start, here)  # (B1)

        return chunks.scan(of_chunk, s, sequence, steps, begin=begin, end=end)

    if kept_from >= total:
        last, states = over(loops.forward, carry, 0, total)
        return (last, states.h), (params, carry, start, sequence, states, None)
    if kept_from == 0:
        last, (states, a) = over(loops.forward_and_linearise, carry, 0, total)
    else:
        s, early = over(loops.forward, carry, 0, kept_from)
        last, (late, a) = over(loops.forward_and_linearise, s, kept_from, total)
        states = jax.tree.map(lambda z, y: jnp.concatenate([z, y]), early, late)
    return (last, states.h), (params, carry, start, sequence, states, a)


def _share(steps: int, sequence: Sequence, params: Any) -> float:
    """The share of steps whose slopes are made again, where the user does not say."""
    if steps >= len(sequence.xs):
        return 0
    return 2 / 3 if chunks.numbers_of(params) >= 1e6 else 1


def backward(
    chunk: int | None, alter: Alter, cell: Any, residuals: Any, d_carry: Any, d_hs: Array
) -> tuple[Any, Any, Any, Array]:
    """(B2-B5) over all chunks; alter as in `loops.step_back`."""
    params, carry, start, sequence, states, a = residuals
    steps, total = chunk or chunks.chunk_of(sequence, params), len(d_hs)
    kept_from = total if a is None else total - chunks.length(a)

    def of_chunk(kept: bool, towards: tuple[Any, Any, Any], first: Any, here: Any) -> tuple[Any, Array]:
        d_s, d_params, d_start = towards
        part, d_h, s = here
        s_0 = _state_before(first, carry, states)
        a_here = chunks.part(a, first - kept_from, len(d_h)) if kept else None
        d_part, d_s, d_begun, d_xs = backward_of_steps(
            cell, params, s_0, start, part, d_h, s, a_here, d_s, alter
        )
        return (d_s, *chunks.add_to((d_params, d_start), (d_part, d_begun))), d_xs  # (B5)

    towards: Any = (d_carry, *chunks.zero_sums((params, start)))
    d_xs: list[Array] = []
    for kept, begin, end in ((True, kept_from, total), (False, 0, kept_from)):
        if begin < end:
            over, data = functools.partial(of_chunk, kept), (sequence, d_hs, states)
            towards, of_these = chunks.scan(over, towards, data, steps, True, begin, end)
            d_xs.insert(0, of_these)
    d_carry, *sums = towards
    d_params, d_start = chunks.sums_as(tuple(sums), (params, start))
    return d_params, d_carry, d_start, jnp.concatenate(d_xs)


def backward_of_steps(
    cell: Any,
    params: Any,
    carry: Any,
    start: Any,
    sequence: Sequence,
    d_hs: Array,
    states: Any,
    a: Any,
    d_carry: Any,
    alter: Alter = None,
) -> tuple[Any, Any, Any, Array]:
    """The three phases over one stretch of steps, which began at carry; a is None where not kept.

    Returns dE/dparams, dE/dcarry, dE/dstart and dE/dxs of the stretch, [K, ..., I].
    """
    s_prev = loops.previous(carry, start, sequence, states)
    if a is None:
        a = loops.linearise(cell, params, s_prev, sequence, states)  # (B2)
    d_carry, d_start, lam = loops.sweep(cell, params, a, sequence, d_carry, d_hs, alter)  # (B3)
    d_params, d_xs = loops.contract(cell, params, s_prev, sequence, a, lam)  # (B4)
    return d_params, d_carry, d_start, d_xs


def _state_before(first: Any, carry: Any, states: Any) -> Any:
    """The state with which step `first` (counted from 0) began."""
    if isinstance(first, int):
        return jax.tree.map(lambda s_0, s: s[first - 1] if first else s_0, carry, states)
    return jax.tree.map(lambda s_0, s: jnp.where(first > 0, s[jnp.maximum(first - 1, 0)], s_0), carry, states)

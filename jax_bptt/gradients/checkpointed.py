"""Backpropagation through every step that keeps m states, not T: the others are made again.

    1..T = head, then n leaves of K steps       head: the T mod K steps that are left over     (M1)

    forward    over the leaves in order, keeping the states that the schedule names            (M2)

    backward   the actions of `schedule`, one after the other:
               current state ← a kept one, or as it is                                         (M3)
               a slot ← the current state, or nothing                                          (M4)
               advance: current state ← the state one leaf on                                  (M5)
               reverse: run the leaf again and go back through it, by the chunk's three
                        phases of `full`; dE/dW gains its part, dE/ds goes on                  (M6)

The schedule is numbers, an array; one jax.lax.scan executes it. So what is compiled holds an advance
and a reversal of one leaf (and of the head), however long the sequence is.

In `value_and_grad` a leaf is K steps of all layers, of the readout and of the loss, and all actions are
in the backward pass, those of (M2) too. In `unroll` h_1..h_T are outputs and exist in any case.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_bptt.cell.cell import check_flag, size
from jax_bptt.engine import chunks, loops
from jax_bptt.engine.sequence import Sequence, zeros_like
from jax_bptt.gradients.full import backward_of_steps
from jax_bptt.gradients.method import GradientMethod, Recurrence, Streamed, called
from jax_bptt.gradients.schedule import Action, schedule


def checkpointed(slots: int | None = None, chunk: int | None = None, host: bool = False) -> GradientMethod:
    """The exact gradient in little memory: at most m states are kept.

    t(n, m) advances over a leaf, the fewest that are possible, then one run of each to reverse it

    Time: T + K t(n, m) steps forward, T backward, with n = T/K leaves; for m = n, the default, each leaf
    runs forward twice, for m = 1 it is n²/2 leaves. Memory: m states, O(m·B·H), and one leaf as in
    `full`, O(K·B·G·H). In `unroll` the outputs and their cotangents come to that; in `value_and_grad`
    nothing does that grows with T, unless a layer reads backwards, the readout is of the `last` step or
    the loss is your own: then it goes layer by layer, as `unroll`.

    Args:
      slots: m, states that are kept, s_0 among them; None for one for each leaf, of about √T steps.
      chunk: K, steps in a leaf; None for √T, or fewer where `chunks.chunk_of` says so and slots are
        given.
      host: whether the kept states wait in the host's memory, on accelerators that have their own.

    Returns:
      The `GradientMethod`; the same object for the same arguments.

    Raises:
      ValueError: slots or chunk below 1, or host that is no bool.

    Reference: Griewank & Walther 2000, Algorithm 799: Revolve; Gruslys et al. 2016, Memory-efficient
    backpropagation through time; Chen et al. 2016, Training deep nets with sublinear memory cost (√T).

    >>> checkpointed(slots=16), checkpointed()
    (checkpointed(slots=16), checkpointed())
    """
    check_flag("host", host)
    slots = None if slots is None else size("slots", slots)
    return _checkpointed(slots, None if chunk is None else size("chunk", chunk), host)


@functools.lru_cache(maxsize=256)
def _checkpointed(slots: int | None, chunk: int | None, host: bool) -> GradientMethod:
    plan = functools.partial(_plan, slots, chunk, host)
    return GradientMethod(
        called("checkpointed", slots=(slots, None), chunk=(chunk, None), host=(host, False)),
        functools.partial(_forward, plan),
        functools.partial(_backward, plan),
        functools.partial(_stream, plan),
    )


_KEEP, _STEP = map(Action._fields.index, ("keep", "step"))  # columns of the array of actions


class _Plan(NamedTuple):
    """Of a sequence: K, the steps of the head, m, whether they are on the host, and the actions, [A, 4]."""

    leaf: int
    head: int
    slots: int
    host: bool
    actions: np.ndarray

    @property
    def leaves(self) -> int:
        """n; the first n − 1 actions are the first advances, (M2)."""
        return int(self.actions[:, _STEP].max()) + 1


def _plan(slots: int | None, chunk: int | None, host: bool, sequence: Sequence, weights: Any) -> _Plan:
    steps = len(sequence.xs)
    root = max(1, math.isqrt(steps))
    leaf = min(steps, chunk or (root if slots is None else min(root, chunks.chunk_of(sequence, weights))))
    leaves, head = divmod(steps, leaf)  # (M1)
    kept = min(leaves, slots or leaves)
    return _Plan(leaf, head, kept, host, _actions(leaves, kept))


@functools.lru_cache(maxsize=64)
def _actions(leaves: int, kept: int) -> np.ndarray:
    return np.array(schedule(leaves, kept), np.int32)


def _forward(
    plan_of: Any, cell: Any, params: Any, carry: Any, start: Any, sequence: Sequence
) -> tuple[tuple[Any, Array], Any]:
    plan, hs = plan_of(sequence, params), []
    s = carry
    if plan.head:
        s, states = loops.forward(cell, params, s, start, chunks.part(sequence, 0, plan.head))
        hs.append(states.h)

    def over_leaf(state: Any, at: Any) -> tuple[Any, Array]:
        s, _, slots = state
        number, keep = at
        here = chunks.part(sequence, plan.head + number * plan.leaf, plan.leaf)
        last, states = loops.forward(cell, params, s, start, here)
        return (last, s, _kept(plan, slots, keep, s)), states.h  # (M2)

    ats = jnp.arange(plan.leaves), jnp.asarray(plan.actions[: plan.leaves, _KEEP])
    (last, before_last, slots), h = jax.lax.scan(over_leaf, (s, s, _slots(plan, s)), ats)
    hs.append(h.reshape(-1, *h.shape[2:]))
    return (last, jnp.concatenate(hs)), (params, carry, start, sequence, before_last, slots)


def _backward(
    plan_of: Any, cell: Any, residuals: Any, d_carry: Any, d_hs: Array
) -> tuple[Any, Any, Any, Array]:
    params, carry, start, sequence, before_last, slots = residuals
    plan = plan_of(sequence, params)

    def advance(weights: Any, s: Any, here: Any) -> Any:
        (params, start), (part, _) = weights, here
        return loops.forward(cell, params, s, start, part)[0]

    def reverse(weights: Any, s: Any, here: Any, d_s: Any) -> Any:
        (params, start), (part, d_h) = weights, here
        last, states = loops.forward(cell, params, s, start, part)
        d_params, d_s, d_start, d_xs = backward_of_steps(cell, params, s, start, part, d_h, states, None, d_s)
        return last, (d_params, d_start), d_s, d_xs

    cell_alone, data = Recurrence(advance, reverse), (sequence, d_hs)
    actions = plan.actions[plan.leaves - 1 :]  # the forward pass did what comes before
    done = _execute(plan, actions, cell_alone, (params, start), carry, before_last, slots, data, d_carry)
    of_leaves, *of_head = done.out
    d_xs = jnp.concatenate([*of_head, of_leaves.reshape(-1, *of_leaves.shape[2:])])
    return done.d_weights[0], done.d_carry, done.d_weights[1], d_xs


def _stream(
    plan_of: Any, whole: Recurrence, weights: Any, carry: Any, sequence: Sequence, data: Any
) -> Streamed:
    plan, s = plan_of(sequence, weights), carry
    if plan.head:
        s = whole.advance(weights, s, chunks.part(data, 0, plan.head))
    slots, d_carry = _slots(plan, s), zeros_like(carry)
    return _execute(plan, plan.actions, whole, weights, carry, s, slots, data, d_carry)


def _execute(
    plan: _Plan,
    actions: np.ndarray,
    recurrence: Recurrence,
    weights: Any,
    s_0: Any,
    s: Any,
    slots: Any,
    data: Any,
    d_carry: Any,
) -> Streamed:
    """The actions from the current state s and what the slots hold, then the head from s_0."""

    def leaf(number: Any) -> Any:
        return chunks.part(data, plan.head + number * plan.leaf, plan.leaf)

    *_, out = jax.eval_shape(recurrence.reverse, weights, s, leaf(0), d_carry)

    def advance(s: Any, d_weights: Any, d_s: Any, here: Any) -> Any:
        return recurrence.advance(weights, s, here), d_weights, d_s, zeros_like(out)  # (M5)

    def reverse(s: Any, d_weights: Any, d_s: Any, here: Any) -> Any:
        s, d_part, d_s, out = recurrence.reverse(weights, s, here, d_s)  # (M6)
        return s, chunks.add_to(d_weights, d_part), d_s, out

    def act(state: Any, action: Array) -> tuple[Any, None]:
        s, end, slots, outs, *towards = state
        load, keep, number, back = action
        s = jax.tree.map(lambda z, kept: jnp.where(load < 0, z, kept), s, _read(plan, slots, load))  # (M3)
        slots = _kept(plan, slots, keep, s)  # (M4)
        s, *towards, out = jax.lax.cond(back, reverse, advance, s, *towards, leaf(number))
        end = jax.tree.map(lambda last, z: jnp.where(number == plan.leaves - 1, z, last), end, s)
        outs = jax.tree.map(lambda z, new: z.at[number].set(new), outs, out)  # an advance's are overwritten
        return (s, end, slots, outs, *towards), None

    outs = jax.tree.map(lambda z: jnp.zeros_like(z, shape=(plan.leaves, *z.shape)), out)
    state = s, s, slots, outs, chunks.zero_sums(weights), d_carry
    (_, end, _, outs, d_weights, d_carry), _ = jax.lax.scan(act, state, jnp.asarray(actions))
    out = [outs]
    if plan.head:
        head = chunks.part(data, 0, plan.head)
        _, d_head, d_carry, of_head = recurrence.reverse(weights, s_0, head, d_carry)
        d_weights, out = chunks.add_to(d_weights, d_head), [outs, of_head]
    return Streamed(end, chunks.sums_as(d_weights, weights), d_carry, out)


def _slots(plan: _Plan, like: Any) -> Any:
    """Room for m states, and for one more, where a state goes that is not kept."""
    return _placed(plan, jax.tree.map(lambda s: jnp.zeros_like(s, shape=(plan.slots + 1, *s.shape)), like))


def _kept(plan: _Plan, slots: Any, keep: Array, s: Any) -> Any:
    at = jnp.where(keep < 0, plan.slots, keep)
    return jax.tree.map(
        lambda z, new: jax.lax.dynamic_update_index_in_dim(z, new, at, 0), slots, _placed(plan, s)
    )


def _read(plan: _Plan, slots: Any, load: Array) -> Any:
    at = jnp.maximum(load, 0)
    s = jax.tree.map(lambda z: jax.lax.dynamic_index_in_dim(z, at, keepdims=False), slots)
    return jax.device_put(s, jax.memory.Space.Device) if plan.host else s


def _placed(plan: _Plan, tree: Any) -> Any:
    return jax.device_put(tree, jax.memory.Space.Host) if plan.host else tree

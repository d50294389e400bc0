"""Checkpointed backpropagation stores m states instead of T and recomputes the others.

    1..T = head, then n leaves of K steps       head: the T mod K steps that are left over     (M1)

    forward    over the leaves in order, keeping the states that the schedule names            (M2)

    backward   the actions of `schedule`, one after the other:
               current state ← a kept one, or as it is                                         (M3)
               a slot ← the current state, or nothing                                          (M4)
               advance: current state ← the state one leaf on                                  (M5)
               reverse: run the leaf again and go back through it, by the chunk's three
                        phases of `full`; dE/dW gains its part, dE/ds goes on                  (M6)

The schedule is an array of integers, which one jax.lax.scan executes. So the compiled program holds one
advance and one reversal of a leaf (and of the head), however long the sequence is.

In `value_and_grad` a leaf is K steps of all layers, of the readout and of the loss, and the backward pass
does all actions, also those of (M2). In `unroll` h_1..h_T are outputs, so they are stored in any case.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import flag, or_none, size
from jax_bptt.base.trees import differentiable, zeros_like
from jax_bptt.base.types import ArrayTree, State, Tree
from jax_bptt.engine import chunks, phases
from jax_bptt.engine.chunks import take_steps
from jax_bptt.engine.engine import Runnable
from jax_bptt.engine.run import Cotangents, Kept, Outputs, Run
from jax_bptt.engine.sequence import Sequence
from jax_bptt.gradients import host_memory
from jax_bptt.gradients.method import (
    Carry,
    Data,
    GradientMethod,
    Recurrence,
    Reversed,
    Streamed,
    Weights,
    check_on_one_device,
)
from jax_bptt.gradients.schedule import Action, schedule


@cached(slots=or_none(size), chunk=or_none(size), host=flag)
def checkpointed(slots: int | None = None, chunk: int | None = None, host: bool = False) -> GradientMethod:
    """This method computes the exact gradient in little memory: it stores at most m states.

    t(n, m) advances over a leaf, the fewest that are possible, then one run of each to reverse it

    A leaf is a chunk of K steps, and n = T/K is the number of leaves. The method takes T + K t(n, m) steps
    forward and T backward: with m = n, the default, each leaf runs forward twice; with m = 1 some n²/2
    leaves run forward. It stores m states, O(m·B·H), and one leaf as in `full`, O(K·B·G·H).

    `unroll` additionally holds the outputs and their cotangents, O(T·B·H). `value_and_grad` holds nothing
    more that grows with T, unless a layer reads backwards, the readout is of the `last` step only, or the
    loss is a function of all outputs; in these cases it runs one layer after the other, like `unroll`.

    Args:
      slots: m, the number of states that are stored, s_0 among them; None stores one state for each leaf.
      chunk: K, the number of steps in a leaf; None stands for √T, or for fewer steps if slots are given and
        `chunks.chunk_of` chooses fewer, or if a divisor of T lies not far below.
      host: whether the stored states lie in the memory of the host instead of the accelerator. The gradient
        then has no derivative of its own (hessian, grad of grad).

    Returns:
      The `GradientMethod`; the same object for the same arguments.

    Raises:
      ValueError: slots or chunk is below 1, or host is not a bool.

    Reference: Griewank & Walther 2000, Algorithm 799: Revolve; Gruslys et al. 2016, Memory-efficient
    backpropagation through time; Chen et al. 2016, Training deep nets with sublinear memory cost (√T).

    >>> checkpointed(slots=16), checkpointed()
    (checkpointed(slots=16), checkpointed())
    """
    plan_of = functools.partial(_plan, slots, chunk, host)
    return GradientMethod(
        "checkpointed",
        functools.partial(_forward, plan_of),
        functools.partial(_backward, plan_of),
        functools.partial(_stream, plan_of),
        functools.partial(check_on_one_device, "jb.checkpointed"),
    )


_KEEP, _STEP = map(Action._fields.index, ("keep", "step"))  # columns of the array of actions


class _Plan(NamedTuple):
    """A plan holds K, the steps of the head, m, whether states lie on the host, and the actions, [A, 4]."""

    leaf: int
    head: int
    slots: int
    host: bool
    actions: np.ndarray

    @property
    def leaves(self) -> int:
        """This is n, the number of leaves; the first n − 1 actions are the forward pass (M2)."""
        return int(self.actions[:, _STEP].max()) + 1

    def head_of(self, data: Tree) -> Tree:
        """The head is the first `head` steps of the data."""
        return take_steps(data, 0, self.head)

    def leaf_of(self, data: Tree, number: int | Array) -> Tree:
        """These are the steps of one leaf, counted from 0 behind the head."""
        return take_steps(data, self.head + number * self.leaf, self.leaf)


_PlanOf = Callable[[int, int], _Plan]  # of T, and of the steps in a chunk of `full`


def _plan(slots: int | None, chunk: int | None, host: bool, steps: int, chunk_of_full: int) -> _Plan:
    steps = chunks.fixed(steps)
    about_sqrt = max(1, math.isqrt(steps))
    if slots is not None:
        about_sqrt = min(about_sqrt, chunk_of_full)
    leaf = min(steps, chunk or chunks.divisor_up_to(about_sqrt, steps))
    leaves, head = divmod(steps, leaf)  # (M1)
    kept = min(leaves, slots or leaves)
    return _Plan(leaf, head, kept, host, _actions(leaves, kept))


@cached()
def _actions(leaves: int, kept: int) -> np.ndarray:
    return np.array(schedule(leaves, kept), np.int32)


class _Slots(NamedTuple):
    """The forward pass of `unroll` stores these states for the backward pass."""

    current: State  # the state before the last leaf
    kept: State  # the states in the slots, leaves [m + 1, ..., H]


def _forward(plan_of: _PlanOf, cell: Runnable, run: Run) -> tuple[Outputs, Kept]:
    plan, ys = plan_of(run.sequence.steps, chunks.chunk_of_run(run)), []
    s = run.carry
    if plan.head:
        head = run._replace(sequence=plan.head_of(run.sequence))
        of_head = phases.outputs(cell, phases.forward(cell, head))
        s = of_head.carry
        ys.append(of_head.ys)

    def over_leaf(state: tuple[State, _Slots], at: tuple[Array, Array]) -> tuple[tuple[State, _Slots], Any]:
        s, (_, slots) = state
        number, keep = at
        here = run._replace(carry=s, sequence=plan.leaf_of(run.sequence, number))
        of_leaf = phases.outputs(cell, phases.forward(cell, here))
        return (of_leaf.carry, _Slots(s, _put(plan, slots, keep, s))), of_leaf.ys  # (M2)

    # actions 0 to n − 2 advance; action n − 1 reverses the last leaf, and its state is stored here too
    ats = jnp.arange(plan.leaves), jnp.asarray(plan.actions[: plan.leaves, _KEEP])
    (last, slots), of_leaves = jax.lax.scan(over_leaf, (s, _Slots(s, _empty_slots(plan, s))), ats)
    ys.append(_joined(of_leaves))
    return Outputs(last, _concatenated(ys)), Kept(run, None, extra=slots)


def _backward(plan_of: _PlanOf, cell: Runnable, kept: Kept, d: Outputs) -> Cotangents:
    run = kept.run
    assert isinstance(kept.extra, _Slots)
    plan = plan_of(run.sequence.steps, chunks.chunk_of_run(run))

    def run_of(weights: Weights, s: State, part: Sequence) -> Run:
        params, start = weights
        return Run(params, s, start, part)

    def advance(weights: Weights, s: State, here: tuple[Sequence, ArrayTree]) -> State:
        return phases.forward(cell, run_of(weights, s, here[0])).carry

    def reverse(weights: Weights, s: State, here: tuple[Sequence, ArrayTree], d_s: State) -> Reversed:
        part, d_y = here
        stretch = run_of(weights, s, part)
        forward = phases.forward(cell, stretch)
        found = phases.backward(cell, Kept(stretch, forward.states), Outputs(d_s, d_y))
        out = found.xs, found.starts
        return Reversed(forward.carry, (found.params, found.start), found.carry, out)

    reversal = _Reversal(
        Recurrence(advance, reverse), (run.params, run.start), run.carry, (run.sequence, d.ys)
    )
    actions = plan.actions[plan.leaves - 1 :]  # the forward pass did the actions before these
    done = _execute(plan, actions, reversal, kept.extra, d.carry)
    d_params, d_start = done.d_weights
    of_leaves, *of_head = done.out
    d_xs, d_starts = _concatenated([*of_head, _joined(of_leaves)])
    return Cotangents(d_params, done.d_carry, d_start, d_xs, d_starts)


def _stream(
    plan_of: _PlanOf,
    recurrence: Recurrence,
    weights: Weights,
    carry: Carry,
    sequence: Sequence,
    data: Data,
) -> Streamed:
    chunk_of_full = chunks.chunk_of(sequence.steps, chunks.rows_of_a_step(sequence.rows), weights)
    plan, s = plan_of(sequence.steps, chunk_of_full), carry
    if plan.head:
        s = recurrence.advance(weights, s, plan.head_of(data))
    slots, reversal = _Slots(s, _empty_slots(plan, s)), _Reversal(recurrence, weights, carry, data)
    return _execute(plan, plan.actions, reversal, slots, zeros_like(differentiable(carry)))


class _Reversal(NamedTuple):
    """These values define what is reversed: the recurrence, its weights, its first carry and its data."""

    recurrence: Recurrence
    weights: Weights
    carry: Carry
    data: Data


class _Executed(NamedTuple):
    """These values go from one action to the next."""

    s: Carry  # the current state
    end: Carry  # the state after the last leaf, once it was reversed
    slots: Carry
    outs: ArrayTree  # the `out` of every leaf that was reversed so far, leaves [n, ...]
    d_weights: Weights
    d_carry: Carry


def _execute(
    plan: _Plan, actions: np.ndarray, reversal: _Reversal, slots: _Slots, d_carry: Carry
) -> Streamed:
    """The actions run in order, from the current state and the stored ones; then the head is reversed."""
    recurrence, weights, s_0, data = reversal
    # only shapes: the outputs of all leaves need a place before the first leaf runs
    out = jax.eval_shape(recurrence.reverse, weights, slots.current, plan.leaf_of(data, 0), d_carry).out

    def advance(s: Carry, d_weights: Weights, d_s: Carry, here: Data) -> Reversed:
        # the sums do not change here, and the zeros are overwritten when this leaf is reversed
        return Reversed(recurrence.advance(weights, s, here), d_weights, d_s, zeros_like(out))  # (M5)

    def reverse(s: Carry, d_weights: Weights, d_s: Carry, here: Data) -> Reversed:
        found = recurrence.reverse(weights, s, here, d_s)  # (M6)
        return found._replace(d_weights=chunks.add_to(d_weights, found.d_weights))

    def execute(at: _Executed, action: Array) -> tuple[_Executed, None]:
        act: Any = Action(*action)  # its fields are traced integers
        loaded = _take(plan, at.slots, act.load)
        s = jax.tree.map(lambda z, kept: jnp.where(act.load < 0, z, kept), at.s, loaded)  # (M3)
        slots = _put(plan, at.slots, act.keep, s)  # (M4)
        here = plan.leaf_of(data, act.step)
        found = jax.lax.cond(act.reverse, reverse, advance, s, at.d_weights, at.d_carry, here)
        is_last = act.step == plan.leaves - 1  # reversed first and once only: it gives the final state
        end = jax.tree.map(lambda last, z: jnp.where(is_last, z, last), at.end, found.carry)
        outs = jax.tree.map(lambda z, new: z.at[act.step].set(new), at.outs, found.out)
        return _Executed(found.carry, end, slots, outs, found.d_weights, found.d_carry), None

    s, outs = slots.current, jax.tree.map(lambda z: jnp.zeros_like(z, shape=(plan.leaves, *z.shape)), out)
    begin = _Executed(s, s, slots.kept, outs, chunks.zero_sums(differentiable(weights)), d_carry)
    done, _ = jax.lax.scan(execute, begin, jnp.asarray(actions))
    d_weights, d_carry, outs = done.d_weights, done.d_carry, [done.outs]
    if plan.head:
        found = recurrence.reverse(weights, s_0, plan.head_of(data), d_carry)
        d_weights, d_carry = chunks.add_to(d_weights, found.d_weights), found.d_carry
        outs.append(found.out)
    return Streamed(done.end, chunks.sums_as(d_weights, differentiable(weights)), d_carry, outs)


def _joined(of_leaves: Tree) -> Tree:
    """Arrays [n, K, ...], an entry for each leaf, become arrays [n K, ...]."""
    return jax.tree.map(lambda z: jax.lax.collapse(z, 0, 2), of_leaves)


def _concatenated(parts: list[Tree]) -> Tree:
    """The steps of the parts follow each other."""
    return jax.tree.map(lambda *z: jnp.concatenate(z), *parts)


def _empty_slots(plan: _Plan, like: Tree) -> Tree:
    """There is room for m states and for one more: a state that is not stored is written there."""
    # a copy of the state in each, so that on a mesh they lie where the state does
    slots = jax.tree.map(lambda s: jnp.broadcast_to(s, (plan.slots + 1, *s.shape)), like)
    return jax.tree.map(host_memory.to_host, slots) if plan.host else slots


def _put(plan: _Plan, slots: Tree, keep: Array, s: Tree) -> Tree:
    # a state that is not to be stored goes to the spare slot, so that no branch is needed
    at = jnp.where(keep < 0, plan.slots, keep)
    write = host_memory.write if plan.host else _write
    return jax.tree.map(lambda z, new: write(z, new, at), slots, s)


def _take(plan: _Plan, slots: Tree, load: Array) -> Tree:
    at = jnp.maximum(load, 0)
    read = host_memory.read if plan.host else _read
    return jax.tree.map(lambda z: read(z, at), slots)


def _write(z: Array, new: Array, at: Array) -> Array:
    return jax.lax.dynamic_update_index_in_dim(z, new, at, 0)


def _read(z: Array, at: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(z, at, keepdims=False)

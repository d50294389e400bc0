"""One step outside a sequence runs the loop body of a sequence once, so that both have the same numbers.

    u_t = project(x_t)                   as one of many rows, see `many_rows`                 (ST1)
    s_t = step(s̃_{t−1}, u_t, v_t)        where mask_t, s̃_{t−1} elsewhere                       (ST2)

XLA merges the pointwise operations of a step with what stands around them, and what it merges decides where
a product and a sum are rounded once instead of twice. So (ST2) stands in a loop like that of `loops`. It has
the inputs of two equal steps, ends after the first, and stores s_1. XLA does not know that it ends there; if
it did, it would remove the loop.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.trees import select
from jax_bptt.base.types import State
from jax_bptt.cell.step_cell import AnyCell, Projected
from jax_bptt.engine.loops import begin_of_step
from jax_bptt.engine.many_rows import as_of_many_rows
from jax_bptt.engine.phases import engine_of
from jax_bptt.engine.run import Run
from jax_bptt.engine.sequence import Marks


def one_step(cell: AnyCell, run: Run) -> State:
    """The result is s_1 of a run of one step, leaves [..., H]; its derivative is that of JAX, in any mode."""
    project = functools.partial(engine_of(cell).project, cell)
    u = as_of_many_rows(project, run.params, run.sequence.xs[0])  # (ST1)
    return _advance(cell, run, u)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _advance(cell: AnyCell, run: Run, u: Projected) -> State:
    at = u, jax.tree.map(lambda mark: mark[0], run.sequence.marks)
    both = jax.tree.map(lambda z: jax.lax.optimization_barrier(jnp.stack([z, z])), at)
    steps = jax.lax.optimization_barrier(jnp.ones((), jnp.int32))  # its value is hidden from XLA

    def body(so_far: tuple[Array, State, State]) -> tuple[Array, State, State]:
        t, s, states = so_far
        u, marks = jax.tree.map(lambda z: jax.lax.dynamic_index_in_dim(z, t, keepdims=False), both)
        s = _step(cell, run, s, u, marks)
        states = jax.tree.map(lambda z, s: jax.lax.dynamic_update_index_in_dim(z, s, t, 0), states, s)
        return t + 1, s, states

    begun = jnp.zeros((), jnp.int32), run.carry, jax.tree.map(lambda s: jnp.stack([s, s]), run.carry)
    *_, states = jax.lax.while_loop(lambda so_far: so_far[0] < steps, body, begun)
    s: State = jax.tree.map(lambda z: z[0], states)
    return s


@_advance.defjvp
def _derivative(
    cell: AnyCell, primals: tuple[Run, Projected], tangents: tuple[Run, Projected]
) -> tuple[State, State]:
    def plainly(run: Run, u: Projected) -> State:
        return _step(cell, run, run.carry, u, jax.tree.map(lambda mark: mark[0], run.sequence.marks))

    return _advance(cell, *primals), jax.jvp(plainly, primals, tangents)[1]


def _step(cell: AnyCell, run: Run, s_prev: State, u: Projected, marks: Marks) -> State:
    engine = engine_of(cell)
    s_prev = begin_of_step(marks, run.start, s_prev)
    v = engine.recur(cell, run.params, s_prev)
    s: State = select(marks.mask, engine.step(cell, run.params, s_prev, u, v).state, s_prev)  # (ST2)
    return s

"""Real-time recurrent learning computes the exact gradient forwards in time (Williams & Zipser 1989).

Every row of a batch is treated separately. Let s_t be its state, one vector of S numbers. Let θ be everything
on which the state depends, one vector of C numbers: the parameters, s_0, and the initial carry to which
resets return. The influence P_t = ds_t/dθ, [S, C], runs forward with the state, from P_0 = ds_0/dθ:

    P̃_{t−1} = dstart/dθ where reset_t, 0 where cut_t, P_{t−1} elsewhere                         (R1)
    J_t = ∂s_t/∂s̃_{t−1},   M_t = ∂s_t/∂θ with s̃_{t−1} held fixed                                (R2)
    P_t = J_t P̃_{t−1} + M_t where mask_t, P̃_{t−1} elsewhere                                     (R3)
    dE/dθ = Σ_t G_t P_t + dE/ds_T P_T                                                           (R4)

Here G_t is the direct derivative of the loss by s_t. JAX computes J_t and M_t, by reverse mode through one
step of one row. The hand-derived adjoints are not used, so this method is an independent check of them.

The body of a scan also hands out outputs that are no part of s_t. They are more rows of J_t and M_t; (R3)
gives their derivative by θ, which only the loss of that step reads.

The inputs would be T·I more columns of P_t, and step t would write the columns of x_t. They have a separate
loop, which XLA removes if the program does not use dE/dxs. The same holds for `starts`, the states to which
resets return step by step.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.errors import bad
from jax_bptt.base.trees import (
    common_dtype,
    differentiable,
    from_vector,
    merged,
    select,
    spread,
    to_vector,
    zeros_like,
)
from jax_bptt.base.types import ArrayTree, Mark, State
from jax_bptt.cell.body import Body
from jax_bptt.engine import phases
from jax_bptt.engine.chunks import add_to, sums_as, zero_sums
from jax_bptt.engine.devices import reduce_axes, to_local
from jax_bptt.engine.emission import Emission, emission_of
from jax_bptt.engine.engine import Runnable, Stepped
from jax_bptt.engine.loops import begin_of_step
from jax_bptt.engine.run import Cotangents, Kept, Outputs, Run
from jax_bptt.engine.sequence import Sequence
from jax_bptt.gradients.method import GradientMethod, check_on_one_device


class Influenced(NamedTuple):
    """These are the state of one row and its influence.

    Attributes:
      carry: s_t, leaves [H] or as the cell has them.
      influence: P_t = ds_t/dθ, [S, C].
      own: the derivative by θ of the O outputs that are no part of s_t, [O, C]; None between two steps.
    """

    carry: State
    influence: Array
    own: Array | None = None


class Direct(NamedTuple):
    """These are the derivatives of s_t and of the O other outputs of a step, with s̃_{t−1} held fixed.

    Attributes:
      by_params: those by params, [S + O, P].
      by_x: those by x_t, [S + O, I].
    """

    by_params: Array
    by_x: Array


OfTheta: TypeAlias = Callable[[Array, Direct], Array]  # (t, the derivatives of step t) -> M_t [S + O, C]
OfStart: TypeAlias = Callable[[Array], Array]  # t -> d/dθ of the state that a reset at step t goes back to


@cached()
def rtrl() -> GradientMethod:
    """This method computes the exact gradient forwards in time, without a backward pass.

    P_t = (ds_t/ds_{t−1}) P_{t−1} + ∂s_t/∂θ,   dE/dθ = Σ_t G_t P_t

    For a carry of S numbers and P parameters it takes O(T·B·S²·P) time, where `full` takes O(T·B·P). Beside
    inputs and outputs it takes O(B·S·P) memory, whatever T is. So it suits small networks with long
    sequences, and streams without an end (`rtrl_step`). The gradient by xs, which layers above the first
    one need, has T·I columns instead of P. The rows of a batch must not depend on each other. Where the
    influence overflows, the gradient is NaN, even if no loss depends on that step. It works in reverse
    mode, as `full`.

    Returns:
      The `GradientMethod`.

    Reference: Williams & Zipser 1989, A learning algorithm for continually running fully recurrent
    neural networks.

    >>> rtrl()
    rtrl()
    """
    return GradientMethod("rtrl", _forward, _backward, check=_check)


def advance(
    cell: Runnable,
    run: Run,
    d_start_d_theta: Array | None,
    before: Influenced,
    at_t: Sequence,
    of_theta: Callable[[Direct], Array],
) -> Influenced:
    """This advances the state and the influence of one row by one step.

    P_t = J_t P̃_{t−1} + M_t   (R1-R3)

    Args:
      cell: the cell.
      run: its parameters, and the initial carry of one row for resets, leaves [H] or as the cell has them.
      d_start_d_theta: dstart/dθ, [S, C]; None without resets.
      before: s_{t−1} and P_{t−1}.
      at_t: x_t [I] and the marks, bool [] or None.
      of_theta: a function from the derivatives of the step to M_t, [S + O, C].

    Returns:
      s_t, P_t, and the derivatives of the other outputs.
    """
    influence, numbers = before.influence, differentiable(before.carry)
    if at_t.cut is not None:
        influence = select(_of_numbers(at_t.cut, numbers), zeros_like(influence), influence)  # (R1)
    if at_t.reset is not None:
        assert d_start_d_theta is not None  # a run with resets has it
        influence = select(_of_numbers(at_t.reset, numbers), d_start_d_theta, influence)  # (R1)
    s_prev = begin_of_step(at_t.marks, run.start, before.carry)
    stepped, j, direct = _linearised(cell, run.params, s_prev, at_t.xs)
    through, own = jnp.split(j @ influence + of_theta(direct), [len(influence)])  # (R3)
    through = select(_of_numbers(at_t.mask, numbers), through, influence)  # (R3)
    own = select(_of_numbers(at_t.mask, differentiable(stepped.own)), own, zeros_like(own))
    return Influenced(select(at_t.mask, stepped.state, s_prev), through, own)


def _of_numbers(mark: Mark, tree: ArrayTree) -> Mark:
    """A mark of rows becomes one for each number of a tree, in the order of its vector."""
    return None if mark is None else to_vector(spread(mark, tree), dtype=mark.dtype)


def loss_term(emission: Emission, d_y: ArrayTree, at_t: Influenced) -> Array:
    """The derivative of the loss by what the step hands out gives G_t P_t of one row, [C]."""
    dtype = at_t.influence.dtype
    by_state = emission.to_state(zeros_like(differentiable(at_t.carry)), d_y)
    found: Array = to_vector(by_state, dtype=dtype) @ at_t.influence
    return found if at_t.own is None else found + to_vector(emission.to_own(d_y), dtype=dtype) @ at_t.own


def _linearised(
    cell: Runnable, params: ArrayTree, s_prev: State, x: ArrayTree
) -> tuple[Stepped, Array, Direct]:
    """One step of one row gives s_t and its outputs, J_t [S + O, S], and the derivatives by params and x."""
    engine = phases.engine_of(cell)
    point = tuple(map(differentiable, (params, s_prev, x)))

    def step(*vectors: Array) -> tuple[Array, Stepped]:
        p, s, x_t = (
            merged(from_vector(z, like), given)
            for z, like, given in zip(vectors, point, (params, s_prev, x), strict=True)
        )
        u, v = engine.project(cell, p, x_t), engine.recur(cell, p, s)
        stepped = engine.step(cell, p, s, u, v)
        return jnp.concatenate([to_vector(differentiable(z), dtype=dtype) for z in stepped]), stepped

    dtype = common_dtype(point)
    at = (to_vector(z, dtype=dtype) for z in point)
    (by_params, j, by_x), stepped = jax.jacrev(step, (0, 1, 2), has_aux=True)(*at)  # (R2)
    return stepped, j, Direct(by_params, by_x)


def _check(cell: Runnable, run: Run) -> None:
    check_on_one_device("jb.rtrl", cell, run)
    if isinstance(cell, Body) and reduce_axes((run.carry, run.sequence), run.params):
        came = "rows that differ from device to device, and weights that do not"
        fix = "use jb.full() or jb.truncated(h)"
        raise bad("gradient", "weights of each device, for jb.rtrl of a scan", came, fix)
    if any(jnp.iscomplexobj(z) for z in jax.tree.leaves(run)):
        raise bad("gradient", "real numbers for jb.rtrl", "complex numbers", "use jb.full()")


def _forward(cell: Runnable, run: Run) -> tuple[Outputs, Kept]:
    return phases.outputs(cell, phases.forward(cell, run)), Kept(run, None)


def _backward(cell: Runnable, kept: Kept, d: Outputs) -> Cotangents:
    back = functools.partial(_of_a_row, cell)
    for _ in kept.run.sequence.rows:  # time is first in the sequence and in G
        axes: Any = Run(None, 0, 0, sequence=1), Outputs(0, ys=1)  # type: ignore[arg-type]
        of_rows: Any = Cotangents(0, 0, 0, xs=1, starts=1)  # type: ignore[arg-type]
        back = jax.vmap(back, in_axes=axes, out_axes=of_rows)
    with jax.named_scope("bptt/rtrl"):
        found = back(kept.run, d)
    like = differentiable(kept.run.params)
    by_row = found.params.reshape(math.prod(found.params.shape[:-1]), found.params.shape[-1])
    return found._replace(params=from_vector(by_row.sum(0), like))


def _of_a_row(cell: Runnable, run: Run, d: Outputs) -> Cotangents:
    """These are the gradients of one row, with dE/dparams as a vector [P]."""
    marks = run.sequence.marks
    s_0, first_x = differentiable((run.carry, jax.tree.map(lambda z: z[0], run.sequence.xs)))
    z_0 = to_vector(s_0, dtype=common_dtype(differentiable((run.params, s_0, first_x))))
    p, s, inputs = (to_vector(differentiable(z)).size for z in (run.params, run.carry, first_x))
    steps, one_start = run.sequence.steps, run.start is not None
    columns = p + s + (s if one_start else 0)  # params, s_0, start
    # s_0 and the states of resets do not depend on what later steps read
    no_influence = functools.partial(jnp.zeros_like, z_0)
    follow = functools.partial(_follow, cell, run, d)

    def of_params(t: Array, direct: Direct) -> Array:
        return jnp.pad(direct.by_params, ((0, 0), (0, columns - p)))

    def at_columns(t: Array, matrix: Array, width: int) -> Array:
        everywhere = no_influence(shape=(len(matrix), steps * width))
        return jax.lax.dynamic_update_slice_in_dim(everywhere, matrix.astype(z_0.dtype), t * width, axis=1)

    def of_xs(t: Array, direct: Direct) -> Array:
        return at_columns(t, direct.by_x, inputs)

    def nothing(t: Array, direct: Direct) -> Array:
        return no_influence(shape=(len(direct.by_x), steps * s))

    # ds_0/dθ and dstart/dθ: the identity in the columns of s_0 and of start, which follow those of params
    at_s_0, at_start = (to_local(jnp.eye(s, columns, k, dtype=z_0.dtype), z_0) for k in (p, p + s))
    d_params, d_s_0, d_start = jnp.split(follow(at_s_0, lambda t: at_start, of_params), (p, p + s))
    no_x = no_influence(shape=(s, steps * inputs))
    d_xs = follow(no_x, lambda t: no_x, of_xs).reshape(steps, inputs)
    d_starts = None
    if marks.starts is not None:
        one = to_local(jnp.eye(s, dtype=z_0.dtype), z_0)
        by_starts = follow(no_influence(shape=(s, steps * s)), lambda t: at_columns(t, one, s), nothing)
        d_starts = from_vector(by_starts.reshape(steps, s), differentiable(marks.starts))
    like = differentiable(run.sequence.xs)
    d_of_start = from_vector(d_start, s_0) if one_start else None
    return Cotangents(d_params, from_vector(d_s_0, s_0), d_of_start, from_vector(d_xs, like), d_starts)


def _follow(
    cell: Runnable, run: Run, d: Outputs, d_carry_d_theta: Array, of_start: OfStart, of_theta: OfTheta
) -> Array:
    """The forward loop gives dE/dθ of one row, [C], from P_0 = ds_0/dθ, dstart/dθ and M_t."""
    emission, dtype = emission_of(cell), d_carry_d_theta.dtype

    def step(
        state: tuple[Influenced, Array], at_t: tuple[Array, Sequence, ArrayTree]
    ) -> tuple[tuple[Influenced, Array], None]:
        before, d_theta = state
        t, marked, d_y = at_t
        after = advance(cell, run, of_start(t), before, marked, functools.partial(of_theta, t))
        d_theta = add_to(d_theta, loss_term(emission, d_y, after))  # (R4)
        return (after._replace(own=None), d_theta), None

    begin = Influenced(run.carry, d_carry_d_theta), zero_sums(d_carry_d_theta[0])
    every_t = jnp.arange(run.sequence.steps), run.sequence, d.ys
    (end, d_theta), _ = jax.lax.scan(step, begin, every_t)
    d_theta = add_to(d_theta, to_vector(d.carry, dtype=dtype) @ end.influence)  # (R4)
    return sums_as(d_theta, d_carry_d_theta[0])

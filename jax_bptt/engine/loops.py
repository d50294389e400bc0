"""These are the two time loops of Backpropagation Through Time, for every cell, mask, reset and cut.

    forward    s_t = step(s̃_{t−1}, x_t) where mask_t, s̃_{t−1} elsewhere                       (F4)
               s̃_{t−1} is s_{t−1}, or where reset_t the state to which a reset goes back (`sequence`)

The loss E depends on what the steps hand out (h_1..h_T of a cell, see `emission`) and on the final state
s_T. Let G_t be its direct derivative by s_t, and λ_t = dE/ds_t the total one. Unrolled in time, the network
is a deep network whose layers share their weights, so the chain rule gives a recursion backwards in t:

    sweep      λ_T = G_T + dE/ds_T                          sequential, linear in λ           (S1)
               λ̃_{t−1} = (ds_t/ds̃_{t−1})ᵀ λ_t where mask_t, λ_t elsewhere                      (S2)
               λ_{t−1} = G_{t−1} + λ̃_{t−1}, without it where reset_t or cut_t;
                                            λ̃_{t−1} times a factor where a method has one     (S3)
               dE/dstart = Σ_t λ̃_{t−1} where reset_t        into the initial carry; with a
                                                            start of each step there is no sum   (S4)
               a step where mask is False read no weight: its λ_t counts as 0                 (S5)

For a sequence without masks, resets and cuts the compiled loops have no operations for them. The work
before, between and after the loops is in `phases`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.trees import differentiable, merged, plus, select, times_rows, zeros_like
from jax_bptt.base.types import ArrayTree, S, Slopes, State
from jax_bptt.cell.step_cell import Projected
from jax_bptt.engine.emission import emission_of
from jax_bptt.engine.engine import AnyEngine, Forward, Runnable, Swept, Transform
from jax_bptt.engine.over_steps import over_steps
from jax_bptt.engine.run import Outputs, Run
from jax_bptt.engine.sequence import Marks


class StepBack(NamedTuple):
    """This is the result of one step of the sweep, the backward loop.

    Attributes:
      carry: λ_{t−1} − G_{t−1}, leaves [..., H].
      start: λ̃_{t−1} where reset, zero elsewhere, leaves [..., H]; None without resets.
      lam: λ_t where mask, zero elsewhere, leaves [..., H].
    """

    carry: State
    start: State | None
    lam: State


# takes λ_t, the derivatives by the outputs that are no part of s_t, a_t and the marks at t
StepBackOf: TypeAlias = Callable[[State, ArrayTree, Slopes, Marks], StepBack]


def scan_forward(engine: AnyEngine, cell: Runnable, run: Run, u: Projected, keep_slopes: bool) -> Forward:
    """A loop computes the states of every step, and the slopes a_1..a_T if they are asked for.

    s_t = step(s̃_{t−1}, x_t)   (F4)

    Args:
      engine: the functions of a step.
      cell: the cell.
      run: parameters, s_0, the initial carry and the marks.
      u: u_1..u_T, the part of each step that reads only x_t.
      keep_slopes: whether a_1..a_T are stored.

    Returns:
      s_T, s_1..s_T, the outputs that are no part of them, and a_1..a_T.
    """
    OfStep: TypeAlias = tuple[State, ArrayTree, Slopes | None]

    def step(s_prev: State, at_t: tuple[Projected, Marks]) -> tuple[State, OfStep]:
        u, marks = at_t
        s_prev = begin_of_step(marks, run.start, s_prev)
        v = engine.recur(cell, run.params, s_prev)
        stepped = engine.step(cell, run.params, s_prev, u, v)
        s = select(marks.mask, stepped.state, s_prev)  # (F4)
        own = select(marks.mask, stepped.own, zeros_like(stepped.own))
        return s, (s, own, engine.linearise(cell, run.params, s_prev, u, v, s) if keep_slopes else None)

    last, (states, own, slopes) = over_steps(cell, step, run.carry, (u, run.sequence.marks))
    return Forward(last, states, own, slopes)


def scan_backward(
    engine: AnyEngine, cell: Runnable, run: Run, slopes: Slopes, d: Outputs, transform: Transform | None
) -> Swept:
    """A loop computes λ backwards through time.

    λ_{t−1} = G_{t−1} + (ds_t/ds_{t−1})ᵀ λ_t   (S1-S5)

    Args:
      engine: the functions of a step.
      cell: the cell.
      run: parameters and marks; s_0 and the inputs are not read.
      slopes: a_1..a_T.
      d: dE/ds_T and dE/dy_1..dE/dy_T, by what the steps hand out.
      transform: see `step_back_of`.

    Returns:
      dE/ds_0, dE/dstart or dE/dstarts, and λ_1..λ_T.
    """
    step_back, emission = step_back_of(engine, cell, run.params, transform), emission_of(cell)
    one_start = run.start is not None
    Towards: TypeAlias = tuple[State, State | None]

    def step(
        towards: Towards, at_t: tuple[ArrayTree, Slopes, Marks]
    ) -> tuple[Towards, tuple[State, State | None]]:
        d_s, d_start = towards
        d_y, a, marks = at_t
        lam = emission.to_state(d_s, d_y)  # (S1), and G of (S3)
        found = step_back(lam, emission.to_own(d_y), a, marks)
        if one_start:
            return (found.carry, plus(d_start, found.start)), (found.lam, None)  # (S4)
        return (found.carry, None), (found.lam, found.start)  # (S4)

    towards: Towards = d.carry, zeros_like(d.carry) if one_start else None
    at = d.ys, slopes, run.sequence.marks
    (d_carry, d_start), (lam, d_starts) = over_steps(cell, step, towards, at, reverse=True)
    return Swept(d_carry, d_start, d_starts, lam)


def step_back_of(
    engine: AnyEngine, cell: Runnable, params: ArrayTree, transform: Transform | None = None
) -> StepBackOf:
    """The result is one step of the sweep, as a function of λ_t, d_own, a_t and the marks at t.

    Args:
      engine, cell, params: they define the step.
      transform: changes λ̃ before step t − 1 gets it; None for no change. See `artbp` and `clipped`.

    Returns:
      (λ_t, d_own, a_t, marks at t) -> `StepBack`, where d_own are the derivatives of E by the outputs that
      are no part of s_t, () for a cell. Values that all steps share are computed here, before the loop.
    """
    prepared = engine.before_sweep(cell, params)

    def step_back(lam: State, d_own: ArrayTree, a: Slopes, marks: Marks) -> StepBack:
        lam_step, d_own = select(marks.mask, (lam, d_own), zeros_like((lam, d_own)))  # (S5)
        back = engine.backward_step(cell, params, prepared, a, lam_step, d_own)
        lam_prev = select(marks.mask, back, lam)  # (S2)
        d_start = None
        # at a reset the gradient goes to the initial carry, at a cut it ends
        if marks.reset is not None:
            d_start = select(marks.reset, lam_prev, zeros_like(lam_prev))
            lam_prev = select(marks.reset, zeros_like(lam_prev), lam_prev)  # (S3)
        if marks.cut is not None:
            lam_prev = select(marks.cut, zeros_like(lam_prev), lam_prev)  # (S3)
        if marks.factor is not None:
            lam_prev = times_rows(marks.factor, lam_prev)  # (S3)
        return StepBack(lam_prev if transform is None else transform(lam_prev), d_start, lam_step)

    return step_back


def begin_of_step(marks: Marks, start: S | None, s_prev: S) -> S:
    """s̃_{t−1} is the initial carry or start_t where reset, s_{t−1} elsewhere, and a constant where cut.

    The factor and stop_gradient matter only if JAX differentiates the passes themselves, as for a Hessian.
    """
    if marks.factor is not None:
        s_prev = _with_factor(marks.factor, s_prev)
    if marks.cut is not None:
        s_prev = select(marks.cut, jax.lax.stop_gradient(s_prev), s_prev)
    if marks.reset is not None:
        back_to: Any = start if marks.starts is None else marks.starts
        s_prev = select(marks.reset, back_to, s_prev)
    return s_prev


def _with_factor(factor: Array, s: S) -> S:
    """This is s, but its derivative is multiplied by the factor of each row."""

    def zero(z: Array) -> Array:  # with the derivative of z; infinity minus infinity would be NaN
        return jnp.where(jnp.isfinite(z), z - jax.lax.stop_gradient(z), jnp.zeros_like(z))

    numbers = differentiable(s)
    return merged(plus(numbers, times_rows(factor - 1, jax.tree.map(zero, numbers))), s)

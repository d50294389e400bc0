"""A backward pass has three phases; they follow a forward pass over the same stretch of steps.

    forward    s_1..s_T                                     sequential                  `loops`
    linearise  a_t, the derivative of the step at every t   parallel in t               `pointwise`
    sweep      λ_T..λ_1                                     sequential, linear in λ     `loops`
    contract   dE/dW = Σ_t (∂s_t/∂W)ᵀ λ_t, one product for each matrix, parallel in t   `pointwise`

A stretch is the whole sequence or a chunk of it; the gradient methods choose the stretches.
"""

from __future__ import annotations

import functools
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp

from jax_bptt.base.trees import select, zeros_like
from jax_bptt.base.types import ArrayTree, Slopes, State
from jax_bptt.cell.body import Body
from jax_bptt.cell.cell import Cell
from jax_bptt.engine import loops
from jax_bptt.engine.bodywise import BODYWISE
from jax_bptt.engine.emission import emission_of
from jax_bptt.engine.engine import AnyEngine, Forward, Runnable, Swept, Transform
from jax_bptt.engine.pointwise import POINTWISE
from jax_bptt.engine.run import Cotangents, Kept, Outputs, Run
from jax_bptt.engine.stepwise import STEPWISE


def engine_of(cell: Runnable) -> AnyEngine:
    """A cell runs on its own engine if it has one, else on the engine of its kind."""
    if cell.engine is not None:
        return cell.engine  # type: ignore[return-value]
    if isinstance(cell, Body):
        return BODYWISE
    return POINTWISE if isinstance(cell, Cell) else STEPWISE


def is_pointwise(cell: Runnable) -> TypeGuard[Cell[Any, Any]]:
    """Is the step of this cell pointwise over units?"""
    return engine_of(cell).pointwise


def forward(cell: Runnable, run: Run, keep_slopes: bool = False) -> Forward:
    """The forward pass computes the states of every step; with keep_slopes it does phase 1 as well.

    s_t = step(s̃_{t−1}, x_t)

    Args:
      cell: the cell.
      run: its parameters, s_0, the initial carry, x_1..x_T and the marks.
      keep_slopes: whether a_1..a_T are computed and stored.

    Returns:
      s_T, leaves [..., H]; s_1..s_T, leaves [T, ..., H]; the outputs that are no part of them; a_1..a_T
      or None.
    """
    engine = engine_of(cell)
    with jax.named_scope("bptt/forward"):
        u = engine.project(cell, run.params, run.sequence.xs)
        return engine.forward_loop(engine, cell, run, u, keep_slopes)


def previous(run: Run, states: State) -> State:
    """s̃_0..s̃_{T−1} are the states that the steps start from, leaves [T, ..., H]; states are s_1..s_T."""
    shifted = jax.tree.map(lambda s_0, s: jnp.concatenate([s_0[None], s[:-1]]), run.carry, states)
    every_t = jax.tree.map(lambda s_0: s_0[None], run.start)
    return loops.begin_of_step(run.sequence.marks, every_t, shifted)


def linearise(cell: Runnable, run: Run, s_prev: State, states: State) -> Slopes:
    """Phase 1 computes the derivative of the step at every t.

    Args:
      cell: the cell.
      run: its parameters, x_1..x_T and the marks.
      s_prev: s̃_0..s̃_{T−1} from `previous`, leaves [T, ..., H].
      states: s_1..s_T, leaves [T, ..., H].

    Returns:
      a_1..a_T, leaves [T, ...].
    """
    engine = engine_of(cell)
    with jax.named_scope("bptt/linearise"):
        u = engine.project(cell, run.params, run.sequence.xs)
        # every s̃_{t−1} is known here, so the products of all steps are one product
        v = engine.recur(cell, run.params, s_prev)
        every_t = engine.at_once(cell, functools.partial(engine.linearise, cell, run.params))
        slopes: Slopes = every_t(s_prev, u, v, states)
        return slopes


def sweep(cell: Runnable, run: Run, slopes: Slopes, d: Outputs, transform: Transform | None = None) -> Swept:
    """Phase 2 computes λ backwards through time.

    λ_{t−1} = G_{t−1} + (ds_t/ds_{t−1})ᵀ λ_t

    Args:
      cell: the cell.
      run: its parameters and the marks.
      slopes: a_1..a_T from `linearise`.
      d: dE/ds_T, leaves [..., H], and dE/dy_1..dE/dy_T, by what the steps hand out.
      transform: see `loops.step_back_of`.

    Returns:
      dE/ds_0, dE/dstart (None without resets) and λ_1..λ_T, see `Swept`.
    """
    engine = engine_of(cell)
    with jax.named_scope("bptt/sweep"):
        return engine.backward_loop(engine, cell, run, slopes, d, transform)


def contract(
    cell: Runnable, run: Run, s_prev: State, slopes: Slopes, lam: State, d_own: ArrayTree = ()
) -> tuple[Any, Any]:
    """Phase 3 is the summed chain rule, with one product for each matrix.

    dE/dW_h = Σ_t h_{t−1}ᵀ δv_t,   dE/dW_x = Σ_t x_tᵀ δu_t

    Args:
      cell: the cell.
      run: its parameters and x_1..x_T.
      s_prev: s̃_0..s̃_{T−1} from `previous`, leaves [T, ..., H].
      slopes: a_1..a_T from `linearise`.
      lam: λ_1..λ_T from `sweep`.
      d_own: from `derivatives_by_own`; () for a cell.

    Returns:
      dE/dparams, like params, and dE/dx_1..dE/dx_T, [T, ..., I].
    """
    with jax.named_scope("bptt/contract"):
        return engine_of(cell).contract(cell, run.params, s_prev, run.sequence.xs, slopes, lam, d_own)


def own_of(cell: Runnable, run: Run, states: State) -> ArrayTree:
    """The outputs that are no part of the states s_1..s_T are computed from them, for all t at once."""
    engine, s_prev = engine_of(cell), previous(run, states)
    u, v = engine.project(cell, run.params, run.sequence.xs), engine.recur(cell, run.params, s_prev)
    own = engine.at_once(cell, functools.partial(engine.step, cell, run.params))(s_prev, u, v).own
    return select(run.sequence.mask, own, zeros_like(own))


def derivatives_by_own(cell: Runnable, run: Run, d: Outputs) -> ArrayTree:
    """These are the derivatives of E by the outputs that are no part of a state, zero where mask is False."""
    d_own = emission_of(cell).to_own(d.ys)
    return select(run.sequence.mask, d_own, zeros_like(d_own))


def outputs(cell: Runnable, found: Forward) -> Outputs:
    """The outputs of a run are its last state and what its steps hand out."""
    return Outputs(found.carry, emission_of(cell).read(found.states, found.own))


def backward(cell: Runnable, kept: Kept, d: Outputs, transform: Transform | None = None) -> Cotangents:
    """The three phases run over one stretch of steps.

    Args:
      cell: the cell.
      kept: the stretch and its states; its slopes, or None to recompute them.
      d: dE/ds_T and dE/dy_1..dE/dy_T of the stretch.
      transform: see `loops.step_back_of`.

    Returns:
      dE/dparams, dE/ds_0, dE/dstart or dE/dstarts, and dE/dxs of the stretch.
    """
    run, states = kept.run, kept.states
    assert states is not None  # a method that stores no states recomputes them first
    s_prev = previous(run, states)
    slopes = linearise(cell, run, s_prev, states) if kept.slopes is None else kept.slopes
    swept = sweep(cell, run, slopes, d, transform)
    d_params, d_xs = contract(cell, run, s_prev, slopes, swept.lam, derivatives_by_own(cell, run, d))
    return Cotangents(d_params, swept.carry, swept.start, d_xs, swept.starts)


def backward_steps(
    cell: Runnable, params: ArrayTree, slopes: Slopes, lam: State, d_own: ArrayTree = None
) -> State:
    """(ds_t/ds̃_{t−1})ᵀ λ_t is computed for all t at once, leaves [T, ..., H]; marks are not read.

    d_own is as for `contract`; None stands for zeros.
    """
    engine = engine_of(cell)
    prepared = engine.before_sweep(cell, params)
    one_step = functools.partial(engine.backward_step, cell, params, prepared)
    back: State = engine.at_once(cell, one_step)(slopes, lam, d_own)
    return back

"""The engine of step cells has the same functions as the engine in `pointwise`.

The step is mapped over rows, and the author of the step decides about the products inside it. The engine
computes the gradient of the weights once, for all t together, and not at every step:

    sweep      (ds_t/ds̃_{t−1})ᵀ λ_t                     by the carry alone, in the loop        (S8)
    contract   dE/dparams = (∂(s_1..s_T)/∂params)ᵀ (λ_1..λ_T), every s̃_{t−1} held fixed         (C6)
               dE/dxs     = (∂(s_1..s_T)/∂xs)ᵀ (λ_1..λ_T)                                      (C7)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
from jax import Array

from jax_bptt.base.trees import differentiable, vmap_leading
from jax_bptt.base.types import ArrayTree, S, Slopes, State
from jax_bptt.cell.step_cell import Projected, StepCell
from jax_bptt.engine.engine import Engine, Stepped
from jax_bptt.engine.loops import scan_backward, scan_forward

AnyStepCell: TypeAlias = StepCell[Any, Any]


def _with(cell: AnyStepCell, f: Callable[..., Any], params: ArrayTree) -> Callable[..., Any]:
    """A function of the cell is given its parameters, and the dtype of its products if it takes one."""
    return (
        functools.partial(f, params, dtype=cell.dtype) if cell.takes_dtype else functools.partial(f, params)
    )


def _project(cell: AnyStepCell, params: ArrayTree, xs: Array) -> Projected:
    """u_1..u_T, leaves [T, ..., n], are computed from xs [T, ..., I]."""
    return vmap_leading(xs.ndim - 1, _with(cell, cell.project, params))(xs)


def _recur(cell: AnyStepCell, params: ArrayTree, s_prev: State) -> None:
    """The step itself does every product with s̃_{t−1}, so there is nothing to do here."""


def _step(cell: AnyStepCell, params: ArrayTree, s_prev: S, u: Projected, v: None) -> Stepped:
    """s_t is computed from s̃_{t−1} and u_t."""
    return Stepped(vmap_leading(s_prev.h.ndim - 1, _with(cell, cell.step, params))(s_prev, u), ())


def _linearise(
    cell: AnyStepCell, params: ArrayTree, s_prev: State, u: Projected, v: None, s: State
) -> Slopes:
    """a_t is computed from s̃_{t−1}, u_t and s_t."""
    return vmap_leading(s_prev.h.ndim - 1, _with(cell, cell.linearise, params))(s_prev, u, s)


def _before_sweep(cell: AnyStepCell, params: ArrayTree) -> None:
    """A backward step reads only the parameters, so there is nothing to prepare."""


def _backward_step(
    cell: AnyStepCell, params: ArrayTree, prepared: None, a: Slopes, lam: S, d_own: ArrayTree
) -> S:
    """The result is (ds_t/ds̃_{t−1})ᵀ λ_t."""
    back: S = vmap_leading(lam.h.ndim - 1, _with(cell, cell.adjoint, params))(a, lam)  # (S8)
    return back


def _contract(
    cell: AnyStepCell,
    params: ArrayTree,
    s_prev: State,
    xs: Array,
    a: Slopes,
    lam: State,
    d_own: ArrayTree,
) -> tuple[ArrayTree, Array]:
    """dE/dparams and dE/dxs, [T, ..., I], are computed from all steps at once."""
    if cell.contract is not None:
        return _with(cell, cell.contract, params)(s_prev, xs, a, lam)

    # each s̃_{t−1} is held fixed, so the steps do not depend on each other and run in parallel
    def every_t(params: ArrayTree, xs: Array) -> State:
        step = vmap_leading(xs.ndim - 1, _with(cell, cell.step, params))
        states: State = differentiable(step(s_prev, _project(cell, params, xs)))
        return states

    d_params, d_xs = jax.vjp(every_t, params, xs)[1](lam)  # (C6, C7)
    return d_params, d_xs


STEPWISE = Engine(
    pointwise=False,
    project=_project,
    recur=_recur,
    step=_step,
    linearise=_linearise,
    before_sweep=_before_sweep,
    backward_step=_backward_step,
    contract=_contract,
    forward_loop=scan_forward,
    backward_loop=scan_backward,
)

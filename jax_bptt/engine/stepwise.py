"""The engine's part for a cell with any step: the same functions as in `pointwise`.

The step is mapped over rows. Forward mode, layout and products inside it are its own affair; what is
settled here is that its weights are contracted once, for all t together, and not at every step:

    sweep      (ds_t/ds̃_{t−1})ᵀ λ_t                     by the carry alone, in the loop        (S8)
    contract   dE/dparams = (∂(s_1..s_T)/∂params)ᵀ (λ_1..λ_T), every s̃_{t−1} held fixed         (C6)
               dE/dxs     = (∂(s_1..s_T)/∂xs)ᵀ (λ_1..λ_T)                                      (C7)
"""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax import Array

from jax_bptt.cell.step_cell import StepCell
from jax_bptt.engine.sequence import over


def project(cell: StepCell, params: Any, xs: Array) -> Any:
    """u_1..u_T, leaves [T, ..., n], from xs [T, ..., I]."""
    return over(xs.ndim - 1, functools.partial(cell.project, params))(xs)


def recur(cell: StepCell, params: Any, s_prev: Any) -> None:
    """Nothing: what is made of s̃_{t−1} alone is the step's own affair."""


def step(cell: StepCell, params: Any, s_prev: Any, u: Any, v: None) -> Any:
    """s_t from s̃_{t−1} and u_t."""
    return over(s_prev.h.ndim - 1, functools.partial(cell.step, params))(s_prev, u)


def linearise(cell: StepCell, params: Any, s_prev: Any, u: Any, v: None, s: Any) -> Any:
    """a_t from s̃_{t−1}, u_t and s_t."""
    return over(s_prev.h.ndim - 1, functools.partial(cell.linearise, params))(s_prev, u, s)


def before_sweep(cell: StepCell, params: Any) -> Any:
    """Nothing."""
    return None


def backward_step(cell: StepCell, params: Any, nothing: None, a: Any, lam: Any) -> Any:
    """(ds_t/ds̃_{t−1})ᵀ λ_t."""
    return over(lam.h.ndim - 1, functools.partial(cell.adjoint, params))(a, lam)  # (S8)


def contract(cell: StepCell, params: Any, s_prev: Any, xs: Array, a: Any, lam: Any) -> tuple[Any, Array]:
    """dE/dparams and dE/dxs, [T, ..., I], from everything at every t."""
    if cell.contract is not None:
        return cell.contract(params, s_prev, xs, a, lam)

    def every_t(params: Any, xs: Array) -> Any:
        return over(xs.ndim - 1, functools.partial(cell.step, params))(s_prev, project(cell, params, xs))

    return jax.vjp(every_t, params, xs)[1](lam)  # (C6, C7)

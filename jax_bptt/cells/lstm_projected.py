"""The output of a long short-term memory cell is projected to fewer numbers (LSTMP, Sak et al. 2014).

    forward   u_t = x_t W_x (+ b),   v_t = h_{t−1} W_h          W_h is [P, 4H]                  (PF1)
              m_t, c_t = the step of `lstm`, (LF1-LF6)          m_t is what h_t is there, [H]   (PF2)
              h_t = m_t W_p                                     W_p is [H, P]                   (PF3)

m_t feeds nothing but h_t, so it is no part of the state. Let λʰ = dE/dh_t and λᶜ = dE/dc_t:

    adjoint   λᵐ = λʰ W_pᵀ                                                                      (PA1)
              δz, δc_{t−1} = the adjoint of the step for λᵐ and λᶜ, (LA1-LA6)                   (PA2)
              δh_{t−1} = δz W_hᵀ                                                                (PA3)

    contract  dE/dW_p = Σ_t m_tᵀ λʰ_t,   dE/dW_h = Σ_t h_{t−1}ᵀ δz_t                            (PC1)
              dE/dW_x = Σ_t x_tᵀ δz_t,   dE/db = Σ_t δz_t                                       (PC2)
              dE/dx_t = δz_t W_xᵀ                                                               (PC3)

Both loops have two products, because one waits for the other. With P < H they are smaller together than the
one product of a plain LSTM where P (4H + H) < 4 H², that is, P < 0.8 H.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
from jax import Array

from jax_bptt.base.made import by_shape
from jax_bptt.base.trees import with_fields, zeros_like
from jax_bptt.base.types import DType, Gates, PRNGKey, S, Slopes
from jax_bptt.cell.cell import Cell, StepCotangent, without_biases
from jax_bptt.cell.initial_carry import initial_of
from jax_bptt.cell.initializers import orthogonal
from jax_bptt.cell.step_cell import StepCell, step_cell
from jax_bptt.engine.linear_maps import joined, product, split, sum_of_outer_products, sum_over_rows


@by_shape
class ProjectedParams(NamedTuple):
    """These are the parameters of an LSTM with a projection.

    Attributes:
      w_x: [I, 4H].
      w_h: [P, 4H].
      b: [4H].
      w_p: [H, P].
    """

    w_x: Array
    w_h: Array
    b: Array
    w_p: Array


_Core: TypeAlias = Cell[Any, Any]  # the LSTM whose output is projected


class _Slopes(NamedTuple):
    """These are a_t of the core and m_t."""

    core: Slopes
    m: Array


def projected(core: Cell[Any, S], projection: int, carry_type: Callable[..., S]) -> StepCell[Any, S]:
    """`projected` makes the cell of lstm(projection=P).

    Args:
      core: the LSTM without the projection, whose step does not read h; its init makes a w_h [P, 4H].
      projection: P.
      carry_type: NamedTuple class of the state, with the fields h and c.

    Returns:
      The `StepCell`, with `ProjectedParams`; its hidden_size is P.
    """

    def init(key: PRNGKey) -> ProjectedParams:
        plain = core.init(key)
        # ‖λʰ W_pᵀ‖ = ‖λʰ‖ if P ≤ H
        w_p = orthogonal()(jax.random.fold_in(key, 2), (core.hidden_size, projection), plain.w_x.dtype)
        params = ProjectedParams(plain.w_x, plain.w_h, getattr(plain, "b", plain.w_x), w_p)
        return params if hasattr(plain, "b") else without_biases(params)

    cell = step_cell(
        core.input_size,
        projection,
        functools.partial(_step, core),
        init,
        initial_carry=functools.partial(initial_of, carry_type, (projection, core.hidden_size)),
        project=_project,
        linearise=functools.partial(_linearise, core),
        adjoint=functools.partial(_adjoint, core),
        contract=functools.partial(_contract, core),
        gates=core.gate_names,
    )
    return cell._replace(takes_dtype=True)


def _project(params: ProjectedParams, x: Array, *, dtype: DType | None = None) -> Array:
    u = product(x, params.w_x, dtype)
    return u + params.b if hasattr(params, "b") else u  # (PF1)


def _gates(
    core: _Core, params: ProjectedParams, s_prev: Any, u: Array, dtype: DType | None
) -> tuple[Gates, Gates]:
    return split(u, core.gates), split(product(s_prev.h, params.w_h, dtype), core.gates)  # (PF1)


def _step(core: _Core, params: ProjectedParams, s_prev: S, u: Array, *, dtype: DType | None = None) -> S:
    s: S = core.step({}, s_prev, *_gates(core, params, s_prev, u, dtype))  # (PF2)
    return with_fields(s, h=product(s.h, params.w_p, dtype))  # (PF3)


def _linearise(
    core: _Core, params: ProjectedParams, s_prev: S, u: Array, s: S, *, dtype: DType | None = None
) -> _Slopes:
    gates = _gates(core, params, s_prev, u, dtype)
    return _Slopes(core.linearise({}, s_prev, *gates, s), core.step({}, s_prev, *gates).h)  # (PF2)


def _towards_gates(
    core: _Core, params: ProjectedParams, a: _Slopes, lam: S, dtype: DType | None
) -> StepCotangent[S]:
    d_m = product(lam.h, params.w_p.T, dtype)  # (PA1)
    return core.adjoint({}, a.core, with_fields(lam, h=d_m))  # (PA2)


def _adjoint(core: _Core, params: ProjectedParams, a: _Slopes, lam: S, *, dtype: DType | None = None) -> S:
    towards = _towards_gates(core, params, a, lam, dtype)
    return with_fields(towards.carry, h=product(joined(towards.v), params.w_h.T, dtype))  # (PA3)


def _contract(
    core: _Core,
    params: ProjectedParams,
    s_prev: S,
    xs: Array,
    a: _Slopes,
    lam: S,
    *,
    dtype: DType | None = None,
) -> tuple[ProjectedParams, Array]:
    towards = _towards_gates(core, params, a, lam, dtype)
    gradient = {
        "w_p": sum_of_outer_products(a.m, (lam.h,), dtype),  # (PC1)
        "w_h": sum_of_outer_products(s_prev.h, towards.v, dtype),  # (PC1)
        "w_x": sum_of_outer_products(xs, towards.u, dtype),  # (PC2)
    }
    if hasattr(params, "b"):
        gradient["b"] = sum_over_rows(towards.u)  # (PC2)
    # under `learn_carry` params have more fields, which the step does not read: their gradient is zero
    d_params = with_fields(zeros_like(params), **gradient)
    return d_params, product(joined(towards.u), params.w_x.T, dtype)  # (PC3)

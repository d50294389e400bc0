"""The engine of pointwise cells does their matrix products: before, in and after the time loop.

    forward    u_t = x_t W_x (+ b)                          all t at once: a product a gate   (F1)
               v_t = h̃_{t−1} W_h (+ b_h)                    the only product in the loop      (F2)
               s_t = step(s̃_{t−1}, u_t, v_t)                                                  (F3)

    linearise  a_t = the derivative of step at t            mapped over t                     (PL1)
               (u_t and v_t come back by one product each: every h̃_{t−1} is known by now)

    sweep      δs̃_{t−1}, δu_t, δv_t = (∂step_t/∂(s̃_{t−1}, u_t, v_t))ᵀ λ_t                     (S6)
               (ds_t/ds̃_{t−1})ᵀ λ_t = δs̃_{t−1} + δv_t W_hᵀ  the last term into h̃_{t−1}        (S7)

    contract   δu_t, δv_t, δp_t = (∂step_t/∂(u_t, v_t, p))ᵀ λ_t           parallel in t       (C1)
               dE/dW_h = Σ_t h̃_{t−1}ᵀ δv_t                  one product a gate                (C2)
               dE/dW_x = Σ_t x_tᵀ δu_t                      one product a gate                (C3)
               dE/db = Σ_t δu_t,  dE/db_h = Σ_t δv_t,  dE/dp = Σ_t δp_t                       (C4)
               dE/dx_t = δu_t W_xᵀ                                                            (C5)

(C2) is the article's summed chain rule dE/dW_s = Σ_t Σ_{i≤t} dE_t/dY_t dY_t/dS_i dS_i/dW_s. The sum over
loss steps t ≥ i is λ_i, which the sweep has already computed; the last factor is the immediate derivative,
with S_{i−1} held fixed. jax.grad of a scan instead adds one outer product to dE/dW_h at every step, inside
the loop.

With heads each of these products is one over all blocks of W_h, see `linear_maps`.

Arrays are time-major and batch-major, [T, ..., features]. See experiments/MEASURED.md, "Layout of arrays"
and "Layout of the backward loop".
"""

from __future__ import annotations

import functools

import jax
from jax import Array

from jax_bptt.base.trees import add_to_h, with_fields, zeros_like
from jax_bptt.base.types import ArrayTree, Gates, PointwiseParams, S, Slopes, State
from jax_bptt.engine.engine import Engine, Stepped
from jax_bptt.engine.linear_maps import (
    PointwiseCell,
    gradient_of_w_h,
    input_gates,
    recurrent_gates,
    sum_of_outer_products,
    sum_over_rows,
    towards_h,
    towards_x,
    transposed,
    unit_wise,
)
from jax_bptt.engine.loops import scan_backward, scan_forward


def _project(cell: PointwiseCell, params: PointwiseParams, xs: Array) -> Gates:
    """u_1..u_T are G arrays [T, ..., H], computed from xs [T, ..., I]."""
    return input_gates(cell, params, xs)  # (F1)


def _recur(cell: PointwiseCell, params: PointwiseParams, s_prev: State) -> Gates:
    """v_t is G arrays [..., H], computed from s̃_{t−1}, leaves [..., H]."""
    return recurrent_gates(cell, params, s_prev.h)  # (F2)


def _step(cell: PointwiseCell, params: PointwiseParams, s_prev: S, u: Gates, v: Gates) -> Stepped:
    """s_t is computed from s̃_{t−1}, leaves [..., H], u_t and v_t."""
    return Stepped(cell.step(unit_wise(cell, params, s_prev.h.ndim), s_prev, u, v), ())  # (F3)


def _linearise(
    cell: PointwiseCell, params: PointwiseParams, s_prev: State, u: Gates, v: Gates, s: State
) -> Slopes:
    """a_t is computed from s̃_{t−1}, u_t, v_t and s_t, leaves [..., H]."""
    return cell.linearise(unit_wise(cell, params, s_prev.h.ndim), s_prev, u, v, s)  # (PL1)


def _before_sweep(cell: PointwiseCell, params: PointwiseParams) -> Array | None:
    """All backward steps share W_hᵀ; the result is None without a recurrent product."""
    return transposed(params.w_h) if cell.layout.recurrent else None


def _backward_step(
    cell: PointwiseCell, params: PointwiseParams, prepared: Array | None, a: Slopes, lam: S, d_own: ArrayTree
) -> S:
    """The result is (ds_t/ds̃_{t−1})ᵀ λ_t, leaves [..., H]; prepared is W_hᵀ."""
    towards = cell.adjoint(unit_wise(cell, params, lam.h.ndim), a, lam)  # (S6)
    d_s_prev: S = towards.carry
    return d_s_prev if prepared is None else add_to_h(d_s_prev, towards_h(cell, prepared, towards.v))  # (S7)


def _contract(
    cell: PointwiseCell,
    params: PointwiseParams,
    s_prev: State,
    xs: Array,
    a: Slopes,
    lam: State,
    d_own: ArrayTree,
) -> tuple[PointwiseParams, Array]:
    """dE/dparams and dE/dxs, [T, ..., I], are computed from all steps at once."""
    every_t = jax.vmap(functools.partial(cell.adjoint, unit_wise(cell, params, xs.ndim - 1)))
    towards = every_t(a, lam)  # (C1)
    gradient = {
        "w_x": sum_of_outer_products(xs, towards.u, cell.dtype),  # (C3)
        **({"b": sum_over_rows(towards.u)} if cell.layout.bias else {}),  # (C4)
        **{name: sum_over_rows((d_p,)) for name, d_p in towards.units.items()},  # (C4)
    }
    if cell.layout.recurrent:
        gradient["w_h"] = gradient_of_w_h(cell, s_prev.h, towards.v)  # (C2)
    if cell.layout.recurrent_bias:
        gradient["b_h"] = sum_over_rows(towards.v)  # (C4)
    # parameters that the step does not read, such as h_0, get zero
    d_params = with_fields(zeros_like(params), **gradient)
    return d_params, towards_x(cell, params.w_x, towards.u)  # (C5)


POINTWISE = Engine(
    pointwise=True,
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

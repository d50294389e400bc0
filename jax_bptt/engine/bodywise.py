"""The engine of the bodies of scans has the same functions as the engine in `pointwise`.

A body is not mapped over rows. Let o_t be what it hands out beside its state, and D_t = dE/do_t:

    sweep      (ds_t/ds̃_{t−1})ᵀ λ_t + (do_t/ds̃_{t−1})ᵀ D_t    by the carry alone, in the loop       (BW1)
    contract   dE/dparams = (∂(s_1..s_T, o_1..o_T)/∂params)ᵀ (λ, D), every s̃_{t−1} held fixed        (BW2)
               dE/dxs     = (∂(s_1..s_T, o_1..o_T)/∂xs)ᵀ (λ, D)                                      (BW3)

A body that must run one step at a time (see `Body.in_order`) is also differentiated one step at a time; the
sum over t in (BW2) is then made in a loop.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from jax_bptt.base.trees import differentiable, merged, plus, zeros_like
from jax_bptt.base.types import ArrayTree
from jax_bptt.cell.body import Body, Leaves
from jax_bptt.cell.by_vjp import Point, back_by_vjp, linearise_by_vjp
from jax_bptt.engine.engine import Engine, Stepped
from jax_bptt.engine.loops import scan_backward, scan_forward


def _project(body: Body, params: Leaves, xs: Leaves) -> Leaves:
    """A body reads x_t itself."""
    return xs


def _recur(body: Body, params: Leaves, s_prev: Leaves) -> None:
    """The body itself does every product with s̃_{t−1}, so there is nothing to do here."""


def _step(body: Body, params: Leaves, s_prev: Leaves, x: Leaves, v: None) -> Stepped:
    """s_t and o_t are computed from s̃_{t−1} and x_t."""
    return Stepped(*body.step(params, s_prev, x))


def _linearise(body: Body, params: Leaves, s_prev: Leaves, x: Leaves, v: None, s: Leaves) -> Point:
    """a_t is computed from s̃_{t−1} and x_t."""
    return linearise_by_vjp(body.silent_step, params, s_prev, x, s)


def _before_sweep(body: Body, params: Leaves) -> None:
    """A backward step reads only the parameters, so there is nothing to prepare."""


def _backward_step(body: Body, params: Leaves, prepared: None, a: Point, lam: Any, d_own: Any) -> Any:
    """The result is (BW1), with None for leaves that have no derivative; d_own of None stands for zeros."""
    if d_own is None:
        s_prev = merged(zeros_like(lam), a.fixed)
        d_own = zeros_like(differentiable(body.silent_step(params, s_prev, a.u)[1]))
    return back_by_vjp(body.silent_step, params, a, (lam, d_own), lam)  # (BW1)


def _contract(
    body: Body, params: Leaves, s_prev: Leaves, xs: Leaves, a: Point, lam: Any, d_own: Any
) -> tuple[Any, Any]:
    """dE/dparams and dE/dxs are computed from all steps at once, or in a loop if they must run in order."""

    def back(at_steps: Callable[..., Any], s_prev: Leaves, xs: Leaves, d: ArrayTree) -> tuple[Any, Any]:
        # each s̃_{t−1} is held fixed, so the steps do not depend on each other and run in parallel
        def steps(p: Any, x: Any) -> Any:
            return differentiable(at_steps(merged(p, params), s_prev, merged(x, xs)))

        d_params, d_xs = jax.vjp(steps, differentiable(params), differentiable(xs))[1](d)
        return d_params, d_xs

    def add_step(sums: Any, at_t: tuple[Leaves, Leaves, ArrayTree]) -> tuple[Any, Any]:
        d_params, d_x = back(body.silent_step, *at_t)
        return plus(sums, d_params), d_x

    if body.in_order:
        sums = zeros_like(differentiable(params))
        return jax.lax.scan(add_step, sums, (s_prev, xs, (lam, d_own)))  # (BW2, BW3)
    return back(jax.vmap(body.silent_step, (None, 0, 0)), s_prev, xs, (lam, d_own))  # (BW2, BW3)


def _at_once(body: Body, f: Callable[..., Any]) -> Callable[..., Any]:
    """A function of one step is mapped over all steps, or runs in a loop where they must run in order."""
    return functools.partial(_in_a_loop, f) if body.in_order else jax.vmap(f)


def _in_a_loop(f: Callable[..., Any], *every_t: Any) -> Any:
    return jax.lax.map(lambda at_t: f(*at_t), every_t)


BODYWISE = Engine(
    pointwise=False,
    project=_project,
    recur=_recur,
    step=_step,
    linearise=_linearise,
    before_sweep=_before_sweep,
    backward_step=_backward_step,
    contract=_contract,
    at_once=_at_once,
    forward_loop=scan_forward,
    backward_loop=scan_backward,
)

"""The backward pass runs for all steps at once, because its recursion is affine in λ for every cell.

    loop       λ_{t−1} = G_{t−1} + M_tᵀ λ_t       M_t = ds_t/ds_{t−1} with its marks, see `jacobians`

Two affine maps, one after the other, are again an affine map, and composition is associative. So a parallel
scan (also called parallel prefix) of depth log₂ T computes all T compositions exactly. Write μ_t for λ_t
without the term γ_t that is added at step t itself:

    sweep      γ_t = G_t,  γ_T = G_T + dE/ds_T                                                    (P1)
               μ_{t−1} = M_tᵀ μ_t + M_tᵀ γ_t,  μ_T = 0        an affine map for each t; what a step
                                                              hands out beside its state adds a term (P2)
               (N, c) after (M, b):  μ → Nᵀ (Mᵀ μ + b) + c    is (M N, Nᵀ b + c)                  (P3)
               λ_t = μ_t + γ_t,  dE/ds_0 = μ_0                                                    (P4)
               dE/dstart = Σ_t λ̃_{t−1} where reset_t          λ̃: before the marks close the way; with
                                                              a start of each step there is no sum (P5)

    contract   as after the loop, with λ_t = 0 where mask is False                                (P6)
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.errors import bad
from jax_bptt.base.trees import differentiable, last_step, select, sum_over_first_axis, zeros_like
from jax_bptt.base.types import Slopes, State
from jax_bptt.engine import chunks, phases
from jax_bptt.engine.emission import emission_of
from jax_bptt.engine.engine import Forward, Runnable
from jax_bptt.engine.run import Cotangents, Kept, Outputs, Run
from jax_bptt.gradients.jacobians import form_of, jacobians, jacobians_with_marks, small_matmul
from jax_bptt.gradients.method import GradientMethod, check_on_one_device
from jax_bptt.gradients.newton import Newton, states_by_newton


@cached()
def parallel(newton: Newton | None = None) -> GradientMethod:
    """This method computes the exact gradient by a parallel scan over time, with `newton` the states too.

    λ_{t−1} = G_{t−1} + M_tᵀ λ_t for all t in O(log T) steps,   M_t = ds_t/ds_{t−1}

    A loop runs T small steps one after the other. This method runs log₂ T large steps and needs S times the
    arithmetic: with S numbers in one row's carry O(T·B·S³) work and O(T·B·S²) memory, or O(T·B·H) of both
    for a cell without recurrent weights between units (`indrnn`). So it suits a GPU that a loop would leave
    idle: long T, small H, few rows. On a CPU the loop was faster in every case. See
    experiments/MEASURED.md, "A parallel scan on a CPU".

    With `newton` the forward pass is parallel too. This suits contracting dynamics (the largest Lyapunov
    exponent is negative). Where the iteration does not converge, the loop computes the states instead (by
    jax.lax.cond; under jax.vmap both run), so outputs and gradient are always right to the tolerance.
    `unroll_by_newton` reports the convergence.

    Args:
      newton: the settings of a parallel forward pass, from `newton`; None for a loop.

    Returns:
      The `GradientMethod`; the same object for the same arguments. Without `newton` it can be
      differentiated again (grad of grad, hessian); with `newton` this is a ValueError.

    Raises:
      ValueError: newton is neither a `Newton` nor None; or, when the method runs, `diagonal` is used with
        a carry that has other shapes than h, or the step of a pointwise cell is not pointwise.

    Reference: Blelloch 1990, Prefix sums and their applications; Wang, Bai & Pekhimenko 2020, BPPSA:
    scaling back-propagation by parallel scan algorithm.

    >>> parallel() is parallel(newton=None)
    True
    """
    if newton is None:
        return GradientMethod("parallel", _forward, _backward, check=_check)
    if not isinstance(newton, Newton):
        raise bad("newton", "a Newton or None", newton, "make one by jb.newton()")
    forward = functools.partial(_forward_by_newton, newton)
    check = functools.partial(check_on_one_device, "jb.parallel")
    return GradientMethod("parallel", forward, _backward, check=check, is_loop=False)


def _check(cell: Runnable, run: Run) -> None:
    check_on_one_device("jb.parallel", cell, run)
    if any(jnp.iscomplexobj(z) for z in jax.tree.leaves(run.carry)):  # their Jacobian is no complex matrix
        raise bad("gradient", "a carry of real numbers for jb.parallel", run.carry, "use jb.full()")


def _forward(cell: Runnable, run: Run) -> tuple[Outputs, Kept]:
    found = phases.forward(cell, run)
    return phases.outputs(cell, found), Kept(run, found.states)


def _forward_by_newton(newton: Newton, cell: Runnable, run: Run) -> tuple[Outputs, Kept]:
    found, info = states_by_newton(newton, cell, run)
    states: State = jax.lax.cond(info.converged, lambda: found, lambda: phases.forward(cell, run).states)
    own = phases.own_of(cell, run, states)
    return phases.outputs(cell, Forward(last_step(states), states, own, None)), Kept(run, states)


def _backward(cell: Runnable, kept: Kept, d: Outputs) -> Cotangents:
    run, states = kept.run, kept.states
    assert states is not None  # both forward passes keep them
    mask, reset = run.sequence.mask, run.sequence.reset
    s_prev = phases.previous(run, states)
    slopes = phases.linearise(cell, run, s_prev, states)
    d_own = phases.derivatives_by_own(cell, run, d)
    lam, d_carry = _sweep_at_once(cell, run, slopes, differentiable(states), d)
    # the scan gives λ only; a step that the mask skips reads no weight, so it must not contribute to dE/dW
    lam_step = select(mask, lam, zeros_like(lam))  # (P6)
    d_start = d_starts = None
    if reset is not None:
        lam_prev = select(mask, phases.backward_steps(cell, run.params, slopes, lam_step, d_own), lam)
        at_resets = select(reset, lam_prev, zeros_like(lam_prev))  # (P5)
        if run.start is None:
            d_starts = at_resets
        else:
            d_start = sum_over_first_axis(at_resets)
    d_params, d_xs = phases.contract(cell, run, s_prev, slopes, lam_step, d_own)
    return Cotangents(d_params, d_carry, d_start, d_xs, d_starts)


def _sweep_at_once(
    cell: Runnable, run: Run, slopes: Slopes, states: State, d: Outputs
) -> tuple[State, State]:
    """The sweep returns λ_1..λ_T, leaves [T, ..., H], and dE/ds_0."""
    with jax.named_scope("bptt/sweep_at_once"):
        chunks.fixed(run.sequence.steps)  # a parallel scan halves it again and again
        marks = run.sequence.marks
        form, axes = form_of(cell), 1 + len(run.sequence.rows)
        j = jacobians(cell, run.params, slopes, states, form)
        m = jacobians_with_marks(j, form, states, axes, marks.mask, marks.reset, marks.cut)
        direct = emission_of(cell).to_state(zeros_like(states), d.ys)
        direct = jax.tree.map(lambda g, d: g.at[-1].add(d), direct, d.carry)
        gamma = form.pack(direct, axes)  # (P1)
        back = _back(m, gamma)
        d_own = phases.derivatives_by_own(cell, run, d)
        if jax.tree.leaves(d_own):
            of_own = phases.backward_steps(cell, run.params, slopes, zeros_like(states), d_own)
            for mark in (marks.reset, marks.cut):
                of_own = of_own if mark is None else select(mark, zeros_like(of_own), of_own)
            back = back + form.pack(of_own, axes)  # (P2)
        _, mu = jax.lax.associative_scan(_composed, (m, back), reverse=True)  # (P2)
        lam = jnp.concatenate([mu[1:], jnp.zeros_like(mu[:1])]) + gamma  # (P4)
        return form.unpack(lam, states), form.unpack(mu[0], d.carry)  # (P4)


def _composed(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    """Two affine maps become one: going back, the later step's map first, then the earlier step's."""
    (m, b), (n, c) = first, second
    return small_matmul(m, n), _back(n, b) + c  # (P3)


def _back(m: Array, z: Array) -> Array:
    """This is Mᵀ z for matrices [..., n, n] and vectors [..., n]."""
    return small_matmul(z[..., None, :], m)[..., 0, :]

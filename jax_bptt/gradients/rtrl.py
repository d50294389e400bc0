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

The inputs would be T·I more columns of P_t, and step t would write the columns of x_t. They have a separate
loop, which XLA removes if the program does not use dE/dxs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from jax_bptt.base.caching import cached
from jax_bptt.base.trees import only_h, select, zeros_like
from jax_bptt.base.types import ArrayTree, State
from jax_bptt.cell.step_cell import AnyCell
from jax_bptt.engine import phases
from jax_bptt.engine.chunks import add_to, sums_as, zero_sums
from jax_bptt.engine.devices import to_local
from jax_bptt.engine.loops import begin_of_step
from jax_bptt.engine.run import Cotangents, Kept, Outputs, Run
from jax_bptt.engine.sequence import Sequence
from jax_bptt.gradients.method import GradientMethod


class Influenced(NamedTuple):
    """These are the state of one row and its influence.

    Attributes:
      carry: s_t, leaves [H] or as the cell has them.
      influence: P_t = ds_t/dθ, [S, C].
    """

    carry: State
    influence: Array


class Direct(NamedTuple):
    """These are the derivatives of one step with s̃_{t−1} held fixed.

    Attributes:
      by_params: ∂s_t/∂params, [S, P].
      by_x: ∂s_t/∂x_t, [S, I].
    """

    by_params: Array
    by_x: Array


OfTheta: TypeAlias = Callable[[Array, Direct], Array]  # (t, the derivatives of step t) -> M_t [S, C]


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
    return GradientMethod("rtrl", _forward, _backward)


def advance(
    cell: AnyCell,
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
      of_theta: a function from the derivatives of the step to M_t, [S, C].

    Returns:
      s_t and P_t.
    """
    influence = before.influence
    if at_t.cut is not None:
        influence = select(at_t.cut, zeros_like(influence), influence)  # (R1)
    if at_t.reset is not None:
        assert d_start_d_theta is not None  # a run with resets has it
        influence = select(at_t.reset, d_start_d_theta, influence)  # (R1)
    s_prev = begin_of_step(at_t.marks, run.start, before.carry)
    s, j, direct = _linearised(cell, run.params, s_prev, at_t.xs)
    through = j @ influence + of_theta(direct)  # (R3)
    return Influenced(select(at_t.mask, s, s_prev), select(at_t.mask, through, influence))  # (R3)


def loss_term(d_h: Array, at_t: Influenced) -> Array:
    """The derivative of the loss by h_t, [H], gives G_t P_t of one row, [C]."""
    along: Array = ravel_pytree(only_h(d_h, like=at_t.carry))[0]
    return along @ at_t.influence


def _linearised(cell: AnyCell, params: ArrayTree, s_prev: State, x: Array) -> tuple[State, Array, Direct]:
    """One step of one row gives s_t, J_t [S, S], and the derivatives by params [S, P] and x_t [S, I]."""
    engine = phases.engine_of(cell)
    theta, params_of = ravel_pytree(params)
    z_prev, carry_of = ravel_pytree(s_prev)

    def step(theta: Array, z_prev: Array, x: Array) -> tuple[Array, State]:
        params, s_prev = params_of(theta), carry_of(z_prev)
        u, v = engine.project(cell, params, x), engine.recur(cell, params, s_prev)
        s = engine.step(cell, params, s_prev, u, v)
        return ravel_pytree(s)[0], s

    (by_params, j, by_x), s = jax.jacrev(step, (0, 1, 2), has_aux=True)(theta, z_prev, x)  # (R2)
    return s, j, Direct(by_params, by_x)


def _forward(cell: AnyCell, run: Run) -> tuple[Outputs, Kept]:
    last, states, _ = phases.forward(cell, run)
    return Outputs(last, states.h), Kept(run, None)


def _backward(cell: AnyCell, kept: Kept, d: Outputs) -> Cotangents:
    back = functools.partial(_of_a_row, cell)
    for _ in kept.run.sequence.rows:  # time is first in the sequence and in G
        axes: Any = Run(None, 0, 0, sequence=1), Outputs(0, hs=1)  # type: ignore[arg-type]
        back = jax.vmap(back, in_axes=axes, out_axes=Cotangents(0, 0, 0, xs=1))  # type: ignore[arg-type]
    with jax.named_scope("bptt/rtrl"):
        found = back(kept.run, d)
    theta, params_of = ravel_pytree(kept.run.params)
    return found._replace(params=params_of(found.params.reshape(-1, theta.size).sum(0)))


def _of_a_row(cell: AnyCell, run: Run, d: Outputs) -> Cotangents:
    """These are the gradients of one row, with dE/dparams as a vector [P] and dE/dxs [T, I]."""
    z_0, carry_of = ravel_pytree(run.carry)
    p, s, (steps, inputs) = ravel_pytree(run.params)[0].size, z_0.size, run.sequence.xs.shape
    columns = p + s + (0 if run.start is None else s)  # params, s_0, start
    no_influence = jnp.zeros_like(z_0, shape=(s, steps * inputs))  # s_0 and start do not depend on xs
    follow = functools.partial(_follow, cell, run, d)

    def of_params(t: Array, direct: Direct) -> Array:
        return jnp.pad(direct.by_params, ((0, 0), (0, columns - p)))

    def of_xs(t: Array, direct: Direct) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(no_influence, direct.by_x, t * inputs, axis=1)

    # ds_0/dθ and dstart/dθ: the identity in the columns of s_0 and of start, which follow those of params
    at_s_0, at_start = (to_local(jnp.eye(s, columns, k, dtype=z_0.dtype), z_0) for k in (p, p + s))
    d_params, d_s_0, d_start = jnp.split(follow(at_s_0, at_start, of_params), (p, p + s))
    d_xs = follow(no_influence, no_influence, of_xs).reshape(steps, inputs)
    return Cotangents(d_params, carry_of(d_s_0), None if run.start is None else carry_of(d_start), d_xs)


def _follow(
    cell: AnyCell, run: Run, d: Outputs, d_carry_d_theta: Array, d_start_d_theta: Array, of_theta: OfTheta
) -> Array:
    """The forward loop gives dE/dθ of one row, [C], from P_0 = ds_0/dθ, dstart/dθ and M_t."""

    def step(
        state: tuple[Influenced, Array], at_t: tuple[Array, Sequence, Array]
    ) -> tuple[tuple[Influenced, Array], None]:
        before, d_theta = state
        t, marked, d_h = at_t
        after = advance(cell, run, d_start_d_theta, before, marked, functools.partial(of_theta, t))
        return (after, add_to(d_theta, loss_term(d_h, after))), None  # (R4)

    begin = Influenced(run.carry, d_carry_d_theta), zero_sums(d_carry_d_theta[0])
    every_t = jnp.arange(run.sequence.steps), run.sequence, d.hs
    (end, d_theta), _ = jax.lax.scan(step, begin, every_t)
    return sums_as(add_to(d_theta, ravel_pytree(d.carry)[0] @ end.influence), d_carry_d_theta[0])  # (R4)

"""The exact gradient forwards in time: real-time recurrent learning (Williams & Zipser 1989).

Every row of a batch is a system of its own. Write s_t for its state as one vector of S numbers and θ for
all that this state depends on as one vector of C numbers: the parameters, s_0, and the initial carry that
resets go back to. The influence P_t = ds_t/dθ, [S, C], goes forward with the state, from P_0 = ds_0/dθ:

    P̃_{t−1} = dstart/dθ where reset_t, 0 where cut_t, P_{t−1} elsewhere                         (R1)
    J_t = ∂s_t/∂s̃_{t−1},   M_t = ∂s_t/∂θ with s̃_{t−1} held fixed                                (R2)
    P_t = J_t P̃_{t−1} + M_t where mask_t, P̃_{t−1} elsewhere                                     (R3)
    dE/dθ = Σ_t G_t P_t + dE/ds_T P_T                                                           (R4)

with G_t the direct derivative of the loss by s_t. J_t and M_t are JAX's, by reverse mode of one step of
one row; nothing of the hand-derived adjoints is read, so this is a witness for them.

The inputs would be T·I more columns of P_t, column block t written at step t. They have a loop of
their own, which XLA drops where nobody reads dE/dxs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from jax_bptt.engine import loops
from jax_bptt.engine.chunks import add_to, sums_as, zero_sums
from jax_bptt.engine.devices import as_own
from jax_bptt.engine.sequence import Sequence, select, zeros_like
from jax_bptt.gradients.method import GradientMethod

Direct = Callable[[Array, Array, Array], Array]  # (t, ∂s_t/∂params, ∂s_t/∂x_t) -> M_t [S, C]


def rtrl() -> GradientMethod:
    """The exact gradient, forwards in time.

    P_t = (ds_t/ds_{t−1}) P_{t−1} + ∂s_t/∂θ,   dE/dθ = Σ_t G_t P_t

    For a carry of S numbers and P parameters: memory O(B·S·P) whatever T is, beside inputs and outputs;
    time O(T·B·S²·P), against O(T·B·P) of `full`. So for small networks, for long sequences, and for
    streams without an end (`rtrl_step`). The gradient by xs, which layers above the first need, has T·I
    columns in the place of P. The rows of a batch must not read each other. Where the influence itself
    overflows the gradient is no number, even if no loss looks there. Reverse mode, as `full`.

    Returns:
      The `GradientMethod`.

    Reference: Williams & Zipser 1989, A learning algorithm for continually running fully recurrent
    neural networks.

    >>> rtrl()
    rtrl()
    """
    return _RTRL


def advance(
    cell: Any,
    params: Any,
    start: Any,
    begun: Array | None,
    s_prev: Any,
    influence: Array,
    at_t: Sequence,
    direct: Callable[[Array, Array], Array],
) -> tuple[Any, Array]:
    """State and influence of one row, one step on.

    P_t = J_t P̃_{t−1} + M_t   (R1-R3)

    Args:
      cell: the cell.
      params: its parameters.
      start: the initial carry of one row, leaves [H] or as the cell has them; None without resets.
      begun: dstart/dθ, [S, C]; None without resets.
      s_prev: s_{t−1} of one row, like start.
      influence: P_{t−1}, [S, C].
      at_t: x_t [I] and the marks, bool [] or None.
      direct: (∂s_t/∂params [S, P], ∂s_t/∂x_t [S, I]) -> M_t [S, C].

    Returns:
      s_t and P_t.
    """
    if at_t.cut is not None:
        influence = select(at_t.cut, zeros_like(influence), influence)  # (R1)
    if at_t.reset is not None:
        s_prev = loops.enter(at_t.reset, start, s_prev)
        influence = select(at_t.reset, begun, influence)  # (R1)
    s, (by_params, j, by_x) = _linearised(cell, params, s_prev, at_t.xs)
    through = j @ influence + direct(by_params, by_x)  # (R3)
    return select(at_t.mask, s, s_prev), select(at_t.mask, through, influence)  # (R3)


def spent(d_h: Array, s: Any, influence: Array) -> Array:
    """G_t P_t of one row, [C], from the derivative of the loss by h_t, [H]."""
    return ravel_pytree(zeros_like(s)._replace(h=d_h))[0] @ influence


def _linearised(cell: Any, params: Any, s_prev: Any, x: Array) -> tuple[Any, tuple[Array, Array, Array]]:
    """s_t of one row, and its derivatives by params [S, P], s̃_{t−1} [S, S] and x_t [S, I]."""
    engine = loops.engine_of(cell)
    theta, params_of = ravel_pytree(params)
    z_prev, carry_of = ravel_pytree(s_prev)

    def step(theta: Array, z_prev: Array, x: Array) -> tuple[Array, Any]:
        params, s_prev = params_of(theta), carry_of(z_prev)
        u, v = engine.project(cell, params, x), engine.recur(cell, params, s_prev)
        s = engine.step(cell, params, s_prev, u, v)
        return ravel_pytree(s)[0], s

    jacobians, s = jax.jacrev(step, (0, 1, 2), has_aux=True)(theta, z_prev, x)  # (R2)
    return s, jacobians


def _forward(
    cell: Any, params: Any, carry: Any, start: Any, sequence: Sequence
) -> tuple[tuple[Any, Array], Any]:
    last, states = loops.forward(cell, params, carry, start, sequence)
    return (last, states.h), (params, carry, start, sequence)


def _backward(cell: Any, residuals: Any, d_carry: Any, d_hs: Array) -> tuple[Any, Any, Any, Array]:
    params, carry, start, sequence = residuals
    of_rows = functools.partial(_of_a_row, cell, params)
    for _ in range(sequence.xs.ndim - 2):  # time is first in the sequence and in d_hs
        of_rows = jax.vmap(of_rows, in_axes=(0, 0, 1, 0, 1), out_axes=(0, 0, 0, 1))
    with jax.named_scope("bptt/rtrl"):
        d_params, d_carry, d_start, d_xs = of_rows(carry, start, sequence, d_carry, d_hs)
    theta, params_of = ravel_pytree(params)
    return params_of(d_params.reshape(-1, theta.size).sum(0)), d_carry, d_start, d_xs


def _of_a_row(
    cell: Any, params: Any, carry: Any, start: Any, sequence: Sequence, d_carry: Any, d_hs: Array
) -> tuple[Array, Any, Any, Array]:
    """dE/dparams of one row as a vector [P], dE/ds_0, dE/dstart and dE/dxs [T, I]."""
    z_0, carry_of = ravel_pytree(carry)
    p, s, (steps, inputs) = ravel_pytree(params)[0].size, z_0.size, sequence.xs.shape
    columns = p + s + (0 if start is None else s)  # params, s_0, start
    nowhere = jnp.zeros_like(z_0, shape=(s, steps * inputs))
    follow = functools.partial(_follow, cell, params, carry, start, sequence, d_carry, d_hs)

    def of_params(t: Array, by_params: Array, by_x: Array) -> Array:
        return jnp.pad(by_params, ((0, 0), (0, columns - p)))

    def of_xs(t: Array, by_params: Array, by_x: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(nowhere, by_x, t * inputs, axis=1)

    at_s_0, at_start = (as_own(jnp.eye(s, columns, k, dtype=z_0.dtype), z_0) for k in (p, p + s))
    d_params, d_s_0, d_start = jnp.split(follow(at_s_0, at_start, of_params), (p, p + s))
    d_xs = follow(nowhere, nowhere, of_xs).reshape(steps, inputs)
    return d_params, carry_of(d_s_0), None if start is None else carry_of(d_start), d_xs


def _follow(
    cell: Any,
    params: Any,
    carry: Any,
    start: Any,
    sequence: Sequence,
    d_carry: Any,
    d_hs: Array,
    influence: Array,
    begun: Array,
    direct: Direct,
) -> Array:
    """dE/dθ of one row, [C], from P_0, dstart/dθ and M_t."""

    def step(state: tuple[Any, Array, Array], at_t: Any) -> tuple[tuple[Any, Array, Array], None]:
        s_prev, influence, d_theta = state
        t, marked, d_h = at_t
        direct_t = functools.partial(direct, t)
        s, influence = advance(cell, params, start, begun, s_prev, influence, marked, direct_t)
        return (s, influence, add_to(d_theta, spent(d_h, s, influence))), None  # (R4)

    begin = carry, influence, zero_sums(influence[0])
    every_t = jnp.arange(len(d_hs)), sequence, d_hs
    (_, influence, d_theta), _ = jax.lax.scan(step, begin, every_t)
    return sums_as(add_to(d_theta, ravel_pytree(d_carry)[0] @ influence), influence[0])  # (R4)


_RTRL = GradientMethod("rtrl()", _forward, _backward)

"""JAX differentiates the plain scan over the steps; nothing here is derived by hand.

This method shares only the cell's step with the hand-derived methods, so it is the readable reference
against which they are checked. It supports every transform of JAX, forward mode (jvp) included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.trees import select, zeros_like
from jax_bptt.base.types import ArrayTree, Gates, PointwiseParams, State
from jax_bptt.cell.body import Body
from jax_bptt.cell.cell import Cell
from jax_bptt.cell.step_cell import StepCell
from jax_bptt.engine.emission import emission_of
from jax_bptt.engine.engine import Runnable, Stepped
from jax_bptt.engine.phases import is_pointwise
from jax_bptt.engine.run import Kept, Outputs, Run
from jax_bptt.engine.sequence import Sequence
from jax_bptt.gradients.method import GradientMethod


@cached()
def autodiff() -> GradientMethod:
    """This method computes the exact gradient by letting JAX differentiate the plain scan.

    s_t = step(s_{t−1}, x_t W_x (+ b), h_{t−1} W_h (+ b_h)), differentiated by jax.vjp

    It takes O(T) time and O(T·B·G·H) memory: JAX stores the intermediate values of every step, and its
    backward loop adds one outer product per step to each weight gradient.

    Returns:
      The `GradientMethod`.

    >>> autodiff()
    autodiff()
    """
    return GradientMethod("autodiff", _forward, None)


def plain_scan(cell: Runnable, run: Run) -> Outputs:
    """The recurrence is one jax.lax.scan over the steps, in its simplest form.

    Args:
      cell: the cell.
      run: its parameters, s_0, the initial carry for resets, x_1..x_T and the marks.

    Returns:
      s_T, leaves [..., H], and what the steps hand out, h_1..h_T of a cell, [T, ..., H].
    """
    one_step = _one_step_of(cell)
    emission = emission_of(cell)

    def step(s_prev: State, at_t: Sequence) -> tuple[State, Any]:
        if at_t.cut is not None:
            s_prev = select(at_t.cut, jax.lax.stop_gradient(s_prev), s_prev)
        if at_t.reset is not None:
            back_to: Any = run.start if at_t.starts is None else at_t.starts
            s_prev = select(at_t.reset, back_to, s_prev)
        stepped = one_step(run.params, s_prev, at_t.xs)
        s = select(at_t.mask, stepped.state, s_prev)
        return s, emission.read(s, select(at_t.mask, stepped.own, zeros_like(stepped.own)))

    return Outputs(*jax.lax.scan(step, run.carry, run.sequence))


def _one_step_of(cell: Runnable) -> Callable[..., Stepped]:
    """This is the step of any cell, as a function of its params, s_prev and x."""
    if isinstance(cell, Body):
        return lambda params, s_prev, x: Stepped(*cell.step(params, s_prev, x))
    step: Callable[..., State] = _pointwise_step if is_pointwise(cell) else _any_step
    return lambda params, s_prev, x: Stepped(step(cell, params, s_prev, x), ())


def _pointwise_step(cell: Cell[Any, Any], params: PointwiseParams, s_prev: State, x: Array) -> State:
    def spread(p: Array) -> Array:
        return jnp.broadcast_to(p, (*x.shape[:-1], *p.shape))

    def gates(z: Array) -> Gates:
        return tuple(z[..., g * cell.hidden_size : (g + 1) * cell.hidden_size] for g in range(cell.gates))

    def times(z: Array, w: Array) -> Array:
        if cell.dtype is None:
            return z @ w
        return jnp.matmul(z.astype(cell.dtype), w.astype(cell.dtype), preferred_element_type=z.dtype)

    def of_heads(z: Array, w: Array) -> Array:
        by_head = [times(h, block) for h, block in zip(jnp.split(z, len(w), -1), w, strict=True)]
        by_gate = zip(*(jnp.split(v, cell.gates, -1) for v in by_head), strict=True)
        return jnp.concatenate([v for heads in by_gate for v in heads], -1)

    p = params._asdict()
    u_of_all = times(x, p["w_x"])
    u = gates(u_of_all + spread(p["b"]) if cell.layout.bias else u_of_all)
    v: Gates = ()
    if cell.layout.recurrent:
        v_of_all = of_heads(s_prev.h, p["w_h"]) if cell.layout.heads else times(s_prev.h, p["w_h"])
        v = gates(v_of_all + spread(p["b_h"]) if cell.layout.recurrent_bias else v_of_all)
    s: State = cell.step({name: spread(p[name]) for name in cell.layout.units}, s_prev, u, v)
    return s


def _any_step(cell: StepCell[Any, Any], params: ArrayTree, s_prev: State, x: Array) -> State:
    options = {"dtype": cell.dtype} if cell.takes_dtype else {}

    def step(s_prev: State, x: Array) -> Any:
        return cell.step(params, s_prev, cell.project(params, x, **options), **options)

    for _ in range(x.ndim - 1):
        step = jax.vmap(step)
    s: State = step(s_prev, x)
    return s


def _forward(cell: Runnable, run: Run) -> tuple[Outputs, Kept]:
    return plain_scan(cell, run), Kept(run, None)

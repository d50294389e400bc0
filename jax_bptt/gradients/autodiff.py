"""The gradient that JAX makes: the plain scan, one step after the other, left to jax.grad.

It shares no code with the hand-derived methods but the cell's step, so it is the readable reference
that they are checked against, and it takes every transform of JAX, forward mode (jvp) included.
"""

from __future__ import annotations

from typing import Any

import jax
from jax import Array

from jax_bptt.cell.cell import Cell, Gates
from jax_bptt.cell.step_cell import StepCell
from jax_bptt.engine.sequence import Sequence, select
from jax_bptt.gradients.method import GradientMethod


def autodiff() -> GradientMethod:
    """The exact gradient, by JAX's transpose of the plain scan.

    s_t = step(s_{t−1}, x_t W_x + b, h_{t−1} W_h (+ b_h)), differentiated by jax.vjp

    Time O(T), memory O(T·B·G·H): JAX keeps every intermediate of every step, and adds T outer
    products to each weight gradient inside the loop.

    Returns:
      The `GradientMethod`.

    >>> autodiff()
    autodiff()
    """
    return _AUTODIFF


def plain_scan(cell: Any, params: Any, carry: Any, start: Any, sequence: Sequence) -> tuple[Any, Array]:
    """The recurrence as one would first write it.

    Args:
      cell: the cell.
      params: its parameters.
      carry: s_0, leaves [..., H].
      start: the initial carry, like carry; None without resets.
      sequence: x_1..x_T, [T, ..., I], and the marks.

    Returns:
      s_T, leaves [..., H], and h_1..h_T, [T, ..., H].
    """
    one_step = _pointwise_step if isinstance(cell, Cell) else _any_step

    def step(s_prev: Any, at_t: Sequence) -> tuple[Any, Array]:
        if at_t.cut is not None:
            s_prev = select(at_t.cut, jax.lax.stop_gradient(s_prev), s_prev)
        if at_t.reset is not None:
            s_prev = select(at_t.reset, start, s_prev)
        s = select(at_t.mask, one_step(cell, params, s_prev, at_t.xs), s_prev)
        return s, s.h

    return jax.lax.scan(step, carry, sequence)


def _pointwise_step(cell: Cell, params: Any, s_prev: Any, x: Array) -> Any:
    def spread(p: Array) -> Array:
        return jax.numpy.broadcast_to(p, (*x.shape[:-1], *p.shape))

    def gates(z: Array) -> Gates:
        return tuple(z[..., g * cell.hidden_size : (g + 1) * cell.hidden_size] for g in range(cell.gates))

    def times(z: Array, w: Array) -> Array:
        if cell.dtype is None:
            return z @ w
        z, w, as_z = z.astype(cell.dtype), w.astype(cell.dtype), z.dtype
        return jax.numpy.matmul(z, w, preferred_element_type=as_z)

    p = {name: value for name, value in params._asdict().items() if not name.endswith("_0")}
    u = gates(times(x, p.pop("w_x")) + spread(p.pop("b")))
    v: Gates = ()
    if p["w_h"].ndim == 2:
        v_of_all = times(s_prev.h, p.pop("w_h"))
        v = gates(v_of_all + spread(p.pop("b_h")) if "b_h" in p else v_of_all)
    return cell.step({name: spread(p_unit) for name, p_unit in p.items()}, s_prev, u, v)


def _any_step(cell: StepCell, params: Any, s_prev: Any, x: Array) -> Any:
    def step(s_prev: Any, x: Array) -> Any:
        return cell.step(params, s_prev, cell.project(params, x))

    for _ in range(x.ndim - 1):
        step = jax.vmap(step)
    return step(s_prev, x)


def _forward(
    cell: Any, params: Any, carry: Any, start: Any, sequence: Sequence
) -> tuple[tuple[Any, Array], Any]:
    def scan(params: Any, carry: Any, start: Any, xs: Array) -> tuple[Any, Array]:
        return plain_scan(cell, params, carry, start, sequence._replace(xs=xs))

    return jax.vjp(scan, params, carry, start, sequence.xs)


def _backward(cell: Any, pullback: Any, d_carry: Any, d_hs: Array) -> tuple[Any, Any, Any, Array]:
    return pullback((d_carry, d_hs))


_AUTODIFF = GradientMethod("autodiff()", _forward, _backward)

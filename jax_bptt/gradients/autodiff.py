"""The gradient that JAX makes: the plain scan, one step after the other, left to jax.grad.

It shares no code with the hand-derived methods but the cell's step, so it is the readable reference
that they are checked against, and it takes every transform of JAX, forward mode (jvp) included.
"""

from __future__ import annotations

from typing import Any

import jax
from jax import Array

from jax_bptt.cell import Cell
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


def plain_scan(cell: Cell, params: Any, carry: Any, xs: Array) -> tuple[Any, Array]:
    """The recurrence as one would first write it.

    Args:
      cell: the cell.
      params: its parameters.
      carry: s_0, leaves [..., H].
      xs: x_1..x_T, [T, ..., I].

    Returns:
      s_T, leaves [..., H], and h_1..h_T, [T, ..., H].
    """

    def spread(p: Array) -> Array:
        return jax.numpy.broadcast_to(p, (*xs.shape[1:-1], *p.shape))

    def step(s_prev: Any, x: Array) -> tuple[Any, Array]:
        p = dict(params._asdict())
        u = x @ p.pop("w_x") + spread(p.pop("b"))
        v = s_prev.h @ p.pop("w_h")
        if "b_h" in p:
            v = v + spread(p.pop("b_h"))
        units = {name: spread(p_unit) for name, p_unit in p.items()}
        blocks = [slice(g * cell.hidden_size, (g + 1) * cell.hidden_size) for g in range(cell.gates)]
        s = cell.step(units, s_prev, tuple(u[..., g] for g in blocks), tuple(v[..., g] for g in blocks))
        return s, s.h

    return jax.lax.scan(step, carry, xs)


def _forward(cell: Cell, params: Any, carry: Any, xs: Array) -> tuple[tuple[Any, Array], Any]:
    def scan(params: Any, carry: Any, xs: Array) -> tuple[Any, Array]:
        return plain_scan(cell, params, carry, xs)

    return jax.vjp(scan, params, carry, xs)


def _backward(cell: Cell, pullback: Any, d_carry: Any, d_hs: Array) -> tuple[Any, Any, Array]:
    return pullback((d_carry, d_hs))


_AUTODIFF = GradientMethod("autodiff", _forward, _backward)

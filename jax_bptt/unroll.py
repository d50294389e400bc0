"""A cell over a whole sequence, with the gradient method of one's choice around it.

    s_t = step(s_{t−1}, x_t W_x + b, h_{t−1} W_h (+ b_h)),   t = 1..T

The only jax.custom_vjp of the library is here: jax.grad of anything that calls `unroll` runs the
backward pass of `gradient`, and the rest of the program is JAX's business.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax import Array

from jax_bptt.arguments import check_unroll
from jax_bptt.cell import Cell
from jax_bptt.gradients.autodiff import autodiff, plain_scan
from jax_bptt.gradients.full import full
from jax_bptt.gradients.method import GradientMethod


def unroll(
    cell: Cell, params: Any, carry: Any, xs: Array, *, gradient: GradientMethod = full()
) -> tuple[Any, Array]:
    """A cell over a sequence; differentiable by params, carry and xs.

    s_t = step(s_{t−1}, x_t W_x + b, h_{t−1} W_h (+ b_h))

    Args:
      cell: the cell, from `elman` or `make_cell`.
      params: from `cell.init`, all of one floating dtype.
      carry: s_0, from `cell.initial_carry` or an earlier call, leaves [..., H], dtype of params.
      xs: [T, ..., I] with T >= 1, time first, any number of batch axes, also none; dtype of params.
      gradient: how jax.grad goes backwards: `full` (by hand) or `autodiff` (JAX's own).

    Returns:
      (carry, hs) as jax.lax.scan: s_T, leaves [..., H], and h_1..h_T, [T, ..., H].

    Raises:
      ValueError: at trace time, naming the argument, what was expected and what came.

    Reference: Werbos 1990, Backpropagation through time: what it does and how to do it.

    >>> from jax_bptt import elman
    >>> cell = elman(3, 5)
    >>> params = cell.init(jax.random.key(0))
    >>> carry, hs = unroll(cell, params, cell.initial_carry(params, (2,)), jnp.ones((7, 2, 3)))
    >>> carry.h.shape, hs.shape
    ((2, 5), (7, 2, 5))
    """
    return run_checked(cell, *check_unroll(cell, params, carry, xs, gradient), gradient)


def run_checked(
    cell: Cell, params: Any, carry: Any, xs: Array, gradient: GradientMethod
) -> tuple[Any, Array]:
    """`unroll` of arguments that have been checked."""
    if gradient == autodiff():  # no custom_vjp, so that forward mode (jvp) works too
        return plain_scan(cell, params, carry, xs)
    return _with_gradient(cell, gradient)(params, carry, xs)


@functools.lru_cache(maxsize=256)
def _with_gradient(cell: Cell, gradient: GradientMethod) -> Any:
    @jax.custom_vjp
    def run(params: Any, carry: Any, xs: Array) -> tuple[Any, Array]:
        return gradient.forward(cell, params, carry, xs)[0]

    def backward(residuals: Any, cotangents: tuple[Any, Array]) -> tuple[Any, Any, Array]:
        return gradient.backward(cell, residuals, *cotangents)

    run.defvjp(functools.partial(gradient.forward, cell), backward)
    return run

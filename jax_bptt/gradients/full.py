"""Backpropagation through every step: linearise, sweep, contract, over the whole sequence.

Kept from the forward pass beside what went in: the states s_1..s_T, nothing else. The
pre-activations come back by one product each where the cell's derivative needs them; the Elman cell
with a named activation does not (g′ is a function of h), and XLA then drops those products.
"""

from __future__ import annotations

from typing import Any

from jax import Array

from jax_bptt import sweep
from jax_bptt.gradients.method import GradientMethod
from jax_bptt.sequence import Sequence


def full() -> GradientMethod:
    """The exact gradient, derived by hand.

    λ_{t−1} = G_{t−1} + (ds_t/ds_{t−1})ᵀ λ_t,   dE/dW = Σ_t (∂s_t/∂W)ᵀ λ_t

    Time O(T). The states, T·B·H numbers each, are kept from the forward pass; the derivative of the
    steps, O(T·B·G·H) numbers, is made in the backward pass and gone after it. Reverse mode, and any
    mode over it (grad of grad, hessian); for jvp and jacfwd of the unroll itself take `autodiff`.

    Returns:
      The `GradientMethod`.

    Reference: Rumelhart, Hinton & Williams 1986; Werbos 1990.

    >>> full()
    full()
    """
    return _FULL


def _forward(
    cell: Any, params: Any, carry: Any, start: Any, sequence: Sequence
) -> tuple[tuple[Any, Array], Any]:
    last, states = sweep.forward(cell, params, carry, start, sequence)
    return (last, states.h), (params, carry, start, sequence, states)


def _backward(cell: Any, residuals: Any, d_carry: Any, d_hs: Array) -> tuple[Any, Any, Any, Array]:
    params, carry, start, sequence, states = residuals
    s_prev = sweep.previous(carry, start, sequence, states)
    a = sweep.linearise(cell, params, s_prev, sequence, states)
    d_carry, d_start, lam = sweep.sweep(cell, params, a, sequence, d_carry, d_hs)
    d_params, d_xs = sweep.contract(cell, params, s_prev, sequence, a, lam)
    return d_params, d_carry, d_start, d_xs


_FULL = GradientMethod("full", _forward, _backward)

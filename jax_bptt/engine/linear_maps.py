"""The linear maps and sums over time and rows: every shape, and the precision, is settled here.

A matrix of G gates holds gate g in columns gH to (g+1)H. A cell whose w_h has one number per unit, [H],
has no recurrent product: v is then empty, and w_h is unit-wise like a leak rate.

Precision: where a cell or readout computes in a dtype of its own, such as bfloat16, the two operands of
a product are rounded to it, and that is all: the product is summed in the dtype of the parameters, and
biases, states, slopes, λ and sums over rows never leave it.

Measured in ms on 2 cores, at (T, B, H) = (96, 64, 512), LSTM, a whole phase: xᵀ as an array of its own
for Σ xᵀ δ instead of a product that contracts the first axis of both, 20 for 26 (in bfloat16 XLA:CPU
computes the latter in float32, at a third of the speed); a product a gate instead of one of joined δ,
19 for 20; W_h on the left of h_{t−1}ᵀ (feature-major) in the loop, forward 192 for 71, back no gain.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.types import DType, Gates, PointwiseParams, Units
from jax_bptt.cell.cell import Cell

PointwiseCell: TypeAlias = Cell[Any, Any]


def product(x: Array, w: Array, dtype: DType | None) -> Array:
    """x w, operands rounded to a dtype where one is given; the sum and the result are as x."""
    if dtype is None:
        return x @ w
    return jnp.matmul(x.astype(dtype), w.astype(dtype), preferred_element_type=x.dtype)


def input_gates(cell: PointwiseCell, params: PointwiseParams, x: Array) -> Gates:
    """u = x W_x + b, one array per gate; x is [..., I]."""
    blocks = zip(split(params.w_x, cell.gates), split(params.b, cell.gates), strict=True)
    return tuple(product(x, w, cell.dtype) + broadcast_leading(b, x.ndim) for w, b in blocks)


def recurrent_gates(cell: PointwiseCell, params: PointwiseParams, h_prev: Array) -> Gates:
    """v = h_prev W_h (+ b_h), one array per gate; h_prev is [..., H]."""
    if not cell.layout.recurrent:
        return ()
    v = product(h_prev, params.w_h, cell.dtype)
    if cell.layout.recurrent_bias:
        v = v + broadcast_leading(params._asdict()["b_h"], v.ndim)
    return split(v, cell.gates)


def unit_wise(cell: PointwiseCell, params: PointwiseParams, rank: int) -> Units:
    """The parameters p that the step reads, shaped to broadcast at this rank."""
    named = params._asdict()
    return {name: broadcast_leading(named[name], rank) for name in cell.layout.units}


def broadcast_leading(p: Array, rank: int) -> Array:
    """p with leading axes of length one up to this rank."""
    return p.reshape((1,) * (rank - p.ndim) + p.shape)


def split(z: Array, gates: int) -> Gates:
    """[..., G*H] to G arrays [..., H]."""
    return tuple(jnp.split(z, gates, axis=-1))


def joined(gates: Gates) -> Array:
    """G arrays [..., H] to [..., G*H]."""
    return jnp.concatenate(gates, axis=-1)


def transposed(w: Array) -> Array:
    """wᵀ as an array of its own, for a product in a loop (measured on a CPU: see `pointwise`).

    It is rounded in the loop, from where XLA lifts that: a loop over an array that is rounded already would
    have its second derivatives summed over time in that dtype.
    """
    return jax.lax.optimization_barrier(w.T)


def towards_h(cell: PointwiseCell, w_h_t: Array, d_v: Gates) -> Array:
    """Σ_g δv_g W_h,gᵀ in the loop: [..., H].

    One product of the joined gates; but in a dtype of its own on a CPU a product a gate, since XLA:CPU is
    slow to join bfloat16 arrays: the sweep in ms at (96, 64, 512), (256, 64, 256), (64, 32, 1024), a gate
    and joined, LSTM 35, 36, 46 and 49, 29, 39, GRU 22, 19, 31 and 34, 29, 30; in float32, joined is faster.
    """

    def at_once(w_h_t: Array, *d_v: Array) -> Array:
        return product(joined(d_v), w_h_t, cell.dtype)

    def by_gate(w_h_t: Array, *d_v: Array) -> Array:
        blocks = jnp.split(w_h_t, len(d_v))
        return sum_of(product(d, w, cell.dtype) for d, w in zip(d_v, blocks, strict=True))

    if cell.dtype is None:
        return at_once(w_h_t, *d_v)
    return jax.lax.platform_dependent(w_h_t, *d_v, cpu=by_gate, default=at_once)


def towards_x(cell: PointwiseCell, w_x: Array, d_u: Gates) -> Array:
    """Σ_g δu_g W_x,gᵀ: [..., I]."""
    blocks = split(w_x, cell.gates)
    return sum_of(product(d, w.T, cell.dtype) for d, w in zip(d_u, blocks, strict=True))


def sum_of(terms: Iterable[Array]) -> Array:
    """The sum of at least one array."""
    return functools.reduce(jnp.add, terms)


def sum_of_outer_products(x: Array, d: Gates, dtype: DType | None = None) -> Array:
    """Σ xᵀ d over time and every batch axis, one product a gate: [..., I], G [..., H] to [I, G*H]."""
    few = dtype is None and d[0].shape[-1] < x.shape[-1]  # not worth a copy of x
    x_t = _rows_first(x).T if few else _rows_last(x)
    return joined(tuple(product(x_t, _rows_first(d_g), dtype) for d_g in d))


def _rows_first(z: Array) -> Array:
    """[..., J] to [rows, J]."""
    return z.reshape(-1, z.shape[-1])


def _rows_last(z: Array) -> Array:
    """[..., J] to [J, rows]; an array of its own: XLA would fold a transposed matrix into the product."""
    return jnp.moveaxis(z, -1, 0).reshape(z.shape[-1], -1)


def sum_over_rows(d: Gates) -> Array:
    """Σ d over time and every batch axis: G [..., H] to [G*H]."""
    return joined(tuple(_rows_first(d_g).sum(0) for d_g in d))

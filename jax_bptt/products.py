"""The two linear maps of a pointwise cell, and sums over time and rows: every shape is settled here.

A matrix of G gates holds gate g in columns gH to (g+1)H. A cell whose w_h has one number per unit, [H],
has no recurrent product: v is then empty, and w_h is unit-wise like a leak rate.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.cell import Cell, Gates, Units


def input_gates(cell: Cell, params: Any, x: Array) -> Gates:
    """u = x W_x + b, one array per gate; x is [..., I]."""
    return split(x @ params.w_x + against(params.b, x.ndim), cell.gates)


def recurrent_gates(cell: Cell, params: Any, h_prev: Array) -> Gates:
    """v = h_prev W_h (+ b_h), one array per gate; h_prev is [..., H]."""
    if not has_recurrent_product(params):
        return ()
    v = h_prev @ params.w_h
    return split(v + against(params.b_h, v.ndim) if "b_h" in params._fields else v, cell.gates)


def has_recurrent_product(params: Any) -> bool:
    """Whether w_h is a matrix."""
    return params.w_h.ndim == 2


def unit_wise(params: Any, rank: int) -> Units:
    """The parameters p that the step reads, shaped to broadcast at this rank: no matrix, bias or carry."""
    matrices = {"w_x", "b", "b_h"} | ({"w_h"} if has_recurrent_product(params) else set())
    return {
        name: against(p, rank)
        for name, p in params._asdict().items()
        if name not in matrices and not name.endswith("_0")
    }


def against(p: Array, rank: int) -> Array:
    """p with leading axes of length one up to this rank."""
    return p.reshape((1,) * (rank - p.ndim) + p.shape)


def split(z: Array, gates: int) -> Gates:
    """[..., G*H] to G arrays [..., H]."""
    return tuple(jnp.split(z, gates, axis=-1))


def joined(gates: Gates) -> Array:
    """G arrays [..., H] to [..., G*H]."""
    return jnp.concatenate(gates, axis=-1)


def transposed(w: Array) -> Array:
    """wᵀ as an array of its own, for a product in a loop (measured on a CPU: see `pointwise`)."""
    return jax.lax.optimization_barrier(w.T)


def sum_of_outer_products(x: Array, d: Array) -> Array:
    """Σ xᵀ d over time and every batch axis, as one two-dimensional product: [..., I], [..., J] to [I, J]."""
    return x.reshape(-1, x.shape[-1]).T @ d.reshape(-1, d.shape[-1])


def sum_over_rows(d: Array) -> Array:
    """Σ d over time and every batch axis: [..., J] to [J]."""
    return d.reshape(-1, d.shape[-1]).sum(0)

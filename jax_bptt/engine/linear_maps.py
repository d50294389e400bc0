"""These are the linear maps and the sums over time and rows; they decide the shapes and the precision.

A matrix of G gates holds gate g in columns gH to (g+1)H. A cell whose w_h has one number per unit, [H],
has no recurrent product: v is then empty, and w_h is a unit-wise parameter, as a leak rate is.

A cell may have n heads: W_h is then block-diagonal for every gate, and w_h holds its blocks W_k alone,
[n, H/n, G*H/n], gate g of each block in columns gH/n to (g+1)H/n. Head k of h is units kH/n to (k+1)H/n:

    v_{t,k} = h̃_{t−1,k} W_k,   δh_k = δv_{t,k} W_kᵀ     in the loops, one product for all k         (HB1)
    dE/dW_k = Σ_t h̃_{t−1,k}ᵀ δv_{t,k}                   after them, one product for all k a gate    (HB2)

A cell or readout may have a dtype of its own for its products, such as bfloat16. Only the two operands of
a product are then rounded to it. The product is summed in the dtype of the parameters, and biases, states,
slopes, λ and sums over rows stay in that dtype.

See experiments/MEASURED.md, "Products that sum over time and rows".
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.types import DType, Gates, PointwiseParams, Units
from jax_bptt.cell.cell import Cell

PointwiseCell: TypeAlias = Cell[Any, Any]


def product(x: Array, w: Array, dtype: DType | None) -> Array:
    """x w is computed with operands rounded to dtype, if one is given; sum and result have the dtype of x.

    With the blocks of n heads for w, [n, J, K], x is [..., n, J], and the result [..., n, K].
    """
    return _rounded(jnp.matmul if w.ndim == 2 else _by_blocks, x, w, dtype)


def _by_blocks(x: Array, w: Array, **options: Any) -> Array:
    """The blocks are one product over all heads; einsum would write its result with the rows last."""
    x = jnp.moveaxis(x, -2, 0)
    over, heads = ((x.ndim - 1,), (1,)), ((0,), (0,))
    return jnp.moveaxis(jax.lax.dot_general(x, w, (over, heads), **options), 0, -2)  # (HB1)


def _rounded(times: Callable[..., Array], x: Array, w: Array, dtype: DType | None) -> Array:
    if dtype is None:
        return times(x, w)
    return times(x.astype(dtype), w.astype(dtype), preferred_element_type=x.dtype)


def input_gates(cell: PointwiseCell, params: PointwiseParams, x: Array) -> Gates:
    """u = x W_x (+ b) has one array per gate; x is [..., I]."""
    products = (product(x, w, cell.dtype) for w in split(params.w_x, cell.gates))
    if not cell.layout.bias:
        return tuple(products)
    b = split(params._asdict()["b"], cell.gates)
    return tuple(u + broadcast_leading(b_g, x.ndim) for u, b_g in zip(products, b, strict=True))


def recurrent_gates(cell: PointwiseCell, params: PointwiseParams, h_prev: Array) -> Gates:
    """v = h_prev W_h (+ b_h) has one array per gate; h_prev is [..., H]."""
    if not cell.layout.recurrent:
        return ()
    v = product(by_head(cell, h_prev), params.w_h, cell.dtype)
    if cell.layout.recurrent_bias:
        b_h = params._asdict()["b_h"]
        if cell.layout.heads:
            b_h = joined(tuple(by_head(cell, b) for b in split(b_h, cell.gates)))
        v = v + broadcast_leading(b_h, v.ndim)
    return tuple(of_all_heads(cell, v_g) for v_g in split(v, cell.gates))


def by_head(cell: PointwiseCell, z: Array) -> Array:
    """An array [..., H] becomes one of [..., n, H/n]; without heads it stays as it is."""
    heads = cell.layout.heads
    return z.reshape(*z.shape[:-1], heads, z.shape[-1] // heads) if heads else z


def of_all_heads(cell: PointwiseCell, z: Array) -> Array:
    """An array [..., n, H/n] becomes one of [..., H] again."""
    return z.reshape(*z.shape[:-2], cell.hidden_size) if cell.layout.heads else z


def whole_matrix(cell: PointwiseCell, w_h: Array) -> Array:
    """W_h, [H, G*H]: of heads with zeros outside their blocks."""
    heads, gates = cell.layout.heads, cell.gates
    if not heads:
        return w_h
    units = w_h.shape[1]
    blocks = w_h.reshape(heads, units, gates, units)
    everywhere = jnp.einsum("kigj,kl->kiglj", blocks, jnp.eye(heads, dtype=w_h.dtype))
    return everywhere.reshape(heads * units, gates * heads * units)


def unit_wise(cell: PointwiseCell, params: PointwiseParams, rank: int) -> Units:
    """The parameters p that the step reads get shapes that broadcast at this rank."""
    named = params._asdict()
    return {name: broadcast_leading(named[name], rank) for name in cell.layout.units}


def broadcast_leading(p: Array, rank: int) -> Array:
    """p gets leading axes of length one, up to this rank."""
    return p.reshape((1,) * (rank - p.ndim) + p.shape)


def split(z: Array, gates: int) -> Gates:
    """An array [..., G*H] is split into G arrays [..., H]."""
    return tuple(jnp.split(z, gates, axis=-1))


def joined(gates: Gates) -> Array:
    """G arrays [..., H] are joined into one of [..., G*H]."""
    return jnp.concatenate(gates, axis=-1)


def transposed(w: Array) -> Array:
    """wᵀ becomes an array of its own, because a product in a loop is faster with it.

    See experiments/MEASURED.md, "Layout of the backward loop". The array is rounded in the loop, and XLA
    moves the rounding out of it. If it were rounded before the loop, second derivatives would be summed over
    time in the shorter dtype.
    """
    # the barrier stops XLA from merging the transposition into the product
    return jax.lax.optimization_barrier(jnp.matrix_transpose(w))


def towards_h(cell: PointwiseCell, w_h_t: Array, d_v: Gates) -> Array:
    """Σ_g δv_g W_h,gᵀ is computed in the loop: [..., H].

    It is one product of the joined gates; but on a CPU, in a shorter dtype, it is one product per gate,
    because XLA:CPU is slow to join bfloat16 arrays. See experiments/MEASURED.md, "Joined gates in bfloat16".
    """

    def at_once(w_h_t: Array, *d_v: Array) -> Array:
        return product(joined(d_v), w_h_t, cell.dtype)

    def by_gate(w_h_t: Array, *d_v: Array) -> Array:
        blocks = jnp.split(w_h_t, len(d_v), axis=-2)
        return sum_of(product(d, w, cell.dtype) for d, w in zip(d_v, blocks, strict=True))

    d_v = tuple(by_head(cell, d) for d in d_v)
    if cell.dtype is None:
        return of_all_heads(cell, at_once(w_h_t, *d_v))
    return of_all_heads(cell, jax.lax.platform_dependent(w_h_t, *d_v, cpu=by_gate, default=at_once))


def towards_x(cell: PointwiseCell, w_x: Array, d_u: Gates) -> Array:
    """Σ_g δu_g W_x,gᵀ is [..., I]."""
    blocks = split(w_x, cell.gates)
    return sum_of(product(d, w.T, cell.dtype) for d, w in zip(d_u, blocks, strict=True))


def sum_of(terms: Iterable[Array]) -> Array:
    """The terms are added up; there must be at least one."""
    return functools.reduce(jnp.add, terms)


def sum_of_outer_products(x: Array, d: Gates, dtype: DType | None = None) -> Array:
    """Σ xᵀ d goes over time and every batch axis, one product per gate: [..., I], G [..., H] to [I, G*H]."""
    few = dtype is None and d[0].shape[-1] < x.shape[-1]  # a small product is not worth a copy of x
    x_t = _rows_first(x).T if few else _rows_last(x)
    return joined(tuple(product(x_t, _rows_first(d_g), dtype) for d_g in d))


def gradient_of_w_h(cell: PointwiseCell, h: Array, d_v: Gates) -> Array:
    """dE/dW_h = Σ hᵀ δv goes over time and every batch axis; it is shaped like w_h."""
    if not cell.layout.heads:
        return sum_of_outer_products(h, d_v, cell.dtype)
    of_blocks = functools.partial(jnp.einsum, "rnj,rnk->njk")
    h, *by_gate = (by_head(cell, _rows_first(z)) for z in (h, *d_v))
    return joined(tuple(_rounded(of_blocks, h, d, cell.dtype) for d in by_gate))  # (HB2)


def _rows_first(z: Array) -> Array:
    """An array [..., J] becomes one of [rows, J]."""
    return z.reshape(-1, z.shape[-1])


def _rows_last(z: Array) -> Array:
    """An array [..., J] becomes one of [J, rows]; the copy makes a product faster than a transpose does."""
    # the reshape forces the copy: XLA would merge a plain transpose into the product
    return jnp.moveaxis(z, -1, 0).reshape(z.shape[-1], -1)


def sum_over_rows(d: Gates) -> Array:
    """Σ d goes over time and every batch axis: G [..., H] to [G*H]."""
    return joined(tuple(_rows_first(d_g).sum(0) for d_g in d))

"""The Jacobians of all steps at once: J_t = ds_t/ds̃_{t−1}, matrices that a parallel scan multiplies.

A carry is written as vectors on which they act, in one of two forms:

    WHOLE   [..., S]      S numbers in one row's carry       matrices [..., S, S]
    UNITS   [..., H, n]   n fields of the carry, each [H]    matrices [..., H, n, n]

The second is exact where no unit reads another (no recurrent product); elsewhere it holds the blocks
of J_t on its diagonal, one for each unit, and a quasi-Newton method is content with these.

A pointwise step needs n adjoints and no matrix product: with λ = e_f, ones in field f of every unit,

    pointwise   D_kf, δv_kf = adjoint(a_t, e_f) of unit k     D_kf is [n], δv_kf is [G]           (J1)
                UNITS   J_k,ff′ = D_kff′ + [f′ = h] Σ_g δv_kfg W_h[k, gH + k]                      (J2)
                WHOLE   J_fk,f′j = [k = j] D_kff′ + [f′ = h] Σ_g δv_kfg W_h[j, gH + k]             (J3)

    any step    row i of J_t = (ds_t/ds̃_{t−1})ᵀ e_i, which is linear in e_i                       (J4)

    marks       M_t = J_t where mask_t, 1 elsewhere; 0 where the way back is closed               (J5)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_bptt.cell.cell import Cell
from jax_bptt.engine import loops
from jax_bptt.engine.devices import as_own
from jax_bptt.engine.linear_maps import has_recurrent_product, unit_wise
from jax_bptt.engine.sequence import select


class Form(NamedTuple):
    """How a carry is written as vectors.

    Attributes:
      pack: a carry, leaves [..., *], to [..., n].
      unpack: ([..., n], a carry whose leaves end in the same shapes) back to a carry.
    """

    pack: Callable[[Any], Array]
    unpack: Callable[[Array, Any], Any]


def _pack_whole(carry: Any) -> Array:
    rows = carry.h.shape[:-1]
    return jnp.concatenate([z.reshape(*rows, -1) for z in jax.tree.leaves(carry)], -1)


def _unpack_whole(z: Array, like: Any) -> Any:
    leaves, structure = jax.tree.flatten(like)
    shapes = [leaf.shape[like.h.ndim - 1 :] for leaf in leaves]
    parts = jnp.split(z, np.cumsum([math.prod(shape) for shape in shapes])[:-1], -1)
    whole = [part.reshape(*z.shape[:-1], *shape) for part, shape in zip(parts, shapes, strict=True)]
    return jax.tree.unflatten(structure, whole)


def _pack_units(carry: Any) -> Array:
    return jnp.stack(jax.tree.leaves(carry), -1)


def _unpack_units(z: Array, like: Any) -> Any:
    return jax.tree.unflatten(jax.tree.structure(like), list(jnp.moveaxis(z, -1, 0)))


WHOLE, UNITS = Form(_pack_whole, _unpack_whole), Form(_pack_units, _unpack_units)


def form_of(cell: Any, params: Any) -> Form:
    """The smaller form in which the Jacobians of this cell are exact."""
    return UNITS if isinstance(cell, Cell) and not has_recurrent_product(params) else WHOLE


def jacobians(cell: Any, params: Any, a: Any, states: Any, form: Form) -> Array:
    """J_1..J_T, [T, ..., n, n], from a_1..a_T of `loops.linearise`; states tells the shapes alone."""
    if isinstance(cell, Cell):
        return _of_pointwise_step(cell, params, a, states, form)
    return (_of_any_step if form is WHOLE else _blocks_of_any_step)(cell, params, a, states)


def links(j: Array, mask: Array | None, *closed: Array | None) -> Array:
    """M_1..M_T from J_1..J_T: identity where the carry is held, zero where any mark closes the way back."""
    m = select(mask, j, jnp.broadcast_to(jnp.eye(j.shape[-1], dtype=j.dtype), j.shape))  # (J5)
    for mark in closed:
        m = m if mark is None else select(mark, jnp.zeros_like(m), m)  # (J5)
    return m


def times(a: Array, b: Array) -> Array:
    """a b, matrices [..., n, m] and [..., m, k]; a small m without dots, slow for many tiny ones."""
    return (a[..., None] * b[..., None, :, :]).sum(-2) if a.shape[-1] <= 4 else a @ b


def backward_steps(cell: Any, params: Any, a: Any, lam: Any) -> Any:
    """(ds_t/ds̃_{t−1})ᵀ λ_t for all t at once, leaves [T, ..., H]."""
    engine = loops.engine_of(cell)
    fixed = engine.before_sweep(cell, params)
    return jax.vmap(functools.partial(engine.backward_step, cell, params, fixed))(a, lam)


def adjoints_of_fields(cell: Cell, params: Any, a: Any, states: Any) -> tuple[Array, Array | None]:
    """D [T, ..., H, n, n] and δv [T, ..., H, n, G] of a pointwise step; None without a recurrent product."""
    units, fields = unit_wise(params, states.h.ndim - 1), len(states)

    def of_field(e_f: Array) -> tuple[Array, Array | None]:
        lam = UNITS.unpack(jnp.broadcast_to(e_f, (*states.h.shape, fields)), states)
        towards = jax.vmap(functools.partial(cell.adjoint, units))(a, lam)  # (J1)
        return UNITS.pack(towards.carry), jnp.stack(towards.v, -1) if towards.v else None

    return jax.vmap(of_field, out_axes=-2)(as_own(jnp.eye(fields, dtype=states.h.dtype), states))


def _of_pointwise_step(cell: Cell, params: Any, a: Any, states: Any, form: Form) -> Array:
    fields, hidden = len(states), cell.hidden_size
    direct, d_v = adjoints_of_fields(cell, params, a, states)
    if d_v is None:
        return direct
    is_h = jnp.eye(fields, dtype=states.h.dtype)[states._fields.index("h")]
    w_h = params.w_h.reshape(hidden, cell.gates, hidden)
    if form is UNITS:
        through = jnp.einsum("...kfg,kgk,e->...kfe", d_v, w_h, is_h)
        return direct + through  # (J2)
    through = jnp.einsum("...kfg,jgk,e->...fkej", d_v, w_h, is_h)
    j = jnp.einsum("...kfe,kj->...fkej", direct, jnp.eye(hidden, dtype=w_h.dtype)) + through  # (J3)
    return j.reshape(*states.h.shape[:-1], fields * hidden, fields * hidden)


def _of_any_step(cell: Any, params: Any, a: Any, states: Any) -> Array:
    shape = jax.eval_shape(WHOLE.pack, states).shape

    def row(e_i: Array) -> Array:
        lam = WHOLE.unpack(jnp.broadcast_to(e_i, shape), states)
        return WHOLE.pack(backward_steps(cell, params, a, lam))  # (J4)

    return jax.vmap(row, out_axes=-2)(as_own(jnp.eye(shape[-1], dtype=states.h.dtype), states))


def _blocks_of_any_step(cell: Any, params: Any, a: Any, states: Any) -> Array:
    """The block of each unit; one unit after the other, so that no [T, ..., S, S] comes to be."""
    shape, fields, hidden = states.h.shape, len(states), cell.hidden_size
    every_field = as_own(jnp.eye(fields, dtype=states.h.dtype), states)

    def of_unit(e_k: Array, k: Array) -> Array:
        def row(e_f: Array) -> Array:
            lam = UNITS.unpack(jnp.broadcast_to(jnp.outer(e_k, e_f), (*shape, fields)), states)
            return jnp.take(UNITS.pack(backward_steps(cell, params, a, lam)), k, -2)  # (J4)

        return jax.vmap(row, out_axes=-2)(every_field)

    units = jnp.eye(hidden, dtype=states.h.dtype), jnp.arange(hidden)
    return jnp.moveaxis(jax.lax.map(lambda unit: of_unit(*unit), units), 0, -3)

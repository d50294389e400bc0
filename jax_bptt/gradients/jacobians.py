"""The Jacobians J_t = ds_t/ds̃_{t−1} of all steps are computed at once, for a parallel scan to multiply.

They act on vectors, so a carry is written as vectors, in one of two forms:

    WHOLE   [..., S]      S numbers in one row's carry       matrices [..., S, S]
    UNITS   [..., H, n]   n fields of the carry, each [H]    matrices [..., H, n, n]

UNITS is exact where no unit reads another one, that is, without recurrent weights between units. In other
cells it holds only the diagonal blocks of J_t, one for each unit; these are enough for a quasi-Newton method.

A pointwise step, which `independence` tests, needs n adjoints and no matrix product. With λ = e_f, that is,
ones in field f of every unit:

    pointwise   D_kf, δv_kf = adjoint(a_t, e_f) of unit k     D_kf is [n], δv_kf is [G]           (J1)
                UNITS   J_k,ff′ = D_kff′ + [f′ = h] Σ_g δv_kfg W_h[k, gH + k]                      (J2)
                WHOLE   J_fk,f′j = [k = j] D_kff′ + [f′ = h] Σ_g δv_kfg W_h[j, gH + k]             (J3)

    any step    row i of J_t = (ds_t/ds̃_{t−1})ᵀ e_i, which is linear in e_i                       (J4)

    marks       M_t = J_t where mask_t, 1 elsewhere; 0 where the way back is closed               (J5)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.trees import from_vector, spread, to_vector
from jax_bptt.base.types import ArrayTree, Mark, PointwiseParams, S, Slopes, State
from jax_bptt.cell.body import Body
from jax_bptt.cell.step_cell import AnyCell
from jax_bptt.engine.devices import to_local
from jax_bptt.engine.engine import Runnable
from jax_bptt.engine.linear_maps import PointwiseCell, unit_wise, whole_matrix
from jax_bptt.engine.phases import backward_steps, is_pointwise
from jax_bptt.gradients.independence import check_independence


class Form(NamedTuple):
    """A form says how a carry is written as vectors.

    Attributes:
      pack: (a carry, leaves [..., *], the number of its leading axes) -> one array [..., n].
      unpack: (an array [..., n], a carry whose leaves have the right shapes) -> a carry.
    """

    pack: Callable[[State, int], Array]
    unpack: Callable[[Array, S], S]


def _pack_units(carry: State, axes: int) -> Array:
    return jnp.stack(jax.tree.leaves(carry), -1)


def _unpack_units(z: Array, like: S) -> S:
    unpacked: S = jax.tree.unflatten(jax.tree.structure(like), list(jnp.moveaxis(z, -1, 0)))
    return unpacked


WHOLE, UNITS = Form(to_vector, from_vector), Form(_pack_units, _unpack_units)


def form_of(cell: Runnable) -> Form:
    """This is the smallest form in which the Jacobians of this cell are exact."""
    return UNITS if is_pointwise(cell) and not cell.layout.recurrent else WHOLE


def jacobians(cell: Runnable, params: ArrayTree, slopes: Slopes, states: State, form: Form) -> Array:
    """The slopes a_1..a_T of `phases.linearise` give J_1..J_T, [T, ..., n, n]; states give the shapes."""
    if is_pointwise(cell):
        return _of_pointwise_step(cell, params, slopes, states, form)
    if form is WHOLE:
        axes = 1 if isinstance(cell, Body) else states.h.ndim - 1  # time, and the rows of a cell
        return _of_any_step(cell, params, slopes, states, axes)
    assert not isinstance(cell, Body)  # its carry has no units, and Newton refuses `diagonal` for it
    return _blocks_of_any_step(cell, params, slopes, states)


def jacobians_with_marks(j: Array, form: Form, states: State, axes: int, mask: Mark, *ended: Mark) -> Array:
    """M_t is J_t, but the identity where the carry is held and zero where a mark stops the gradient.

    states give the shapes, and axes is the number of their leading axes, as for `Form.pack`.
    """
    m = j
    if mask is not None:
        held = jnp.broadcast_to(jnp.eye(j.shape[-1], dtype=j.dtype), j.shape)
        m = jnp.where(form.pack(spread(mask, states), axes)[..., :, None], j, held)  # (J5)
    for mark in ended:
        if mark is not None:
            stops = form.pack(spread(mark, states), axes)[..., None, :]
            m = jnp.where(stops, jnp.zeros_like(m), m)  # (J5)
    return m


def small_matmul(a: Array, b: Array) -> Array:
    """The product of [..., n, m] and [..., m, k] is a sum for m <= 4: many tiny matrix products are slow."""
    return (a[..., None] * b[..., None, :, :]).sum(-2) if a.shape[-1] <= 4 else a @ b


def adjoints_of_fields(
    cell: PointwiseCell, params: PointwiseParams, slopes: Slopes, states: State
) -> tuple[Array, Array | None]:
    """A pointwise step has D [T, ..., H, n, n] and δv [T, ..., H, n, G], None without recurrent weights."""
    check_independence(cell, states.h.dtype)
    units, fields = unit_wise(cell, params, states.h.ndim - 1), len(jax.tree.leaves(states))

    def of_field(e_f: Array) -> tuple[Array, Array | None]:
        lam = UNITS.unpack(jnp.broadcast_to(e_f, (*states.h.shape, fields)), states)
        towards = jax.vmap(functools.partial(cell.adjoint, units))(slopes, lam)  # (J1)
        return UNITS.pack(towards.carry, 0), jnp.stack(towards.v, -1) if towards.v else None

    return jax.vmap(of_field, out_axes=-2)(to_local(jnp.eye(fields, dtype=states.h.dtype), states))


def _of_pointwise_step(
    cell: PointwiseCell, params: PointwiseParams, slopes: Slopes, states: State, form: Form
) -> Array:
    leaves, hidden = jax.tree.leaves(states), cell.hidden_size
    fields = len(leaves)
    direct, d_v = adjoints_of_fields(cell, params, slopes, states)
    if d_v is None:
        return direct
    is_h = jnp.eye(fields, dtype=states.h.dtype)[states._fields.index("h")]  # type: ignore[attr-defined]
    w_h = whole_matrix(cell, params.w_h).reshape(hidden, cell.gates, hidden)
    if form is UNITS:
        through = jnp.einsum("...kfg,kgk,e->...kfe", d_v, w_h, is_h)
        return direct + through  # (J2)
    through = jnp.einsum("...kfg,jgk,e->...fkej", d_v, w_h, is_h)
    j = jnp.einsum("...kfe,kj->...fkej", direct, jnp.eye(hidden, dtype=w_h.dtype)) + through  # (J3)
    return j.reshape(*states.h.shape[:-1], fields * hidden, fields * hidden)


def _of_any_step(cell: Runnable, params: ArrayTree, slopes: Slopes, states: State, axes: int) -> Array:
    packed = jax.eval_shape(lambda: WHOLE.pack(states, axes))

    def row(e_i: Array) -> Array:
        lam = WHOLE.unpack(jnp.broadcast_to(e_i, packed.shape), states)
        return WHOLE.pack(backward_steps(cell, params, slopes, lam), axes)  # (J4)

    return jax.vmap(row, out_axes=-2)(to_local(jnp.eye(packed.shape[-1], dtype=packed.dtype), states))


def _blocks_of_any_step(cell: AnyCell, params: ArrayTree, slopes: Slopes, states: State) -> Array:
    """The block of each unit is made one unit after the other, so that no array [T, ..., S, S] exists."""
    shape, fields, hidden = states.h.shape, len(jax.tree.leaves(states)), cell.hidden_size
    every_field = to_local(jnp.eye(fields, dtype=states.h.dtype), states)

    def of_unit(e_k: Array, k: Array) -> Array:
        def row(e_f: Array) -> Array:
            lam = UNITS.unpack(jnp.broadcast_to(jnp.outer(e_k, e_f), (*shape, fields)), states)
            return jnp.take(UNITS.pack(backward_steps(cell, params, slopes, lam), 0), k, -2)  # (J4)

        return jax.vmap(row, out_axes=-2)(every_field)

    units = jnp.eye(hidden, dtype=states.h.dtype), jnp.arange(hidden)
    return jnp.moveaxis(jax.lax.map(lambda unit: of_unit(*unit), units), 0, -3)

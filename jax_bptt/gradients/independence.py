"""Jacobians of a pointwise step are right only if no unit and no row reads another one; this is tested here.

    λ = 0 outside a set of units  ⇒  ∂/∂s_{t−1}, ∂/∂u_t and ∂/∂v_t of <λ, s_t> are 0 outside it       (IP1)

The sets are those of the units whose number has bit k, and those of the others, for every k. Any two units
differ in some bit, so some set holds the one and not the other. A softmax, a mean or a product over units is
an ordinary function to JAX, so the adjoint is run with random numbers. It is linear in λ, so what does not
depend on λ is zero without rounding, and any other number tells of units that read each other.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.errors import bad
from jax_bptt.base.types import DType, Gates, State, Units
from jax_bptt.engine.linear_maps import PointwiseCell

_ROWS = 4


class _Reads(NamedTuple):
    """Whether units read other units, and rows other rows."""

    units: bool
    rows: bool


def check_independence(cell: PointwiseCell, dtype: DType) -> None:
    """No unit and no row of a pointwise step may read another one, or a ValueError is raised."""
    reads = _reads_others(cell, jnp.dtype(dtype))
    if reads.units:
        fix = "use jb.step_cell for a step whose units read each other"
        raise bad("step", f"a pointwise step of {cell}", "units that read each other", fix)
    if reads.rows:
        fix = "write the step for one row: what it computes from other rows depends on their padding"
        raise bad("step", f"a pointwise step of {cell}", "rows that read each other", fix)


@cached()
def _reads_others(cell: PointwiseCell, dtype: DType) -> _Reads:
    """The adjoint is run once for a cell, with numbers even where its caller is being traced."""
    draw, hidden = np.random.default_rng(0), cell.hidden_size

    def numbers(_: object = None) -> np.ndarray:
        z = draw.normal(size=(_ROWS, hidden))
        z[::2] = np.abs(z[::2])  # for steps that take a root or a logarithm
        return z.astype(dtype)

    of_carry = jax.eval_shape(lambda: cell.initial_carry(cell.init(jax.random.key(0)), (_ROWS,)))
    s_prev, lam = (jax.tree.map(numbers, of_carry) for _ in range(2))
    u, v = (tuple(map(numbers, cell.gate_names)) for _ in range(2))
    units = {name: numbers() for name in cell.layout.units}
    at = units, s_prev, u, v if cell.layout.recurrent else (), lam
    of_units, of_rows = _sets(hidden)[:, None], _sets(_ROWS)[..., None]
    sets = np.concatenate([np.broadcast_to(z, (len(z), _ROWS, hidden)) for z in (of_units, of_rows)])
    # a program that is compiled by itself runs at once, also inside jax.jit
    with jax.disable_jit(False), jax.transfer_guard("allow"):
        leaks = np.asarray(jax.jit(functools.partial(_leaks, cell)).lower(sets, *at).compile()(sets, *at))
    return _Reads(bool(leaks[: len(of_units)].any()), bool(leaks[len(of_units) :].any()))


def _leaks(
    cell: PointwiseCell, sets: Array, units: Units, s_prev: State, u: Gates, v: Gates, lam: State
) -> Array:
    """Whether (IP1) fails, for each set [..., H] of all rows and units: bool [sets]."""
    slopes = cell.linearise(units, s_prev, u, v, cell.step(units, s_prev, u, v))

    def leaks(inside: Array) -> Array:
        towards = cell.adjoint(units, slopes, jax.tree.map(lambda z: jnp.where(inside, z, 0 * z), lam))
        found = [~inside & (z != 0) & jnp.isfinite(z) for z in jax.tree.leaves(towards._replace(units={}))]
        return jnp.stack(found).any()  # (IP1)

    return jax.vmap(leaks)(sets)


def _sets(count: int) -> np.ndarray:
    """For every bit the numbers below count that have it, and those that have not: bool [sets, count]."""
    bits = np.arange(count) >> np.arange(max(1, (count - 1).bit_length()))[:, None] & 1
    return np.concatenate([bits, 1 - bits]).astype(bool)

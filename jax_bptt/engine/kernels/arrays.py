"""Arrays go from the layout of the engine to that of the kernels, and back.

    engine   [T, ..., H]     kernel   [T, H′, B′]     B′ rows: all batch axes, filled up to whole tiles
    weights  [H, G H]                 bfloat16 parts  H′ units: filled up to whole warpgroups

A row or unit that is added is a copy of the last one, so it computes nothing that the last one does not: 0
in its place could make a NaN in a step such as 1/v, and 0 · NaN is NaN. What the others read of it is
multiplied by weights of zero:

    forward    W_hᵀ [G H′, H′]    rows of added units are copies, columns are zero                    (KA1)
    backward   W_h  [H′, G H′]    rows of added units are copies, columns are zero                    (KA2)

A float32 number is a sum of two bfloat16 numbers, up to 16 bits:

    hi = w rounded to 8 bits,   lo = w − hi rounded to 8 bits                                         (KA3)
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jax_bptt.base.types import Gates, Mark, Shape, Tree
from jax_bptt.engine.kernels.table import Blocks


class Layout(NamedTuple):
    """This is the shape of one run, for its way into a kernel and back.

    Attributes:
      rows: the batch axes.
      units: H.
      tile: the rows of a tile.
      all_units: H′.
    """

    rows: Shape
    units: int
    tile: int
    all_units: int

    def of_units(self, p: Array) -> Array:
        """Numbers per unit, [..., H] to [..., H′]."""
        return _filled(p, -1, self.all_units)

    def of_rows(self, tree: Tree) -> Tree:
        """Leaves [..., H] of one step become [H′, B′]."""
        return jax.tree.map(lambda z: self._turned(z[None])[0], tree)

    def of_steps(self, tree: Tree) -> Tree:
        """Leaves [T, ..., H] become [T, H′, B′]."""
        return jax.tree.map(self._turned, tree)

    def of_gates(self, gates: Gates) -> Array:
        """G arrays [T, ..., H] become [T, G, H′, B′]."""
        return jnp.stack(self.of_steps(gates), 1)

    def of_mark(self, mark: Mark) -> Array | None:
        """A mark [T, ...] becomes numbers [T, B′]; it may have fewer axes than there are batch axes."""
        if mark is None:
            return None
        full = (len(mark), *self.rows)
        numbers = mark.astype(jnp.float32).reshape(mark.shape + (1,) * (len(full) - mark.ndim))
        flat = jnp.broadcast_to(numbers, full).reshape(len(mark), math.prod(self.rows))
        return _filled(flat, 1, -(-flat.shape[1] // self.tile) * self.tile)

    def rows_back(self, tree: Tree) -> Tree:
        """Leaves [H′, B′] of a kernel become [..., H]."""
        return jax.tree.map(lambda z: self._back(z[None])[0], tree)

    def steps_back(self, tree: Tree) -> Tree:
        """Leaves [T, H′, B′] of a kernel become [T, ..., H]."""
        return jax.tree.map(self._back, tree)

    def _turned(self, z: Array) -> Array:
        flat = z.reshape(len(z), math.prod(self.rows), self.units)
        rows = -(-flat.shape[1] // self.tile) * self.tile
        return jnp.swapaxes(_filled(self.of_units(flat), 1, rows), 1, 2)

    def _back(self, z: Array) -> Array:
        there = z[:, : self.units, : math.prod(self.rows)]
        return jnp.swapaxes(there, 1, 2).reshape(len(z), *self.rows, self.units)


def _filled(z: Array, axis: int, size: int) -> Array:
    """The last entry along an axis is repeated, up to this size."""
    there = z.shape[axis]
    if there == size:
        return z
    last = lax.slice_in_dim(z, there - 1, there, axis=axis)
    return jnp.concatenate([z, jnp.repeat(last, size - there, axis)], axis)


def _in_parts(w: Array, parts: int) -> Array:
    """[parts, ...] in bfloat16."""
    if parts == 1:
        return w.astype(jnp.bfloat16)[None]
    # XLA may take float32(bfloat16(w)) for w, but not a number whose precision is reduced by this operation
    hi = lax.reduce_precision(w, exponent_bits=8, mantissa_bits=7)
    return jnp.stack([hi, w - hi]).astype(jnp.bfloat16)  # (KA3)


def _with_zeros(z: Array, size: int) -> Array:
    return jnp.pad(z, [(0, 0)] * (z.ndim - 1) + [(0, size - z.shape[-1])])


def forward_weights(w_h: Array, blocks: Blocks) -> Array:
    """W_hᵀ of the forward kernel, [parts, G H′, H′], from [H, G H]."""
    hidden, to = len(w_h), blocks.units
    by_gate = w_h.T.reshape(-1, hidden, hidden)
    filled = _with_zeros(_filled(by_gate, 1, to), to)  # (KA1)
    return _in_parts(filled.reshape(-1, to), blocks.parts)


def backward_weights(w_h: Array, blocks: Blocks) -> Array:
    """W_h of the backward kernel, [parts, H′, G H′], from [H, G H]."""
    hidden, to = len(w_h), blocks.units
    by_gate: Any = w_h.reshape(hidden, -1, hidden)
    filled = _with_zeros(_filled(by_gate, 0, to), to)  # (KA2)
    return _in_parts(filled.reshape(to, -1), blocks.parts)

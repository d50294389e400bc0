"""The parts of a kernel that the forward and the backward loop share.

In a kernel arrays are [units, rows], so that a product W z takes its units from W and its rows from z. Each
warpgroup has 64 units: their state in registers, in float32, for all steps. What a product reads must lie in
shared memory, as bfloat16 numbers; one operand is shared by all units, so they put it there at every step:

    share    each warpgroup writes its z_t into buffer t mod 2, of every block of the cluster          (KP1)
    gather   all wait until all have written; a writer is done with the same buffer of two steps ago,
             because it has since waited for all others once                                           (KP2)
    product  Σ_k W_jk z_k, with W = W₁ + W₂ and z = z₁ + z₂ in float32:
             W₁ z₁ + W₁ z₂ + W₂ z₁         without the smallest, W₂ z₂                                 (KP3)

This module imports Pallas, so it is imported where a kernel is traced and not before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu

from jax_bptt.base.types import ArrayTree, Gates, Tree
from jax_bptt.engine.devices import varying
from jax_bptt.engine.kernels.table import GROUP, Blocks

Ref: TypeAlias = Any  # a piece of memory that a kernel reads and writes
Refs: TypeAlias = Any  # a tree of them

plgpu: Any = mosaic_gpu  # its types differ from version to version

FLOAT = jnp.float32
UNITS_AND_ROWS = plgpu.Layout.WGMMA
PER_ROW, PER_UNIT = UNITS_AND_ROWS.reduce(0), UNITS_AND_ROWS.reduce(1)


class Place:
    """This is where a warpgroup works: its rows, its units, and its part of the weights of its block."""

    def __init__(self, blocks: Blocks) -> None:
        block, group = lax.axis_index("block"), lax.axis_index("group")
        self.blocks = blocks
        self.shape = GROUP, blocks.tile
        self.rows = pl.ds(lax.axis_index("tile") * blocks.tile, blocks.tile)
        self.own = GROUP * blocks.groups  # the units of a block
        self.first_of_block = block * self.own
        self.of_weights = group * GROUP  # the first unit of this warpgroup, counted in its block
        self.first = self.first_of_block + self.of_weights
        self.units = pl.ds(self.first, GROUP)
        self.is_first_group = group == 0

    def load(self, refs: Refs, *before: Any) -> Any:
        """A tree of numbers [..., H′, B′] is read at these places of the axes before; None stays."""
        at = (*before, self.units, self.rows)
        # times one: what is read directly would differ in type from what a loop returns
        return jax.tree.map(lambda ref: _load(ref.at[at], UNITS_AND_ROWS) * 1, refs)

    def store(self, refs: Refs, tree: ArrayTree, *before: Any) -> None:
        """A tree of numbers is written, where there is a place for it."""
        at = (*before, self.units, self.rows)
        for ref, z in zip(jax.tree.leaves(refs), jax.tree.leaves(tree), strict=True):
            if hasattr(plgpu, "store"):  # from JAX 0.12; it wants to be told that rows are written in parts
                plgpu.store(ref.at[at], z, optimized=False)
            else:
                ref[at] = z

    def per_unit(self, ref: Ref, *before: Any) -> Array:
        """A number per unit, [..., H′], becomes an array [units, rows]."""
        return lax.broadcast_in_dim(_load(ref.at[(*before, self.units)], PER_UNIT), self.shape, (0,))

    def of_row(self, ref: Ref, t: Array) -> Array:
        """A number per row at step t, [T, B′], becomes an array [units, rows]."""
        return lax.broadcast_in_dim(_load(ref.at[t, self.rows], PER_ROW), self.shape, (1,))

    def marked(self, ref: Ref | None, t: Array) -> Array | None:
        """A mark of step t as bools; None if there is no such mark."""
        return None if ref is None else self.of_row(ref, t) > 0.5

    def zeros_like(self, tree: Tree) -> Tree:
        """Zeros for a tree of numbers."""
        return in_registers(jax.tree.map(lambda _: jnp.zeros(self.shape, FLOAT), tree))


def _load(ref: Ref, layout: Any) -> Array:
    return plgpu.load(ref, layout=layout, optimized=False)


def in_registers(tree: Tree) -> Tree:
    """Numbers that the compiler knows to be equal, such as zeros, are spread like all others."""
    return jax.tree.map(lambda z: plgpu.layout_cast(z, UNITS_AND_ROWS), tree)


class Operand:
    """This is the operand z of a product, in shared memory: two buffers, which the warpgroups fill together.

    With one block it lies there as [rows, k]; blocks that write into each other cannot turn it, so in a
    cluster it is [k, rows].
    """

    def __init__(self, blocks: Blocks, memory: Ref, barrier: Ref) -> None:
        self.blocks, self.memory, self.barrier = blocks, memory, barrier

    @staticmethod
    def scratch(blocks: Blocks, k: int, writes: int) -> list[Any]:
        """The memory and the barrier of an operand of k units, to which a warpgroup writes so many times."""
        parts, tile = blocks.parts, blocks.tile
        if blocks.blocks == 1:
            memory = (2 * parts, tile, k)
            barrier = plgpu.Barrier(num_arrivals=blocks.groups)
        else:
            memory = (2 * parts, k, tile)
            arrivals = blocks.groups * blocks.blocks * writes * parts
            barrier = plgpu.Barrier(num_arrivals=arrivals, num_barriers=2)
        return [plgpu.SMEM(memory, jnp.bfloat16, transforms=_swizzled(blocks)), barrier]

    def at(self, t: Array) -> list[Ref]:
        """Its parts at step t, [k, rows] each."""
        views = [self.memory.at[(t % 2) * self.blocks.parts + i] for i in range(self.blocks.parts)]
        return views if self.blocks.blocks > 1 else [view.T for view in views]

    def share(self, t: Array, pieces: list[tuple[Any, Array]]) -> None:
        """Each piece, with the number of its first unit, is written where all read it (KP1)."""
        alone, views = self.blocks.blocks == 1, self.at(t)
        for first, z in pieces:
            for view, part in zip(views, _parts_of(z, self.blocks.parts), strict=True):
                if alone:
                    view[pl.ds(first, GROUP), :] = part  # (KP1)
                else:
                    self._send(t, view.at[pl.ds(first, GROUP)], part)
        if alone:
            plgpu.commit_smem()
            plgpu.barrier_arrive(self.barrier)

    def _send(self, t: Array, view: Ref, part: Array) -> None:
        for block in range(self.blocks.blocks):
            plgpu.async_store_smem(
                part,
                view,
                self.barrier.at[t % 2],
                cluster_idx=jnp.int32(block),
                cluster_dim="block",
                optimized=False,
            )

    def gather(self, t: Array) -> None:
        """This waits until all pieces of step t are there (KP2)."""
        if self.blocks.blocks == 1:
            plgpu.barrier_wait(self.barrier)  # (KP2)
        else:
            plgpu.barrier_wait(self.barrier.at[t % 2])
            plgpu.commit_smem()


def _parts_of(z: Array, parts: int) -> list[Array]:
    hi = z.astype(jnp.bfloat16)
    return [hi] if parts == 1 else [hi, (z - hi.astype(FLOAT)).astype(jnp.bfloat16)]


def _swizzled(blocks: Blocks) -> tuple[Any, ...]:
    """How an operand of a product lies in shared memory: in tiles of 8 by n numbers."""
    n = 64 if blocks.blocks == 1 else blocks.tile
    return plgpu.TilingTransform((8, n)), plgpu.SwizzleTransform(2 * n)


def weights_memory(blocks: Blocks, rows: int, columns: int) -> Any:
    """The shared memory for the weights of a block."""
    return plgpu.SMEM((blocks.parts, rows, columns), jnp.bfloat16, transforms=_swizzled(blocks))


def products(firsts: list[Any], weights: Ref, operand: list[Ref], shape: tuple[int, int]) -> Gates:
    """W z for 64 rows of W from each of these on."""
    both = ((0, 0),) if len(operand) == 1 else ((0, 0), (0, 1), (1, 0))

    def summed(*sums: Ref) -> Gates:
        for first, acc in zip(firsts, sums, strict=True):
            for i, j in both:
                plgpu.wgmma(acc, weights.at[i, pl.ds(first, GROUP)], operand[j])  # (KP3)
        plgpu.wgmma_wait(0)
        return tuple(acc[...] for acc in sums)

    found: Gates = pl.run_scoped(summed, *[plgpu.ACC(shape, FLOAT)] * len(firsts))
    return found


def call(
    body: Callable[..., None],
    blocks: Blocks,
    arrays: ArrayTree,
    results: Tree,
    scratch: list[Any],
    interpret: Any = None,
) -> Tree:
    """A kernel runs on trees.

    Args:
      body: (refs of arrays, refs of results, *refs of scratch) -> None, what each warpgroup does.
      blocks: how the kernel is cut into blocks.
      arrays: a tree of arrays, whose first mark or carry says how many rows there are.
      results: the shapes of what the kernel writes; the last axis is rows.
      scratch: shared memory and barriers.
      interpret: parameters of the interpreter, to run on a CPU; None to compile.

    Returns:
      The results.
    """
    given, structure = jax.tree.flatten(arrays)
    shapes, of_results = jax.tree.flatten(results)

    def kernel(*refs: Ref) -> None:
        n, m = len(given), len(given) + len(shapes)
        body(jax.tree.unflatten(structure, refs[:n]), jax.tree.unflatten(of_results, refs[n:m]), *refs[m:])

    run = plgpu.kernel(
        kernel,
        out_type=tuple(shapes),
        scratch_types=scratch,
        grid=(shapes[0].shape[-1] // blocks.tile,),
        grid_names=("tile",),
        num_threads=blocks.groups,
        thread_name="group",
        cluster=(blocks.blocks,),
        cluster_names=("block",),
        **({} if interpret is None else {"interpret": interpret}),
    )
    found = run(*given)
    # Pallas forgets what varies over the devices of a jax.shard_map
    if axes := tuple(sorted(varying(given))):
        found = [lax.pcast(z, axes, to="varying") for z in found]
    made: Tree = jax.tree.unflatten(of_results, found)
    return made

"""How a kernel is cut into blocks: one table, by the gates, units and numbers of the cell.

A block of the GPU holds W_h in its shared memory for all steps. With G gates and H units, in N parts of two
bytes (1 for bfloat16, 2 for float32), C blocks together, and R rows in a tile:

    bytes of a block = 2 N G H (H/C + 2R)  ≤  227 KiB

That is W_h and, in the backward kernel, two buffers of δv_t of all gates. 64 units are one warpgroup (128
threads); units are filled up to a multiple of 64 C. Several blocks send each other h_t or δv_t at every step,
which takes longer than what it saves, and needs 16 rows. So the fewest blocks that hold W_h are chosen.
"""

from __future__ import annotations

from typing import NamedTuple

GROUP = 64  # units of a warpgroup


class Row(NamedTuple):
    """This is a row of the table.

    Attributes:
      parts: N, how many bfloat16 numbers stand for one number: 1 for bfloat16, 2 for float32.
      gates: the largest G.
      units: the largest H.
      tile: R, the rows that one block, or one cluster of blocks, runs through all steps.
      blocks: C, the blocks of a cluster.
      known: how it is known: "measured" with these gates and units, by a prototype of the kernels on an
        H200, or "compiled" only. See experiments/GPU.md.
    """

    parts: int
    gates: int
    units: int
    tile: int
    blocks: int
    known: str


TABLE = (
    Row(1, 1, 256, 8, 1, "measured"),
    Row(1, 2, 192, 8, 1, "compiled"),
    Row(1, 4, 128, 8, 1, "measured"),
    Row(1, 8, 64, 8, 1, "compiled"),
    Row(1, 4, 256, 16, 4, "measured"),
    Row(1, 1, 512, 16, 8, "measured"),
    Row(1, 2, 512, 16, 8, "compiled"),
    Row(2, 1, 192, 8, 1, "compiled"),
    Row(2, 3, 128, 8, 1, "compiled"),
    Row(2, 4, 64, 8, 1, "measured"),
    Row(2, 6, 64, 8, 1, "compiled"),
    Row(2, 1, 256, 16, 4, "measured"),
    Row(2, 2, 256, 16, 4, "compiled"),
)


class Blocks(NamedTuple):
    """This says how a kernel is cut into blocks.

    Attributes:
      tile: R, the rows of a tile.
      groups: the warpgroups of a block.
      blocks: C, the blocks of a cluster.
      parts: N, the bfloat16 numbers that stand for one number.
    """

    tile: int
    groups: int
    blocks: int
    parts: int

    @property
    def units(self) -> int:
        """These are the units of the kernel: those of the cell, filled up."""
        return GROUP * self.groups * self.blocks


def choose(gates: int, units: int, parts: int) -> Blocks | None:
    """The blocks for a cell come from the first row that holds it; None if no row does."""
    for row in TABLE:
        if row.parts == parts and gates <= row.gates and units <= row.units:
            groups = -(-units // (GROUP * row.blocks))
            return Blocks(row.tile, groups, row.blocks, parts)
    return None

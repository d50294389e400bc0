"""What a compiled program sends between devices: which collectives, how often, how many bytes."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_CALL = re.compile(rf"= (.*?) ({_KINDS})(-start)?\(")
_LOOP = re.compile(r" while\(.*?body=%([\w.\-]+)")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"([a-z]+)(\d+)\[([\d,]*)\]|(pred)\[([\d,]*)\]")


class Collective(NamedTuple):
    """One collective operation of a program.

    Attributes:
      kind: such as "all-reduce".
      numbers: bytes of what it returns on one device.
      times: how often it runs in one call of the program; 1 outside of loops.
      in_loop: whether a loop runs it.
    """

    kind: str
    numbers: int
    times: int
    in_loop: bool

    def sent(self, devices: int) -> float:
        """Bytes that a device sends in one call of the program, by a ring over all devices."""
        others = (devices - 1) / devices
        share = {"all-reduce": 2 * others, "reduce-scatter": devices - 1, "collective-permute": 1}
        return self.times * self.numbers * share.get(self.kind, others)


class Block(NamedTuple):
    """A program, or the body of a loop in it.

    Attributes:
      text: its instructions.
      times: how often it runs in one call of the program; 0 where that is not known.
      in_loop: whether it is the body of a loop.
      loops: the bodies of its loops, in order.
    """

    text: str
    times: int
    in_loop: bool
    loops: list[Block]


def program(compiled: Any) -> Block:
    """The program of jax.jit(...).lower(...).compile(), with its loops, from its text."""
    blocks = re.split(r"\n(?=\S)", compiled.as_text())
    bodies = {m[1]: b for b in blocks if (m := re.match(r"(?:ENTRY )?%([\w.\-]+) \(", b))}
    entry = next(b for b in blocks if b.startswith("ENTRY"))

    def of(text: str, times: int, in_loop: bool) -> Block:
        loops = []
        for line in text.splitlines():
            if loop := _LOOP.search(line):
                trips = _TRIPS.search(line)
                loops.append(of(bodies[loop[1]], times * int(trips[1]) if trips else 0, True))
        return Block(text, times, in_loop, loops)

    return of(entry, 1, False)


def collectives(compiled: Any) -> list[Collective]:
    """The collectives of a compiled program.

    Args:
      compiled: from jax.jit(...).lower(...).compile().

    Raises:
      ValueError: a loop of unknown length around a collective.
    """

    def of(block: Block) -> list[Collective]:
        found = [
            Collective(kind, _bytes(_result(shape, kind) if start else shape), block.times, block.in_loop)
            for shape, kind, start in _CALL.findall(block.text)
        ]
        found += [collective for body in block.loops for collective in of(body)]
        if found and not block.times:
            raise ValueError(f"a loop of unknown length holds {found[0].kind}")
        return found

    return of(program(compiled))


def _result(shape: str, kind: str) -> str:
    """What the start of a collective will return: most starts give their operands as well, before it."""
    if shape.startswith("(("):
        return shape.partition("), ")[2]
    return shape if kind == "all-reduce" else shape.partition("}, ")[2] or shape


def _bytes(shape: str) -> int:
    """Of an array or a tuple of them, as XLA writes it: f32[8,32]{1,0}."""
    total = 0
    for _, bits, sizes, is_bool, flags in _ARRAY.findall(shape):
        n = math.prod(int(size) for size in (sizes or flags).split(",") if size)
        total += n if is_bool else n * int(bits) // 8
    return total

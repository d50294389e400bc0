"""A program compiled for H100s on a machine without a GPU, and what the host and the devices do in it.

It needs the extra `gpu` and JAX_PLATFORMS=cpu. XLA writes out the thunk sequence of a program, which is every
operation that its executor starts: kernels, copies, loops, CUDA graphs. These operations are counted here.
Nothing runs, so nothing is timed, and XLA takes its tiles without trying others.
"""

from __future__ import annotations

import importlib.util
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from experiments.support.collectives import Block, Collective, collectives, program

MISSING = (
    ""
    if importlib.util.find_spec("jax_cuda13_plugin")
    else 'there is no compiler for GPUs here: python -m pip install -e ".[gpu]"'
)

_THUNK = re.compile(r"( *)\d+: k(\w+) ")
_GROUPS = ("AsyncDone", "Sequential", "DynamicSliceFusion")  # nothing is started for these alone


class Loop(NamedTuple):
    """A loop of a program, without the loops in it.

    Attributes:
      turns: how often its body runs in one call of the program.
      host: what the host starts in one turn: kernels, copies, graphs and side streams; 0 inside a graph.
      device: the kernels, copies and collectives that a device runs in one turn.
      in_graph: a CUDA graph holds the loop.
      innermost: it holds no loop.
    """

    turns: int
    host: int
    device: int
    in_graph: bool
    innermost: bool


class Program(NamedTuple):
    """What each device and its host do in one call of a program.

    Attributes:
      loops: its loops, in the order in which they begin.
      host: what the host starts in one call, in loops and outside.
      device: what a device runs in one call, in loops and outside.
      graphs: how many CUDA graphs the program holds.
      sent: its collectives.
      temporaries: bytes.
    """

    loops: list[Loop]
    host: int
    device: int
    graphs: int
    sent: list[Collective]
    temporaries: int


class Thunk(NamedTuple):
    """An operation of the executor, and those that it consists of: of a loop, those of its body."""

    kind: str
    parts: list[Thunk]


def h100s(devices: int, kind: AxisType = AxisType.Explicit) -> Mesh:
    """A mesh of H100s that are not there, with one axis, "data"."""
    target = Path(__file__).with_name("h100.txtpb").read_text()
    topology = topologies.get_topology_desc(platform="cuda", target_config=target, topology=f"1x1x{devices}")
    return Mesh(np.array(topology.devices), ("data",), axis_types=(kind,))


def compile_for_gpu(f: Callable[..., Any], args: Any, lie: Any) -> Program:
    """The program of f.

    Args:
      f: a function of arrays.
      args: a tuple of its arguments, of which only shapes and dtypes are read.
      lie: their shardings on a mesh of `h100s`, a tree like args or the beginning of one.
    """

    def placed(to: Any, part: Any) -> Any:
        return jax.tree.map(lambda z: jax.ShapeDtypeStruct(z.shape, z.dtype, sharding=to), part)

    lowered = jax.jit(f).trace(*jax.tree.map(placed, lie, args)).lower(lowering_platforms=("cuda",))
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_backend_optimization_level": 3}
        compiled = lowered.compile(compiler_options=options)
        dumped = sorted(Path(folder).glob("*.thunk_sequence*.txt"))
        thunks = read_thunks(dumped[-1].read_text())  # after the passes over thunks, if these change any
    whole, *loops = _counted(thunks, program(compiled), in_graph=False)
    return Program(
        loops=loops,
        host=sum(loop.turns * loop.host for loop in (whole, *loops)),
        device=sum(loop.turns * loop.device for loop in (whole, *loops)),
        graphs=sum(thunk.kind == "CommandBuffer" for thunk in _all(thunks)),
        sent=collectives(compiled),
        temporaries=compiled.memory_analysis().temp_size_in_bytes,
    )


def read_thunks(text: str) -> list[Thunk]:
    """The thunks of a sequence as XLA writes it: by depth, the condition of a loop before its body."""
    top = Thunk("", [])
    path, in_condition = [(-1, top)], False
    for line in text.splitlines():
        if line.strip() in ("condition:", "body:"):
            in_condition = line.strip() == "condition:"
        elif (found := _THUNK.match(line)) and not in_condition:
            while path[-1][0] >= len(found[1]):
                path.pop()
            thunk = Thunk(found[2], [])
            path[-1][1].parts.append(thunk)
            path.append((len(found[1]), thunk))
    return top.parts


def _counted(thunks: list[Thunk], block: Block, in_graph: bool) -> Iterator[Loop]:
    """A block, as if it were a loop, and then the loops in it."""
    own = list(_own(thunks, in_graph))
    loops = [(thunk, inside) for thunk, inside in own if thunk.kind == "While"]
    started = [(thunk, inside) for thunk, inside in own if thunk.kind not in ("While", *_GROUPS)]
    host = sum(not inside for _, inside in started)
    device = sum(thunk.kind not in ("CommandBuffer", "AsyncStart") for thunk, _ in started)
    yield Loop(block.times, host, device, in_graph, not loops)
    for (loop, inside), body in zip(loops, block.loops, strict=True):
        yield from _counted(loop.parts, body, inside)


def _own(thunks: list[Thunk], in_graph: bool) -> Iterator[tuple[Thunk, bool]]:
    """Every thunk outside of loops, and whether a CUDA graph holds it."""
    for thunk in thunks:
        yield thunk, in_graph
        if thunk.kind != "While":
            yield from _own(thunk.parts, in_graph or thunk.kind == "CommandBuffer")


def _all(thunks: list[Thunk]) -> Iterator[Thunk]:
    for thunk in thunks:
        yield thunk
        yield from _all(thunk.parts)

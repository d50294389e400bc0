"""What `experiments.gpu` measures: sections of cases, the most important first.

A case is one program for one layer with a readout and the squared error, at a size, in a lane of
`benchmark_programs`. The forms of ours are gradient methods; the others are those of `benchmark_peers`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax

import jax_bptt as jb
from experiments.support.benchmark_peers import PEERS, Problem, problem_of, scan
from experiments.support.benchmark_programs import Task, our_value_and_grad, their_value_and_grad

Size = tuple[int, int, int, int]  # T, B, I, H

UNITS_128: Size = (256, 64, 128, 128)
UNITS_200: Size = (256, 64, 128, 200)  # no multiple of 64
UNITS_256: Size = (256, 64, 128, 256)
UNITS_768: Size = (1024, 16, 768, 768)
LONG: Size = (2048, 8, 64, 64)
SHORT: Size = (128, 32, 128, 128)

METHODS: dict[str, Callable[[], jb.GradientMethod]] = {
    "full()": jb.full,
    "full(64)": lambda: jb.full(64),
    "full(recompute=False)": lambda: jb.full(recompute=False),
    "checkpointed()": jb.checkpointed,
    "autodiff()": jb.autodiff,
    "fused()": jb.fused,
}
OTHERS = PEERS | {"scan, unroll 8": functools.partial(scan, unroll=8)}


class Case(NamedTuple):
    """One program.

    Attributes:
      cell: the name of a cell in jax_bptt.
      size: T, B, I and H.
      lane: "float32", "tf32" or "bf16"; of torch also "float16".
      program: a method of METHODS, one of OTHERS, or "torch".
      marks: whether 9 of 10 steps have mask True, and 3 of 100 a reset.
    """

    cell: str
    size: Size
    lane: str
    program: str
    marks: bool = False


class Section(NamedTuple):
    """Cases that one process measures.

    Attributes:
      name: of the section.
      seconds: after which the process is ended.
      cases: in their order.
    """

    name: str
    seconds: int
    cases: tuple[Case, ...]


def every(
    programs: tuple[str, ...],
    cells: tuple[str, ...],
    sizes: tuple[Size, ...],
    lanes: tuple[str, ...],
    marks: bool = False,
) -> tuple[Case, ...]:
    """All combinations of these."""
    of_all = itertools.product(cells, sizes, lanes, programs)
    return tuple(Case(cell, size, lane, program, marks) for cell, size, lane, program in of_all)


CELLS = ("lstm", "gru", "elman")
SECTIONS = (
    Section("machine", 40, ()),
    Section(
        "kernels",
        120,
        (
            *every(("fused()",), CELLS, (UNITS_128, LONG), ("bf16",)),
            *every(("fused()",), ("gru", "elman"), (UNITS_128, SHORT), ("float32",)),
            *every(("fused()",), CELLS, (LONG,), ("float32",)),
            *every(("fused()",), ("lstm", "mgu"), (UNITS_128,), ("bf16",), marks=True),
            # from here on several blocks together, but for Elman in bfloat16
            *every(("fused()",), CELLS, (UNITS_256,), ("bf16",)),
            *every(("fused()",), ("gru", "leaky"), (UNITS_200,), ("bf16",)),
            *every(("fused()",), ("elman",), (UNITS_256, UNITS_200), ("float32",)),
        ),
    ),
    Section(
        "256 units",
        110,
        (
            *every(("full()", "autodiff()"), CELLS, (UNITS_256,), ("tf32", "bf16")),
            *every(
                ("full(64)", "full(recompute=False)", "checkpointed()", *OTHERS),
                ("lstm",),
                (UNITS_256,),
                ("tf32",),
            ),
            *every(("full()", "scan"), CELLS, (UNITS_256,), ("float32",)),
            Case("lstm", UNITS_256, "tf32", "full()", marks=True),
        ),
    ),
    Section(
        "torch",
        50,
        every(
            ("torch",),
            CELLS,
            (UNITS_128, UNITS_256, LONG, UNITS_768),
            ("float16", "bf16", "tf32", "float32"),
        ),
    ),
    Section(
        "other sizes",
        110,
        every(("full()", "scan", "cudnn"), CELLS, (UNITS_128, LONG, UNITS_768), ("tf32", "bf16")),
    ),
)


def problem_of_case(case: Case) -> Problem:
    """The arrays of a case, and its network."""
    return problem_of(case.cell, case.size, case.lane)


def task_of_case(case: Case, problem: Problem) -> Task | None:
    """The program of a case in JAX, not yet compiled; None where a peer has no such cell or lane."""
    if case.program in METHODS:
        return by_method(METHODS[case.program](), problem, case.marks)
    peer = OTHERS[case.program](problem)
    return None if peer is None else their_value_and_grad(peer, problem)


def by_method(gradient: jb.GradientMethod, problem: Problem, marks: bool) -> Task:
    """jb.value_and_grad by a gradient method."""
    options = {}
    if marks:
        k_mask, k_reset = jax.random.split(jax.random.key(1))
        rows = problem.xs.shape[:2]
        options["mask"] = jax.random.bernoulli(k_mask, 0.9, rows)
        options["reset"] = jax.random.bernoulli(k_reset, 0.03, rows)
    return our_value_and_grad(problem, gradient, **options)

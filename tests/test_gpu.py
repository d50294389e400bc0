"""Compiled for H100s, loss and gradient keep to budgets of operations, memory and collectives."""

from typing import NamedTuple

import jax
import pytest
from jax.sharding import AxisType
from support.gpu_programs import T, as_in_a_script, program, program_that_sums_in_its_loop

from experiments.support.compiled_for_gpu import MISSING, Program, Thunk, read_thunks
from experiments.support.gpu_cases import Case
from experiments.support.gpu_section import counted


class Budget(NamedTuple):
    """Upper bounds, on one GPU and on each of two.

    Attributes:
      loops: of each loop over steps, what the host starts and what the device runs in one step.
      host: what the host starts in one gradient.
      device: what the device runs in one gradient.
      mib: MiB of temporaries.
    """

    loops: tuple[tuple[float, float], ...]
    host: int
    device: int
    mib: float


BUDGETS = {  # forward loop, backward loop
    "elman full": Budget(((0.125, 2.25), (0.125, 2.375)), 214, 1496, 41),
    "lstm full": Budget(((0.125, 2.5), (0.125, 3.5)), 198, 2200, 69),
    "gru full": Budget(((0.125, 2.375), (0.125, 2.5)), 166, 1817, 47),
    "own full": Budget(((0.125, 2.5), (0.125, 3.375)), 198, 2072, 66),
    # no loops: a kernel of all steps each
    "elman fused": Budget((), 3, 35, 105),
    "own fused": Budget((), 3, 45, 217),
}

compiles_for_gpus = pytest.mark.skipif(bool(MISSING), reason=MISSING)


def spent(found: Program) -> Budget:
    """What a program spends; an innermost loop is one over steps, of which a turn may take several."""
    over_steps = [loop for loop in found.loops if loop.innermost]
    loops = tuple((loop.host * loop.turns / T, loop.device * loop.turns / T) for loop in over_steps)
    return Budget(loops, found.host, found.device, found.temporaries / 2**20)


@compiles_for_gpus
@pytest.mark.filterwarnings("ignore:jb.fused")
@pytest.mark.parametrize("gpus", [1, 2])
@pytest.mark.parametrize("name", BUDGETS)
def test_a_gradient_keeps_to_its_budget(name, gpus):
    found, budget = program(name, gpus), BUDGETS[name]
    of = spent(found)
    numbers, bounds = jax.tree.leaves(of), jax.tree.leaves(budget)
    assert all(number <= bound for number, bound in zip(numbers, bounds, strict=True)), of
    # in no loop, and nothing is gathered
    assert [(c.kind, c.in_loop) for c in found.sent] == [("all-reduce", False)] * (gpus - 1)


@compiles_for_gpus
def test_the_counter_sees_what_a_plain_scan_costs():
    of, budget = spent(program("elman scan", 1, AxisType.Auto)), BUDGETS["elman full"]
    assert all(plain[1] >= 2 * ours[1] for plain, ours in zip(of.loops, budget.loops, strict=True)), of
    assert of.device > 1.5 * budget.device
    assert of.mib > budget.mib


@compiles_for_gpus
def test_the_counter_sees_a_sum_over_devices_in_a_loop():
    found = program_that_sums_in_its_loop(turns=5)
    assert [(c.kind, c.in_loop, c.times) for c in found.sent] == [("all-reduce", True, 5)]


@compiles_for_gpus
def test_a_case_of_the_script_is_rehearsed():
    with as_in_a_script():
        line = counted(Case("elman", (16, 8, 8, 8), "float32", "full()"))
    assert line["operations"].endswith(" from the host")


def test_thunks_are_read_as_a_tree():
    text = """000: kCommandBuffer [source       | next=001 (1)]
    000: kCopy         [source       | sink        ] kCopy
001: kWhile         [prev=000 (1) | sink        ]
condition:
    002: kCustomKernel [source | sink] loop_compare_fusion_1 grid: [1, 1, 1] threads: [1, 1, 1]
  body:
    003: kAsyncStart   [source       | sink        ] stream=computation_stream[2], async_id=3
        005: kDynamicSliceFusion [source | sink] params=1, results=1
            004: kCopy [source | sink] kCopy
    006: kAsyncDone    [source       | sink        ] async_id=3
"""
    copy = Thunk("Copy", [])
    side = Thunk("AsyncStart", [Thunk("DynamicSliceFusion", [copy])])
    loop = Thunk("While", [side, Thunk("AsyncDone", [])])
    assert read_thunks(text) == [Thunk("CommandBuffer", [copy]), loop]

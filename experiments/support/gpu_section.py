"""One section of `experiments.gpu`, in a process of its own: a line of JSON for each result, as it comes.

Some programs are compiled at the same time, in threads; then one after the other is called, checked and
timed, so that one that hangs does not take the results of those before it. In a rehearsal every program in
JAX is compiled for an H100 instead, without a GPU, and what a step costs is counted.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import math
import platform
import statistics
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jax_bptt as jb
from experiments.support.benchmark_programs import AGREE, LANES, Program, compiled, peak, torch_program
from experiments.support.comparisons import farthest, seconds
from experiments.support.compiled_for_gpu import compile_for_gpu, h100s
from experiments.support.gpu_cases import Case, Section, problem_of_case, task_of_case

PACKAGES = ("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "flax", "equinox", "torch")
AT_A_TIME = 10  # programs that are compiled together
MIB = 2**20
LOTS, LOT = 5, 0.03  # lots of calls, and seconds of a lot

Line = dict[str, Any]


def run_section(section: Section, done: set[Case]) -> None:
    """Print a line for each case that is not done."""
    if not section.cases:
        say(section.name, **attempt(machine))
    cases = [case for case in section.cases if case not in done]
    of_torch = [case for case in cases if case.program == "torch"]
    of_jax = [case for case in cases if case.program != "torch"]
    # PyTorch's precision of products is a setting of the process, so its programs are made one at a time
    batches = [of_jax[i : i + AT_A_TIME] for i in range(0, len(of_jax), AT_A_TIME)]
    for batch in [*batches, *([case] for case in of_torch)]:
        with ThreadPoolExecutor(len(batch)) as pool:
            list(pool.map(functools.partial(attempt, wanted), {of_reference(case) for case in batch}))
            programs = [pool.submit(program_of_case, case) for case in batch]
        for case, program in zip(batch, programs, strict=True):
            measure = functools.partial(measured, case, program.result)
            say(section.name, **case._asdict(), **attempt(measure))


def rehearse_section(section: Section, done: set[Case]) -> None:
    """Print a line for each case in JAX that is not done: what its program for an H100 does in a step."""
    for case in section.cases:
        if case not in done and case.program not in ("torch", "cudnn"):  # cuDNN must be there to compile
            say(section.name, **case._asdict(), **attempt(functools.partial(counted, case)))


def say(section: str, **what: object) -> None:
    """Print one result."""
    print(json.dumps({"section": section, **what}), flush=True)


def attempt(measure: Callable[..., Any], *args: Any) -> Any:
    """What comes out, or a line with the error: one program that fails does not end the others."""
    try:
        return measure(*args)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}


def of_reference(case: Case) -> Case:
    """The case with whose gradient that of this case must agree: full() in float32."""
    return case._replace(program="full()", lane="float32")


@functools.cache
def wanted(case: Case) -> jb.NetworkParams:
    """The gradient of a case."""
    program = program_of_case(case)
    assert program is not None
    return program().grads


def program_of_case(case: Case) -> Callable[[], Program] | None:
    """The program of a case, compiled and not yet called; None where a peer has no such cell or lane."""
    problem = problem_of_case(case)
    if case.program == "torch":
        return functools.partial(torch_program, "value_and_grad", problem)
    with jax.default_matmul_precision(LANES[case.lane]):
        task = task_of_case(case, problem)
        return None if task is None else compiled(task, False)


def measured(case: Case, compiled_case: Callable[[], Callable[[], Program] | None]) -> Line:
    """Microseconds a step, if the gradient agrees."""
    first = compiled_case()
    if first is None:
        return {"absent": True}
    program = first()
    distance = farthest(program.grads, wanted(of_reference(case)))
    line = {"distance": distance, "MiB": program.temporaries and program.temporaries / MIB}
    if not distance < AGREE[case.lane]:
        return {**line, "refused": True}
    once = seconds(program.call, 1)
    calls = min(100, math.ceil(LOT / once))
    lots = [seconds(program.call, calls) / case.size[0] for _ in range(LOTS)]
    quartiles = [1e6 * lot for lot in statistics.quantiles(lots)]
    return {
        **line,
        "microseconds": quartiles[1],
        "quartiles": quartiles[::2],
        "compile": program.compile_seconds,
        "repeats": case.program == "torch" or equal(program.call(), program.call()),
    }


def counted(case: Case) -> Line:
    """What the device and the host do in a step of the whole program, on average."""
    everywhere = NamedSharding(h100s(1, AxisType.Auto), PartitionSpec())
    with jax.default_matmul_precision(LANES[case.lane]):
        task = task_of_case(case, problem_of_case(case))
        if task is None:
            return {"absent": True}
        program = compile_for_gpu(task.jitted, task.arguments, everywhere)
    steps = case.size[0]
    operations = f"{program.device / steps:.1f}, {program.host / steps:.1f} from the host"
    return {"operations": operations, "MiB": program.temporaries / MIB}


def equal(a: Any, b: Any) -> bool:
    """Whether all arrays have the same bits."""
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


def machine() -> Line:
    """Card, driver, processor, versions, and how fast the simplest things are."""
    query = "--query-gpu=name,driver_version,clocks.max.sm,memory.total"
    asked = subprocess.run(["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True)
    told = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    processors = [line.partition(": ")[2] for line in told if line.startswith("model name")]
    versions = {d.name: d.version for d in importlib.metadata.distributions() if d.name in PACKAGES}
    return {
        "card": asked.stdout.strip(),
        "processor": f"{len(processors)} of {processors[0]}",
        "versions": {"python": platform.python_version(), **versions},
        "TFLOP/s": {lane: peak(lane, False) / 1e12 for lane in LANES},
        "microseconds of a step of tanh": 1e3 * seconds(jax.jit(steps_of_tanh).lower().compile(), 10),
    }


def steps_of_tanh() -> jax.Array:
    """1,000 steps of a scan that does nothing else: what a step takes at least."""
    return jax.lax.scan(lambda h, _: (jnp.tanh(h), None), jnp.ones((64, 256)), length=1000)[0]

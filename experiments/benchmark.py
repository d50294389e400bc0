"""Our speed against jax.grad, Flax, Equinox and PyTorch, cell by cell and size by size.

    python -m pip install -e ".[experiments,peers]"
    python -m experiments.benchmark                                     value and gradient in float32
    python -m experiments.benchmark --lanes bf16 --works value_and_grad step       more, in the same folder

The benchmark times one layer with a linear readout and the sum of squares: the value and gradient by all
parameters, or a whole training step with Adam. Ours has the gradient method full(); `fastest` is ours with
the method that jb.fastest finds at this size, which is named in the table. `benchmark_peers` says which
other programs it times, and what each computes in bfloat16. All begin with the same weights. A program is
timed only if its gradient agrees with that of the scan in float32: ‖difference‖ / ‖gradient‖ of each array
below 1e-4 in float32, 1e-2 in TF32 and 0.1 in bfloat16. A bfloat16 number has 8 bits: a gradient computed
in bfloat16 and summed over time in float32 is off by up to 0.04, and one that is summed in bfloat16 too is
off by more the longer T is (PyTorch's RNN and GRU: 0.01 at T = 128, half at 4096). A transposed W_h would
be off by about 1. The table marks a program that does not agree as "refused". If our own gradient does not
agree, the run ends.

The programs take turns: in each round every program is called once untimed, then for at least 30 ms; the
order moves on by one from round to round and is reversed in every other. Ours has two turns in a round. A
ratio is theirs to ours (the mean of both turns) of the same round, and the median of the rounds is shown, so
that a machine that is slower for a while is slower for both; the spread is half the distance between the
quartiles of ours to itself. Milliseconds are medians of the rounds. Compile time is shown apart, XLA itself
reports the temporaries, and the speed is given as a share of the best speed of square matrix products,
measured in the same run. Run nothing else on the cores meanwhile: if one core is busy, PyTorch's threads
wait for each other, up to a thousand times as long as they compute.

Expectation for value and gradient, written for machine A of experiments/SPEED.md, which meets only part of
it; on another machine other programs may be faster. Float32: beyond the spread never slower than scan,
hoisted, flax and equinox; on (geometric) average at least 1.5 times as fast as scan and 1.2 times as torch,
and against torch nowhere below 0.9. The fastest: beyond the spread never slower than scan, hoisted, flax
and equinox on any machine, and not slower than torch except for LSTMs of 128 units and less. bfloat16: at H
>= 256 at least 2.5 times as fast as scan in float32, and not slower than torch. Temporaries: at most scan's
where those are 32 MiB or more.

On a GPU the lanes are strict float32, TF32 and bfloat16, and torch and jax.experimental.rnn use cuDNN.
`--dry-run` does the same at a tiny size without a GPU: each program in JAX is lowered for CUDA and runs here
(jax.experimental.rnn by its reference, since it asks cuDNN for its memory). The times of a dry run mean
nothing.

After an interruption, the same command measures what is missing.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import importlib.util
import itertools
import json
import os
import statistics
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from tqdm import tqdm

import jax_bptt as jb
from experiments.support.benchmark_peers import Problem, problem_of
from experiments.support.benchmark_programs import AGREE, LANES, Program, fastest_method, peak, program_of
from experiments.support.benchmark_table import draw, judge, table
from experiments.support.command_line import run_script
from experiments.support.comparisons import farthest, take_turns
from experiments.support.options import refusal, size_of
from experiments.support.runs import Run, StopRequest

SIZES = (
    "128x32x64x128",
    "256x64x128x256",
    "96x64x512x512",
    "1024x1x32x64",
    "768x128x1x128",
    "64x32x1024x1024",
    "4096x8x64x64",
)
TINY = "8x4x3x16"
PACKAGES = dict.fromkeys(("fastest", "scan", "hoisted", "cudnn"), "jax")  # the others are named as theirs


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure, and how often."""

    cells: tuple[Literal["elman", "lstm", "gru"], ...] = ("elman", "lstm", "gru")
    """Cells that are measured."""
    sizes: tuple[str, ...] = SIZES
    """Sizes that are measured, each as TxBxIxH."""
    lanes: tuple[Literal["float32", "tf32", "bf16"], ...] = ()
    """Number formats of the products. By default float32; on a GPU all of them."""
    works: tuple[Literal["value_and_grad", "step"], ...] = ("value_and_grad",)
    """What is timed."""
    against: tuple[Literal["fastest", "scan", "hoisted", "flax", "equinox", "torch", "cudnn"], ...] = (
        "fastest",
        "scan",
        "hoisted",
        "flax",
        "equinox",
        "torch",
        "cudnn",
    )
    """Programs that ours, full(), is compared with: fastest is ours with what jb.fastest finds; cudnn needs
    a GPU."""
    rounds: int = 4
    """Rounds; in each of them every program is timed."""
    dry_run: bool = False
    """Only lower for CUDA what would be timed on a GPU, and run it here at a tiny size."""
    out: Path = Path("results/benchmark")
    """Folder of the results."""


def check(config: Config) -> None:
    """SystemExit if an option has a value that the script cannot use."""
    for name in ("cells", "sizes", "works", "against"):
        if not getattr(config, name):
            raise SystemExit(f"--{name}: give at least one value")
    for text in config.sizes:
        if len(size_of(text)) != 4 or min(size_of(text)) < 1 or size_of(text)[0] < 2:
            raise SystemExit(f"--sizes {text}: give T, B, I and H as in {SIZES[0]}, T at least 2")
    if config.rounds < 2:
        raise refusal(config, "rounds", "a number of at least 2; one has no spread")


def installed(against: tuple[str, ...]) -> dict[str, str]:
    """The version of each contender; those whose package is not installed are left out, and named."""
    versions = {}
    for name in against:
        package = PACKAGES.get(name, name)
        if importlib.util.find_spec(package) is None:
            print(
                f'{name} is not measured: {package} is not installed; pip install -e ".[peers]" installs it'
            )
        else:
            versions[name] = importlib.metadata.version(package)
    return versions


# One cell at one size.


def measure(
    problem: Problem, work: str, against: list[str], rounds: int, stop: StopRequest, for_cuda: bool = False
) -> dict[str, Any]:
    """A line of metrics: every contender's time, ratio, compile time and temporaries, and who is refused."""
    programs, distances = programs_of(problem, work, against, stop, for_cuda)
    refused = {name: d for name, d in distances.items() if not d < AGREE[problem.lane]}
    if "ours" in refused:
        where = f"{problem.cell}, {'x'.join(map(str, problem.size))}, {problem.lane}, {work}"
        raise SystemExit(
            f"our gradient differs from that of the scan by {refused['ours']:.0e} ({where}); "
            "this is an error in jax_bptt or in this benchmark, please report it"
        )
    programs = {name: program for name, program in programs.items() if name not in refused}
    times = take_turns(programs, rounds, stop)
    first, again = times["ours"], times.pop("ours again")
    times["ours"] = (first + again) / 2
    fastest = times.get("fastest", times["ours"])
    return {
        "cell": problem.cell,
        "size": "x".join(map(str, problem.size)),
        "lane": problem.lane,
        "work": work,
        "spread": float(np.subtract(*np.quantile(again / first, (0.75, 0.25)))) / 2,
        "flops": problem.flops,
        "refused": refused,
        "fastest": repr(fastest_method(problem.cell, problem.size, problem.lane))
        if "fastest" in times
        else "",
        "contenders": {
            name: {
                "milliseconds": 1e3 * statistics.median(times[name]),
                "ratio": float(np.median(times[name] / times["ours"])),
                "quartiles": np.quantile(times[name] / times["ours"], (0.25, 0.75)).tolist(),
                "ratio_to_fastest": float(np.median(times[name] / fastest)),
                "compile_seconds": program.compile_seconds,
                "temporaries": program.temporaries,
                "distance": distances[name],
            }
            for name, program in programs.items()
        },
    }


def programs_of(
    problem: Problem, work: str, against: list[str], stop: StopRequest, for_cuda: bool
) -> tuple[dict[str, Program], dict[str, float]]:
    """The program of every contender that has one, and how far its gradient is from the scan's."""
    names = ["ours", *against, *["scan in float32"] * (problem.lane != "float32")]
    programs, distances = {}, {}
    for name in names:
        stop.leave()
        program = program_of(name, work, problem, for_cuda)
        if program is not None:
            programs[name] = program
            distances[name] = farthest(program.grads, wanted(problem.cell, problem.size))
    return programs, distances


@functools.cache
def wanted(cell: str, size: tuple[int, ...]) -> jb.NetworkParams:
    """The gradient of the scan in float32."""
    program = program_of("scan", "value_and_grad", problem_of(cell, size, "float32"))
    assert program is not None
    return program.grads


def main(config: Config) -> None:
    """Measure what is missing, show all."""
    check(config)
    with jax.enable_x64(False):
        compare(config)


def compare(config: Config) -> None:
    """All of it."""
    on_gpu, out = jax.default_backend() == "gpu", config.out
    lanes: tuple[str, ...] = config.lanes or (tuple(LANES) if on_gpu else ("float32",))
    if config.dry_run:
        config = dataclasses.replace(config, sizes=(TINY,), works=("value_and_grad", "step"), rounds=2)
        lanes, out = tuple(LANES), out / "dry_run"
    versions = installed(config.against)
    against = [name for name in versions if name != "cudnn" or on_gpu or config.dry_run]
    settings = {"rounds": config.rounds, "against": {name: versions[name] for name in against}}
    run = Run(out, settings | {"device": jax.devices()[0].device_kind, "cores": os.cpu_count()})
    found = {(m["lane"], m["work"], m["cell"], m["size"]) for m in measured(run)}
    keys = [*itertools.product(lanes, config.works, config.cells, config.sizes)]
    peaks: dict[str, float] = {}
    with StopRequest() as stop:
        for key in tqdm([key for key in keys if key not in found], desc="benchmark", unit="size"):
            lane, work, cell, size = key
            peaks[lane] = peaks.get(lane) or peak(lane, config.dry_run)
            problem = problem_of(cell, size_of(size), lane)
            line = measure(problem, work, against, config.rounds, stop, config.dry_run)
            run.record(**line, peak=peaks[lane])
    show(run, config.dry_run)


def measured(run: Run) -> list[dict[str, Any]]:
    """All lines that the folder holds."""
    names = dict.fromkeys(("cell", "size", "lane", "work", "fastest"), str)
    numbers = dict.fromkeys(("spread", "flops", "peak"), float)
    return run.metrics(refused=dict, contenders=dict, **names, **numbers)


def show(run: Run, dry_run: bool) -> None:
    """Table, figure and verdict of all that the folder holds."""
    lines = measured(run)
    text = table(lines)
    run.write("table.md", text)
    run.write("table.json", json.dumps(lines, indent=1) + "\n")
    print(text)
    run.save_figure("benchmark.png", draw(lines), dpi=150)
    programs = sum(name != "torch" for m in lines for name in m["contenders"])
    print(f"{programs} programs lowered for CUDA and run here: as expected" if dry_run else judge(lines))


if __name__ == "__main__":
    run_script(main, Config, __doc__)

"""What our RNN costs in the place of a framework's own, under the same module: time and temporaries.

    python -m pip install -e ".[experiments,peers]"
    python -m experiments.adopted                         some minutes on two CPU cores

A layer of Flax, Equinox, Haiku or Keras is run with its own RNN and with ours (support/adopted_pairs.py says
what that is in each). Both have the same weights, in the layout of the framework, and its carry and its order
of axes. What is timed is the value and the gradient by all weights of the squared error of all outputs, in
float32. Both gradients are compared first: ‖difference‖ / ‖gradient‖ of each array.

The two programs take turns, as in `benchmark`: in each round each is called once untimed, then for at least
30 ms; ours has two turns in a round. The ratio is ours, the mean of both turns, to theirs of the same round;
the table has its median and quartiles. The spread is half the distance between the quartiles of ours to
itself. XLA itself reports the temporaries.

Expectation: the gradients differ by less than 1e-4 everywhere. Nowhere does ours take longer than theirs by
more than the spread. Where theirs needs temporaries of 32 MiB or more, ours needs at most as much.

After an interruption, the same command measures what is missing.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import itertools
import os
import statistics
import time
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from tqdm import tqdm

from experiments.support.adopted_pairs import tasks
from experiments.support.benchmark_programs import compiled
from experiments.support.command_line import run_script
from experiments.support.comparisons import farthest, markdown, take_turns
from experiments.support.findings import Row, conclude
from experiments.support.options import refusal, size_of
from experiments.support.runs import Run, StopRequest

PACKAGES = {  # of each framework: what is imported, and what is installed
    "nnx": ("flax", "flax"),
    "linen": ("flax", "flax"),
    "scanned_rnn": ("flax", "flax"),
    "equinox": ("equinox", "equinox"),
    "haiku": ("haiku", "dm-haiku"),
    "keras": ("keras", "keras"),
}
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure, and how often."""

    frameworks: tuple[Literal["nnx", "linen", "scanned_rnn", "equinox", "haiku", "keras"], ...] = (
        "nnx",
        "linen",
        "scanned_rnn",
        "equinox",
        "haiku",
        "keras",
    )
    """Frameworks, with scanned_rnn for purejaxrl's ScannedRNN; those that are not installed are left out."""
    cells: tuple[Literal["lstm", "gru"], ...] = ("lstm", "gru")
    """Cells; scanned_rnn has a GRU only."""
    sizes: tuple[str, ...] = ("64x16x32x64", "128x32x64x256", "256x32x128x512")
    """Sizes, each as TxBxIxH; scanned_rnn has H inputs."""
    rounds: int = 5
    """Rounds; in each of them both programs are timed."""
    out: Path = Path("results/adopted")
    """Folder of the results."""


def check(config: Config) -> None:
    """SystemExit if an option has a value that the script cannot use."""
    for text in config.sizes:
        if len(size_of(text)) != 4 or min(size_of(text)) < 1:
            raise SystemExit(f"--sizes {text}: give T, B, I and H as in {Config().sizes[0]}")
    if config.rounds < 2:
        raise refusal(config, "rounds", "a number of at least 2; one has no spread")


def installed(frameworks: tuple[str, ...]) -> dict[str, str]:
    """The version of each framework that is installed; the others are named. SystemExit if none is."""
    found = {name: PACKAGES[name] for name in frameworks if importlib.util.find_spec(PACKAGES[name][0])}
    missing = [name for name in frameworks if name not in found]
    fix = 'pip install -e ".[peers]" installs them'
    if not found:
        raise SystemExit(f"none of these is installed: {', '.join(frameworks)}; {fix}")
    if missing:
        print(f"not installed, and not measured: {', '.join(missing)}; {fix}")
    return {name: importlib.metadata.version(package) for name, (_, package) in found.items()}


def measure(framework: str, cell: str, size: str, rounds: int, stop: StopRequest) -> dict[str, Any] | None:
    """A line of metrics; None where the framework has no such cell."""
    steps, rows, inputs, hidden = size_of(size)
    both = tasks(framework, cell, (steps, rows, hidden if framework == "scanned_rnn" else inputs, hidden))
    if both is None:
        return None
    began = time.monotonic()
    theirs, ours = (compiled(task, chained=False)() for task in both)
    times = take_turns({"theirs": theirs, "ours": ours}, rounds, stop)
    mean = (times["ours"] + times["ours again"]) / 2
    low, ratio, high = np.quantile(mean / times["theirs"], (0.25, 0.5, 0.75)).tolist()
    return {
        "framework": framework,
        "cell": cell,
        "size": size,
        "distance": farthest(ours.grads, theirs.grads),
        "milliseconds": [1e3 * statistics.median(t) for t in (mean, times["theirs"])],
        "ratio": ratio,
        "quartiles": [low, high],
        "spread": float(np.subtract(*np.quantile(times["ours again"] / times["ours"], (0.75, 0.25)))) / 2,
        "temporaries": [ours.temporaries, theirs.temporaries],
        "seconds": time.monotonic() - began,
    }


def measured(run: Run) -> list[dict[str, Any]]:
    """All lines that the folder holds."""
    names, numbers = ("framework", "cell", "size"), ("distance", "ratio", "spread", "seconds")
    lists = dict.fromkeys(("milliseconds", "quartiles", "temporaries"), list)
    return run.metrics(**dict.fromkeys(names, str), **dict.fromkeys(numbers, float), **lists)


def table(lines: list[dict[str, Any]]) -> str:
    """Times and temporaries in Markdown."""
    head = ["size, framework", "ours, ms", "theirs, ms", "time", "quartiles", "spread"]
    head += ["ours, MiB", "theirs, MiB", "memory", "distance"]
    rows = []
    for m in sorted(lines, key=lambda m: (m["cell"], np.prod(size_of(m["size"])))):
        milliseconds = [f"{t:.3g}" if t < 1000 else f"{t:.0f}" for t in m["milliseconds"]]
        low, high = m["quartiles"]
        rows.append(
            [
                where(m),
                *milliseconds,
                f"{m['ratio']:.2f}",
                f"{low:.2f}–{high:.2f}",
                f"{m['spread']:.2f}",
                *(f"{n / MIB:.1f}" for n in m["temporaries"]),
                f"{part_of(m):.2f}",
                f"{m['distance']:.0e}",
            ]
        )
    said = "time and memory: ours / theirs; below 1 ours takes less"
    return f"{markdown(head, rows)}\n\n{said}\n"


def where(m: dict[str, Any]) -> str:
    """Cell, size and framework of a line."""
    return f"{m['cell']} {m['size']}, {m['framework']}"


def part_of(m: dict[str, Any]) -> float:
    """The temporaries of ours as a part of theirs."""
    ours, theirs = m["temporaries"]
    return float(ours / theirs)


def judge(lines: list[dict[str, Any]]) -> list[Row]:
    """The three parts of the expectation."""
    distant = max(lines, key=lambda m: m["distance"])
    slow = max(lines, key=lambda m: m["ratio"])
    slower = [m for m in lines if m["ratio"] > 1 + m["spread"]]
    mean = statistics.geometric_mean(m["ratio"] for m in lines)
    worst = f"{slow['ratio']:.2f} ({where(slow)}), {mean:.2f} on geometric average"
    said = f"{worst}; longer at {len(slower)} of {len(lines)}"
    rows = [
        Row(
            "largest distance of a gradient",
            "below 1e-4",
            f"{distant['distance']:.0e} ({where(distant)})",
            all(m["distance"] < 1e-4 for m in lines),
        ),
        Row("longest time, ours / theirs", "at most 1 and the spread", said, not slower),
    ]
    large = [m for m in lines if m["temporaries"][1] >= 32 * MIB]
    if large:
        most = max(large, key=part_of)
        mean = statistics.geometric_mean(map(part_of, large))
        said = f"{part_of(most):.2f} ({where(most)}), {mean:.2f} on geometric average"
        what = "most temporaries, ours / theirs, where theirs are 32 MiB or more"
        rows.append(Row(what, "at most 1", said, part_of(most) <= 1))
    return rows


def main(config: Config) -> None:
    """Measure what is missing, show all."""
    check(config)
    versions = installed(config.frameworks)
    about = {"device": jax.devices()[0].device_kind, "cores": os.cpu_count()}
    run = Run(config.out, {"rounds": config.rounds, "versions": versions, **about})
    keys = [*itertools.product(config.sizes, config.cells, versions)]
    found = {(m["size"], m["cell"], m["framework"]) for m in measured(run)}
    with StopRequest() as stop, jax.enable_x64(False):
        for size, cell, framework in tqdm([key for key in keys if key not in found], unit="pair"):
            stop.leave()
            line = measure(framework, cell, size, config.rounds, stop)
            if line is not None:
                run.record(**line)
    lines = measured(run)
    text = table(lines)
    run.write("table.md", text)
    print(text)
    conclude(run, "adopted", config, judge(lines), 1, sum(m["seconds"] for m in lines))


if __name__ == "__main__":
    run_script(main, Config, __doc__)

"""What each gradient method costs: time and memory, in one interleaved run.

    python -m experiments.gradient_methods             under three minutes on two CPU cores

The script measures the value and gradient of one layer, a readout and the squared error, in float32, by
`jb.value_and_grad(net, loss)(..., gradient=m)`. The baseline is what one writes without this library:
`jax.value_and_grad` of the plain scan. The script shows

* for every method the time and XLA's temporaries, as ratios to the baseline. All programs are compiled
  first, then called in turn: A B C A B C. A ratio is the median over the rounds, each method against
  the baseline of its own round; the baseline is timed twice a round, and its ratio to itself is the
  noise. `parallel` and `rtrl` are for small networks and have a small size of their own;
* how often `checkpointed` runs a step forward: the binomial schedule against its closed form;
* one training step over a million time steps, each method in a process of its own: seconds and peak memory.

A method is timed only if its gradient agrees with the baseline's: the run ends if ‖difference‖ / ‖gradient‖
of an array is not below 1e-4 for an exact method. For a truncated method the table shows this difference.

Expectation, for the LSTM at the default size on 2 CPU cores: full() needs at most 1/3 of the baseline's
temporaries and checkpointed(slots=16) at most 1/15, neither is slower than the baseline, the million steps
of checkpointed(slots=16) stay below 2 GiB; and the schedules are as long as the closed form says.

The training steps over a million time steps are kept in metrics.jsonl. After an interruption, the same
command does those that are missing, and measures the rest again.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import jax

import jax_bptt as jb
from experiments.support.command_line import run_script
from experiments.support.gradient_costs import Size, count_advances, measure
from experiments.support.gradient_costs_table import draw, part, table
from experiments.support.million_steps import OF_A_MILLION, step_of, take_the_million
from experiments.support.options import check_counts, refusal, settings
from experiments.support.runs import Run, StopRequest

METHODS = (
    jb.full(),
    jb.full(recompute=False),
    jb.checkpointed(slots=4),
    jb.checkpointed(slots=16),
    jb.checkpointed(),
    jb.truncated(50),
    jb.truncated(50, stride=25),
    jb.truncated(20, stride=1),
    jb.autodiff(),
)
AT_SMALL_SIZE = jb.full(), jb.parallel(), jb.rtrl()
BY_NAME = {repr(m): m for m in (*METHODS, *AT_SMALL_SIZE, *OF_A_MILLION)}
GIB = 2**30
SMALL = Size("elman", 1000, 1, 4, 8, 8)


@dataclasses.dataclass(frozen=True)
class Config:
    """How large, and how often."""

    steps: int = 1000
    """T, steps of the sequence."""
    rows: int = 32
    """B, rows of a batch."""
    inputs: int = 64
    """I, numbers that a step reads."""
    hidden: int = 128
    """H, units."""
    outputs: int = 8
    """O, outputs of the readout."""
    cells: tuple[Literal["lstm", "gru", "elman"], ...] = ("lstm",)
    """Cells that are measured."""
    repeats: int = 9
    """Rounds in which every program is timed."""
    million: bool = True
    """Whether to measure training steps of a million time steps too."""
    peak: str | None = None
    """Only take one training step of --steps time steps by this method, and print its cost as JSON."""
    out: Path = Path("results/gradient_methods")
    """Folder of the results."""


def check(config: Config) -> None:
    """SystemExit if an option has a value that the script cannot use."""
    if config.steps < 2:
        raise refusal(config, "steps", "a number of at least 2; one step has no gradient by W_h")
    check_counts(config, rows=1, inputs=1, hidden=1, outputs=1, repeats=1)
    if not config.cells:
        raise SystemExit("--cells: give at least one of lstm, gru, elman")
    if config.peak is not None and config.peak not in BY_NAME:
        raise refusal(config, "peak", f"one of {', '.join(BY_NAME)}")


def judge(
    measured: list[dict[str, Any]], counts: list[dict[str, int]], million: list[dict[str, Any]]
) -> tuple[str, list[str]]:
    """What was shown, and what of the expectation was not met."""
    shown, unmet = [], []
    costs = {(Size(**m["size"]), m["method"]): m for m in measured}
    sizes = [size for size, name in costs if name == "checkpointed(slots=16)"]
    for size in sizes:
        of_size = []
        for name, most in (("full()", 1 / 3), ("checkpointed(slots=16)", 1 / 15)):
            time_ratio, ratio = costs[size, name]["time_ratio"], costs[size, name]["temporaries_ratio"]
            of_size.append(f"{name} {time_ratio:.2f} of the time, {part(ratio)} of the temporaries")
            if size == size_of(Config(), "lstm"):
                unmet += [f"time of {name}"] * (time_ratio > 1)
                unmet += [f"temporaries of {name}"] * (ratio > most)
        shown.append(f"{size.cell}: {' and '.join(of_size)}")
    if size_of(Config(), "lstm") not in sizes:
        shown.append("costs are judged for the LSTM at the default size only")
    for m in million:
        if m["million"] == "checkpointed(slots=16)":
            took = f"{m['seconds']:.1f} s and {m['peak'] / GIB:.2f} GiB"
            shown.append(f"{m['steps']} steps by {m['million']} in {took}")
            unmet += ["memory of a million steps"] * (m["peak"] >= 2 * GIB)
    equal = [c["advances"] == c["counted"] == c["closed_form"] for c in counts]
    shown.append(f"{sum(equal)} of {len(equal)} schedules as long as the closed form")
    return "; ".join(shown), unmet + ["schedules"] * (not all(equal))


def size_of(config: Config, cell: str) -> Size:
    """The size at which a cell is measured."""
    return Size(cell, config.steps, config.rows, config.inputs, config.hidden, config.outputs)


def main(config: Config) -> None:
    """Take the million steps, measure all methods, show both."""
    check(config)
    with jax.enable_x64(False):
        if config.peak is None:
            compare(config)
        else:
            print(json.dumps(step_of(BY_NAME[config.peak], config.steps)))


def compare(config: Config) -> None:
    """All but `--peak`."""
    run = Run(config.out, settings(config, "peak"))
    run.keep_metrics(lambda m: "million" in m)
    sizes: dict[Size, tuple[jb.GradientMethod, ...]] = {
        size_of(config, cell): METHODS for cell in config.cells
    }
    sizes[SMALL] = tuple(dict.fromkeys((*sizes.get(SMALL, ()), *AT_SMALL_SIZE)))
    with StopRequest() as stop:
        # first, while this process is small: Linux counts its peak in that of a process it starts
        million = take_the_million(run, stop) if config.million else []
        measured = [m for size in sizes for m in measure(size, sizes[size], config.repeats, stop)]
    counts = count_advances()
    for line in (*measured, *counts):
        run.record(**line)
    text = table(measured, counts, million)
    run.write("table.md", text)
    print(text)
    run.save_figure("gradient_methods.png", draw(measured, counts), dpi=150)
    shown, unmet = judge(measured, counts, million)
    print(f"{shown}; {'EXPECTATION NOT MET: ' + ', '.join(unmet) if unmet else 'as expected'}")


if __name__ == "__main__":
    run_script(main, Config, __doc__)

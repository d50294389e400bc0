"""What each gradient method costs: time and memory, in one interleaved run.

    python -m experiments.gradient_methods             under three minutes on two CPU cores

Measured is the value and gradient of one layer, a readout and the squared error, in float32, by
`jb.value_and_grad(net, loss)(..., gradient=m)`. The baseline is what one writes without this library:
`jax.value_and_grad` of the plain scan. Shown are

* for every method the time and XLA's temporaries, as ratios to the baseline. All programs are compiled
  first, then called in turn: A B C A B C. A ratio is the median over the rounds, each method against
  the baseline of its own round; the baseline is timed twice a round, and its ratio to itself is the
  noise. `parallel` and `rtrl` are for small networks and have a small size of their own;
* how often `checkpointed` runs a step forward: the binomial schedule against its closed form;
* one training step of a million steps, each method in a process of its own: seconds and peak memory.

No time counts before the gradients agree with the baseline's: ‖difference‖ / ‖gradient‖ of each array is
below 1e-4 for every exact method, or the run ends there. For the truncated ones it is what they miss.

Expectation, for the LSTM at the default size: full() needs at most 1/3 of the baseline's temporaries and
checkpointed(slots=16) at most 1/15, neither is slower than the baseline, the million steps of
checkpointed(slots=16) stay below 2 GiB; and the schedules are as long as the closed form says.

The steps of a million are kept in metrics.jsonl; interrupted, the same command does the others, and
measures the rest anew.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax import Array
from tqdm import tqdm

import jax_bptt as jb
from experiments.support.gradient_costs_table import draw, part, table, titled
from experiments.support.runs import Run, StopRequest, writing
from jax_bptt.engine.chunks import chunk_of
from jax_bptt.engine.sequence import Sequence
from jax_bptt.gradients.autodiff import plain_scan
from jax_bptt.gradients.schedule import advances, schedule

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
OF_A_MILLION = jb.checkpointed(slots=16), jb.checkpointed(), jb.truncated(1000), jb.full()
BY_NAME = {repr(m): m for m in (*METHODS, *AT_SMALL_SIZE, *OF_A_MILLION)}
SLOTS = {"checkpointed(slots=4)": 4, "checkpointed(slots=16)": 16, "checkpointed()": None}
SCHEDULES = (10, 3), (100, 10), (1000, 10), (1000, 50)  # leaves n, slots m
BASELINE = "jax.grad of the scan"
MILLION = 1_000_000
AGREE = 1e-4
GIB = 2**30


class Size(NamedTuple):
    """What is measured: T steps of B rows, from I inputs through H units to O outputs."""

    cell: str
    steps: int
    rows: int
    inputs: int
    hidden: int
    outputs: int


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
    """Whether to take the training steps of a million steps."""
    peak: str | None = None
    """Only this: one training step of --steps steps by this method, here, and what it took as JSON."""
    out: Path = Path("results/gradient_methods")
    """Result folder."""


def check(config: Config) -> None:
    """SystemExit where an option can not be meant."""
    if config.steps < 2:
        raise SystemExit(f"--steps {config.steps}: give a number of at least 2; one has no gradient by W_h")
    for name in ("rows", "inputs", "hidden", "outputs", "repeats"):
        if getattr(config, name) < 1:
            raise SystemExit(f"--{name} {getattr(config, name)}: give a number of at least 1")
    if not config.cells:
        raise SystemExit("--cells: give at least one of lstm, gru, elman")
    if config.peak is not None and config.peak not in BY_NAME:
        raise SystemExit(f"--peak {config.peak}: give one of {', '.join(BY_NAME)}")


# One size: the programs, their gradients, their times.


class Program(NamedTuple):
    """A compiled value and gradient, and how far the gradient is from the baseline's."""

    name: str
    call: Callable[[], Any]
    temporaries: int
    distance: float
    calls: int


def programs_of(size: Size, methods: tuple[jb.GradientMethod, ...], stop: StopRequest) -> list[Program]:
    """The baseline and the methods, compiled; SystemExit where an exact one has another gradient."""
    net, arguments = problem(size)
    net_and_loss = jb.value_and_grad(net, jb.squared_error)
    value_and_grads = {BASELINE: functools.partial(plain, net)}
    value_and_grads |= {repr(m): functools.partial(net_and_loss, gradient=m) for m in methods}
    programs: list[Program] = []
    wanted: Any = None
    for name, value_and_grad in tqdm(value_and_grads.items(), desc=f"compile {size.cell:8}", unit="program"):
        stop.leave()
        compiled = jax.jit(value_and_grad).lower(*arguments).compile()
        call = functools.partial(compiled, *arguments)
        _, grads = jax.block_until_ready(call())
        wanted = grads if name == BASELINE else wanted
        distance = farthest(grads, wanted)
        if is_exact(name) and not distance < AGREE:
            raise SystemExit(
                f"{name}: its gradient is {distance:.0e} from the baseline's ({titled(size._asdict())})"
            )
        used = compiled.memory_analysis()
        assert used is not None
        calls = min(100, math.ceil(0.02 / seconds(call, 1)))  # of some 20 ms at least
        programs.append(Program(name, call, used.temp_size_in_bytes, distance, calls))
    return programs


def is_exact(name: str) -> bool:
    """Whether a method of this name has the whole gradient."""
    return not name.startswith("truncated")


def problem(size: Size) -> tuple[jb.Network, tuple[Any, ...]]:
    """The network, and the arguments (params, carry, xs, targets) of its value and gradient."""
    cell = getattr(jb, size.cell)(size.inputs, size.hidden)
    net = jb.network([cell], jb.readout(size.hidden, size.outputs))
    keys = jax.random.split(jax.random.key(0), 3)
    params = net.init(keys[0])
    xs, targets = (
        jax.random.normal(key, (size.steps, size.rows, features))
        for key, features in zip(keys[1:], (size.inputs, size.outputs), strict=True)
    )
    return net, (params, net.initial_carry(params, (size.rows,)), xs, targets)


def plain(net: jb.Network, params: Any, carry: Any, xs: Array, targets: Array) -> Any:
    """The baseline: jax.value_and_grad of the plain scan, the readout and the squared error."""

    def loss(params: Any) -> tuple[Array, Any]:
        last, hs = plain_scan(net.layers[0].forward, params.cells[0], carry[0], None, Sequence(xs))
        ys = hs @ params.readout.w_y
        ys = ys + jnp.broadcast_to(params.readout.b_y, ys.shape)
        return jnp.sum((targets - ys) ** 2), (last,)

    return jax.value_and_grad(loss, has_aux=True)(params)


def farthest(grads: Any, wanted: Any) -> float:
    """The largest ‖difference‖ / ‖wanted‖ of an array; NaN if there is one."""
    pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True)
    return float(np.max([np.linalg.norm(g - w) / np.linalg.norm(w) for g, w in pairs]))


def seconds(call: Callable[[], Any], calls: int) -> float:
    """Of one call, the mean over some."""
    began = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(call())
    return (time.perf_counter() - began) / calls


def measure(
    size: Size, methods: tuple[jb.GradientMethod, ...], repeats: int, stop: StopRequest
) -> list[dict[str, Any]]:
    """A line of metrics for the baseline and for each method."""
    programs = programs_of(size, methods, stop)
    timed = [*programs, programs[0]]  # the baseline once more, to see the noise
    times: list[list[float]] = [[] for _ in timed]
    rounds = itertools.product(range(repeats), zip(timed, times, strict=True))
    total = repeats * len(timed)
    for _, (program, of_program) in tqdm(rounds, desc=f"measure {size.cell:8}", total=total, unit="run"):
        stop.leave()
        of_program.append(seconds(program.call, program.calls))
    base, *_, again = times
    ratios = [np.divide(again if t is base else t, base) for t in times[:-1]]
    return [
        {
            "size": size._asdict(),
            "method": program.name,
            "milliseconds": 1e3 * statistics.median(of_program),
            "time_ratio": float(np.median(ratio)),
            "quartiles": np.quantile(ratio, (0.25, 0.75)).tolist(),
            "temporaries": program.temporaries,
            "temporaries_ratio": program.temporaries / programs[0].temporaries,
            "forward_runs": forward_runs(size, program.name),
            "distance": program.distance,
        }
        for program, of_program, ratio in zip(programs, times, ratios, strict=False)
    ]


# How often a step is run forward.


def leaves(size: Size, slots: int | None) -> tuple[int, int]:
    """K and n: the steps of a leaf of `checkpointed`, and how many leaves there are."""
    params, _, xs, _ = jax.eval_shape(lambda: problem(size)[1])
    root = math.isqrt(size.steps)
    leaf = root if slots is None else min(root, chunk_of(Sequence(xs), params))
    return leaf, size.steps // leaf


def forward_runs(size: Size, name: str) -> float | None:
    """Forward runs of a step by `checkpointed`, on average; None for other methods."""
    if name not in SLOTS:
        return None
    leaf, n = leaves(size, SLOTS[name])
    again = leaf * advances(n, min(n, SLOTS[name] or n)) + size.steps - leaf * n
    return 1 + again / size.steps  # once to be reversed


def closed_form(n: int, m: int) -> int:
    """t(n, m) = r n − C(m + r, r − 1), r the least with C(m + r, m) >= n (Griewank & Walther 2000)."""
    r = next(r for r in itertools.count() if math.comb(m + r, m) >= n)
    return r * n - (math.comb(m + r, r - 1) if r else 0)


def count_advances() -> list[dict[str, int]]:
    """For some n and m: `advances`, the advances that the schedule has, and the closed form."""
    return [
        {
            "leaves": n,
            "slots": m,
            "advances": advances(n, m),
            "counted": sum(not action.reverse for action in schedule(n, m)),
            "closed_form": closed_form(n, m),
        }
        for n, m in SCHEDULES
    ]


# A million steps.


def step_of(name: str, steps: int) -> dict[str, Any]:
    """One training step of an LSTM in this process: seconds, and the most memory that was resident."""
    net, optimizer = jb.network([jb.lstm(1, 64)], jb.readout(64, 1)), optax.adam(1e-3)
    train_step = jb.make_train_step(net, jb.squared_error, optimizer, gradient=BY_NAME[name])
    state = jb.init_train_state(jax.random.key(0), net, optimizer, (1,))
    batch = jb.Batch(jax.random.normal(jax.random.key(1), (steps, 1, 1)), jnp.zeros((steps, 1, 1)))
    compiled = train_step.lower(state, batch).compile()  # type: ignore[attr-defined] # it is jitted
    before, began = peak_memory(), time.perf_counter()
    _, metrics = jax.block_until_ready(compiled(state, batch))
    took = time.perf_counter() - began
    norm = float(metrics.grad_norm)
    return {"seconds": took, "peak": peak_memory(), "before": before, "grad_norm": norm}


def peak_memory() -> int:
    """The most bytes that this process had resident."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def take_the_million(run: Run, stop: StopRequest) -> list[dict[str, Any]]:
    """A training step by each method, each in a process of its own; those found are not done again."""
    found = {m["million"]: m for m in run.metrics() if "million" in m}
    for name in tqdm([repr(m) for m in OF_A_MILLION], desc="a million steps ", unit="process"):
        if name not in found:
            found[name] = {"million": name, "steps": MILLION, **_in_a_process(name, stop)}
            run.record(**found[name])
    wanted = found["full()"]["grad_norm"]
    for name, m in found.items():
        distance = abs(m["grad_norm"] / wanted - 1)
        if is_exact(name) and not distance < AGREE:
            raise SystemExit(f"{name}: after a million steps the gradient is {distance:.0e} from full()'s")
    return list(found.values())


def _in_a_process(name: str, stop: StopRequest) -> dict[str, Any]:
    """`step_of` in a new process, which Ctrl-C does not reach but by way of this one."""
    command = [sys.executable, "-m", "experiments.gradient_methods", "--peak", name, "--steps", str(MILLION)]
    pipe, root = subprocess.PIPE, Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=root, stdout=pipe, stderr=pipe, start_new_session=True) as process:
        try:
            while True:
                try:
                    printed, errors = process.communicate(timeout=0.1)
                    break
                except subprocess.TimeoutExpired:
                    stop.leave()
        finally:
            process.kill()
    if process.returncode:
        said = errors.decode(errors="replace").strip().splitlines()[-1:]
        raise SystemExit(f"{name}: its process ended with {process.returncode} {' '.join(said)}")
    return json.loads(printed.splitlines()[-1])


# What came out.


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
            print(json.dumps(step_of(config.peak, config.steps)))


def compare(config: Config) -> None:
    """All but `--peak`."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("out", "peak")}
    run = Run(config.out, settings | {"cells": list(config.cells)})
    run.keep_metrics(lambda m: "million" in m)
    sizes = {size_of(config, cell): METHODS for cell in config.cells}
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
    with writing(run.folder):
        draw(run.folder / "gradient_methods.png", measured, counts)
    print(run.folder / "gradient_methods.png")
    shown, unmet = judge(measured, counts, million)
    print(f"{shown}; {'EXPECTATION NOT MET: ' + ', '.join(unmet) if unmet else 'as expected'}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

"""What training on many devices sends between them, counted in compiled programs.

    python -m experiments.scaling                  some seconds for each of 2, 4 and 8 simulated devices;
                                                   with the extra `gpu` also compiled for two H100s, 3 minutes

Four programs train an LSTM layer of H units with a readout; every device brings B rows of T steps:

    ours           jb.make_train_step, state by jb.data_parallel
    fully sharded  the same step, state by jb.fully_sharded: parameters and optimizer in pieces, and on
                   Explicit axes the sum of the gradients too
    plain scan     jax.grad of the scan that one writes, rows split, the rest left to XLA
    hidden units   jax.grad of a scan whose units are split: each device has all rows and H/N units, and
                   every step gathers h before its product; this is what a layer across devices comes to

The script counts their collectives in loops and outside of loops, and the bytes that one device sends if the
devices form a ring:

    all-reduce of S bytes 2 S (N − 1)/N,   all-gather to S bytes, reduce-scatter of S bytes S (N − 1)/N

**What holds on every backend.** In our programs no sum over devices lies in a loop: all loops run on the rows
of one device, and the sums over devices are written after them. So this does not depend on the compiler, and
the bytes of a step are what the formula says.

**What depends on the backend.** The gradient of a plain scan adds to dE/dW in every step of a loop. Compiled
for CPUs, it runs an all-reduce in every step. Compiled for GPUs it does not: XLA moves the all-reduce out of
the loop, also of one inside a jax.shard_map, and the program sends as many bytes as ours.

**What is in pieces.** On Explicit axes each array says that it is in pieces. So "fully sharded" gives each
device only its piece of the sum (reduce-scatter), and the norm of the gradient is a sum over pieces: with the
gathering of the parameters that is two thirds of the bytes of summing whole gradients, for two more
collectives. On Auto axes no array says so while it is traced. Compiled for GPUs, a sum of which each device
uses its piece only becomes a reduce-scatter there too; but the norm that a training step returns uses the
whole, and so the whole is summed. The page counts both for two H100s.

**What a step would take on N GPUs** is calculated, not measured. Devices are assumed not to compute while
they communicate:

    t(N) = T max(τ, F/R) + Σ over collectives (α(N) + bytes/β(N))
    efficiency = t(1)/t(N)                                              rows a device held constant

F is the number of FLOPs of a device in one step of the sequence. τ, R, α and β are assumptions about a GPU of
the H100's kind: τ and R are options of the script; within a node of 8, α = 10 µs and β = 450 GB/s; beyond it
α grows by 5 µs for every doubling, and β = 50 GB/s. The plain scan is left out, since its formula here
is that of its program for CPUs.

The library does not offer a layer across devices (hidden units). Compared with split rows, it saves no
product and adds two collectives to every step, because each step needs h of all units: 2 T α, with the α and
τ assumed here twice the computing of a whole step. It would help where rows cannot be split: with fewer rows
than devices, or with a W_h that no device can hold.

Expectation: the gradients agree; ours has one collective, in no loop; the plain scan, compiled for CPUs, has
one in every step; the bytes are as the formula of each program says.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from experiments.support.collectives import Collective, collectives
from experiments.support.command_line import run_script
from experiments.support.compiled_for_gpu import MISSING, compile_for_gpu, h100s
from experiments.support.findings import Row, conclude
from experiments.support.options import check_counts, check_positive, refusal, settings
from experiments.support.runs import Run
from experiments.support.scaling_programs import ON_GPUS, PROGRAMS

SIMULATED = (1, 2, 4, 8)
CALCULATED = ("ours", "fully sharded", "hidden units")  # what they send is the same on CPUs and on GPUs
GPUS = (8, 256, 4096)


@dataclasses.dataclass(frozen=True)
class Config:
    """The network, and what is assumed of a GPU."""

    steps: int = 128
    """Steps T of a sequence."""
    rows: int = 16
    """Rows B of each device."""
    inputs: int = 64
    """Inputs I of a step."""
    hidden: int = 512
    """Hidden units H, a multiple of 8."""
    outputs: int = 64
    """Outputs O of the readout."""
    step_us: float = 10.0
    """τ, the least time that a GPU takes for one step forward and back, in microseconds. Assumed."""
    tflops: float = 200.0
    """R, the TFLOP/s of a GPU where products take longer than τ. Assumed."""
    out: Path = Path("results/scaling")
    """Folder of the results."""


def check(config: Config) -> None:
    """SystemExit if the script cannot run with an option."""
    check_counts(config, steps=2, rows=1, inputs=1, hidden=8, outputs=1)
    check_positive(config, "step_us", "tflops")
    if config.hidden % max(SIMULATED):
        raise refusal(config, "hidden", f"a multiple of {max(SIMULATED)}")


class Counted(NamedTuple):
    """A program on N devices: what it sends, and its gradient by W_h."""

    sent: list[Collective]
    d_w_h: np.ndarray


def counted(config: Config, name: str, mesh: Any) -> Counted:
    """A program, compiled for the devices of the mesh and run there."""
    problem = PROGRAMS[name](config, mesh)
    args = jax.device_put(problem.args, problem.lie)
    compiled = jax.jit(problem.run).lower(*args).compile()
    d_w_h = np.asarray(problem.d_w_h(compiled(*args))).reshape(config.hidden, -1)
    return Counted(collectives(compiled), d_w_h)


def count_on_gpus(config: Config) -> dict[str, list[Collective]]:
    """What each program sends if it is compiled for two H100s; nothing where that compiler is absent."""
    found: dict[str, list[Collective]] = {}
    for name, (program, kind) in ({} if MISSING else ON_GPUS).items():
        problem = program(config, h100s(2, kind))
        found[name] = compile_for_gpu(problem.run, problem.args, problem.lie).sent
    return found


def formula(config: Config, name: str, n: int) -> list[Collective]:
    """The collectives of a program on n devices, from its sizes alone; those of the plain scan on CPUs."""
    t, b, h = config.steps, config.rows * n, config.hidden
    of_cell = 4 * (4 * h * (config.inputs + h + 1))  # bytes, float32
    of_all = of_cell + 4 * config.outputs * (h + 1)
    if name == "plain scan":
        readout = Collective("all-reduce", of_all - of_cell - 4 * config.outputs, 1, False)
        return [Collective("all-reduce", of_cell, t, True), readout]
    if name == "hidden units":
        gathered = Collective("all-gather", 4 * b * h, t, True)
        scattered = Collective("reduce-scatter", 4 * b * h // n, t, True)
        return [gathered, scattered, Collective("all-reduce", 4 * t * b * config.outputs, 1, False)]
    if name == "fully sharded":
        pieces = [
            Collective("all-gather", of_all, 1, False),
            Collective("reduce-scatter", of_all // n, 1, False),
        ]
        of_norm = 4 * 5  # of five parameters the largest number, then the sum of squares
        return [*pieces, *(Collective("all-reduce", size, 1, False) for size in (of_norm, of_norm + 8))]
    return [Collective("all-reduce", of_all + 8, 1, False)]


def seconds(config: Config, sent: list[Collective], n: int) -> float:
    """t(N), calculated from the assumptions above."""
    flops = 6 * config.rows * 4 * config.hidden * (config.inputs + config.hidden)
    computing = config.steps * max(config.step_us * 1e-6, flops / (config.tflops * 1e12))
    if n == 1:
        return computing
    latency = (10 + 5 * max(0, math.log2(n / 8))) * 1e-6
    bandwidth = 450e9 if n <= 8 else 50e9
    return computing + sum(c.times * latency + c.sent(n) / bandwidth for c in sent)


def efficiency(config: Config, name: str, n: int) -> float:
    """t(1)/t(N)."""
    return seconds(config, [], 1) / seconds(config, formula(config, name, n), n)


def count(config: Config, run: Run) -> dict[str, dict[int, Counted]]:
    """Every program on 1, 2, 4 and 8 devices."""
    found: dict[str, dict[int, Counted]] = {name: {} for name in PROGRAMS}
    run.keep_metrics(lambda m: False)
    with tqdm(total=len(PROGRAMS) * len(SIMULATED), unit="program") as bar:
        for n in SIMULATED:
            mesh = jax.make_mesh((n,), ("data",))
            for name in PROGRAMS:
                found[name][n] = counted(config, name, mesh)
                inside, outside = split(found[name][n].sent)
                sent = sum(c.sent(n) for c in found[name][n].sent)
                run.record(program=name, devices=n, inside=inside, outside=outside, sent=sent)
                bar.update()
                bar.set_postfix_str(f"{name} on {n}: {sent / 2**20:.1f} MiB sent")
    return found


def split(sent: list[Collective]) -> tuple[int, int]:
    """How many collectives run in loops, counted once a turn, and how many outside."""
    return sum(c.times for c in sent if c.in_loop), sum(c.times for c in sent if not c.in_loop)


def rows(config: Config, found: dict[str, dict[int, Counted]]) -> list[Row]:
    """What is asked of the counts."""
    wanted = {n: found["plain scan"][n].d_w_h for n in SIMULATED}
    gap = max(
        np.linalg.norm(of[n].d_w_h - wanted[n]) / np.linalg.norm(wanted[n])
        for of in found.values()
        for n in SIMULATED
    )
    of = {name: split(by[max(SIMULATED)].sent) for name, by in found.items()}
    off = max(
        abs(sum(c.sent(n) for c in by[n].sent) / sum(c.sent(n) for c in formula(config, name, n)) - 1)
        for name, by in found.items()
        for n in SIMULATED[1:]
    )
    counts = "collectives in loops and outside, on 8 simulated CPU devices"
    return [
        Row("largest difference of the four gradients", "below 1e-5", f"{gap:.1e}", bool(gap < 1e-5)),
        Row(f"ours, {counts}", "0 and 1", "{} and {}".format(*of["ours"]), of["ours"] == (0, 1)),
        Row(
            f"plain scan, {counts}",
            f"T = {config.steps} in loops",
            "{} and {}".format(*of["plain scan"]),
            of["plain scan"][0] >= config.steps,
        ),
        Row("bytes sent, counted against the formula", "within 1 %", f"{off:.2%} off", off < 0.01),
    ]


def page(config: Config, found: dict[str, dict[int, Counted]], gpus: dict[str, list[Collective]]) -> str:
    """What this file says, the counts and the calculation, in Markdown."""
    sizes = f"T = {config.steps}, {config.rows} rows a device, I = {config.inputs}, H = {config.hidden}"
    lines = ["# Scaling", "", *inspect.cleandoc(__doc__ or "").split("\n\n", 2)[2].splitlines(), ""]
    lines += [f"Counted in programs that JAX {jax.__version__} compiled for CPUs, {sizes}: collectives in"]
    lines += ["loops + outside, and MiB that a device sends in one training step.", ""]
    lines += ["| | " + " | ".join(f"{n} devices" for n in SIMULATED[1:]) + " |", "|---|" + "---|" * 3]
    for name, by in found.items():
        cells = [
            "{} + {}, {:.1f}".format(*split(by[n].sent), sum(c.sent(n) for c in by[n].sent) / 2**20)
            for n in SIMULATED[1:]
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if gpus:
        heading = "| compiled for two H100s | loops + outside, MiB | which outside |"
        lines += ["", f"The same sizes, compiled for two H100s by JAX {jax.__version__}, without a GPU:", ""]
        lines += [heading, "|---|---|---|"]
        for name, sent in gpus.items():
            outside = ", ".join(c.kind for c in sent if not c.in_loop)
            numbers = "{} + {}, {:.1f}".format(*split(sent), sum(c.sent(2) for c in sent) / 2**20)
            lines.append(f"| {name} | {numbers} | {outside} |")
    lines.append("")
    calculated = "milliseconds of a step, and the share of one GPU's speed that is kept, as a figure too"
    alt = "Share of one GPU's speed that is kept, by the number of GPUs, calculated for three programs"
    lines += [f"Calculated, not measured: {calculated}.", "", f"![{alt}](figures/scaling.png)", ""]
    lines += ["| | 1 GPU | " + " | ".join(f"{n:,}" for n in GPUS) + " |", "|---|---|" + "---|" * 3]
    for name in CALCULATED:
        cells = [
            f"{seconds(config, formula(config, name, n), n) * 1e3:.2f}, {efficiency(config, name, n):.0%}"
            for n in GPUS
        ]
        lines.append(f"| {name} | {seconds(config, [], 1) * 1e3:.2f} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def draw(config: Config) -> Figure:
    """Efficiency over the number of GPUs."""
    figure, devices = Figure(figsize=(5, 3.6), layout="constrained"), [2**k for k in range(13)]
    axes = figure.subplots()
    for name in CALCULATED:
        kept = [1.0] + [efficiency(config, name, n) for n in devices[1:]]
        axes.plot(devices, kept, marker="o", ms=4, label=name)
    axes.axvspan(1, 8, color="0.93", zorder=0, label="one node")
    axes.set(ylim=(0, 1.05), xlabel="GPUs", ylabel="share of one GPU's speed")
    axes.set_xscale("log", base=2)
    title = "LSTM, T = {steps}, H = {hidden}, {rows} rows a GPU\ncalculated from assumed speeds, not measured"
    axes.set_title(title.format(**dataclasses.asdict(config)), fontsize=11)
    axes.legend()
    return figure


def main(config: Config) -> None:
    """Count, calculate, judge."""
    began = time.monotonic()
    check(config)
    jax.config.update("jax_num_cpu_devices", max(SIMULATED))
    jax.config.update("jax_platforms", "cpu")  # the devices are simulated, on any machine
    run = Run(config.out, settings(config))
    found = count(config, run)
    run.write("SCALING.md", page(config, found, count_on_gpus(config)))
    print(run.folder / "SCALING.md")
    run.save_figure("scaling.png", draw(config), dpi=180)
    conclude(run, "scaling", config, rows(config, found), 1, time.monotonic() - began)


if __name__ == "__main__":
    run_script(main, Config, __doc__)

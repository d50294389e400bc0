"""The rates of a simulated reaction, found from its last state: a gradient through 4096 steps by `jb.scan`.

    python -m experiments.simulator                       about three minutes on two CPU cores

Two substances react on a torus of 64×64 cells, as in the model of Gray & Scott (Pearson 1993):

    u ← u + Δt (D_u ∇²u − u v² + F (1 − u))
    v ← v + Δt (D_v ∇²v + u v² − (F + k) v)          Δt = 0.1, 4096 steps

Two spots of v become a pattern. Only its last state (u*, v*) is known, and the rates p = (F, k, D_u, D_v) are
looked for, from a guess that is wrong by 8 to 10 %: E = mean (u − u*)² + mean (v − v*)², minimised by
optax.lbfgs. The simulator is the body of a scan, so `jb.scan` in place of jax.lax.scan gives every gradient
method. The script shows

* time and temporaries of the gradient by (p, u_0, v_0), beside jax.grad of the plain scan and of two nested
  scans, of which jax.checkpoint keeps the outer states only. All programs are called in turn, A B C A B C. A
  ratio of times is the median over the rounds, each program against the plain scan of its own round;
* the truncated gradient by its window. E depends on the last state alone, so a window sees its last steps
  alone: by (u_0, v_0) the gradient is exactly zero, and by p it holds the effect of p in the last steps;
* the search for p with the exact gradient, and with truncated ones.

Expectation: all exact gradients agree within 1e-4; full() takes at most 3/4 of the plain scan's temporaries
and checkpointed(slots=16) at most 1/12; the exact gradient finds every rate within 0.1 %, and with windows of
256 and 1024 steps a rate stays wrong by more than 1 %. Times are shown as they come out.

Each round and each update is kept in metrics.jsonl. After an interruption, the same command does the rest.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax import Array

import jax_bptt as jb
from experiments.support.command_line import run_script
from experiments.support.comparisons import markdown
from experiments.support.descents import Descent, descend, seconds_of_descents
from experiments.support.findings import Row, conclude
from experiments.support.gradient_costs_table import part
from experiments.support.learning import Curve
from experiments.support.options import check_counts, refusal, settings
from experiments.support.reaction import GUESS, NAMES, Problem, Scan, nested, problem, rates
from experiments.support.runs import Run, StopRequest
from experiments.support.scan_costs import Cost, measure
from experiments.support.simulator_figure import Seen, draw

MIB = 2**20
PLAIN, NESTED = "jax.grad of the scan", "nested jax.checkpoint"
METHODS = jb.full(), jb.full(recompute=False), jb.checkpointed(), jb.checkpointed(slots=16)
AGREE, FOUND, ASTRAY = 1e-4, 1e-3, 1e-2
ROUNDING = 1e-11  # of E in float32


@dataclasses.dataclass(frozen=True)
class Config:
    """How large, how often, how far."""

    cells: int = 64
    """Cells of the torus in each direction."""
    steps: int = 4096
    """Steps of the simulation."""
    rounds: int = 9
    """Rounds in which every program is timed."""
    windows: tuple[int, ...] = (16, 64, 256, 1024, 2048)
    """Windows h of the truncated gradients that are compared, each below the number of steps."""
    searches: tuple[int, ...] = (256, 1024)
    """Windows h of the truncated gradients that look for the rates."""
    updates: int = 60
    """Updates of each search at most."""
    gradients: int = 120
    """Gradients of each search at most; a line search can take several."""
    out: Path = Path("results/simulator")
    """Folder of the results."""


def check(config: Config) -> None:
    """SystemExit if an option has a value that the script cannot use."""
    check_counts(config, cells=3, steps=2, rounds=1, updates=1, gradients=1)
    for name in ("windows", "searches"):
        for h in getattr(config, name):
            if not 1 <= h < config.steps:
                raise refusal(config, name, f"numbers from 1 to {config.steps - 1}")


# Costs.


def scans() -> dict[str, Scan]:
    """Everything whose costs are measured, by name; the first is the baseline."""
    return {PLAIN: jax.lax.scan, NESTED: nested, **{repr(m): by(m) for m in (*METHODS, jb.truncated(256))}}


def by(method: jb.GradientMethod) -> Scan:
    """`jb.scan` with this gradient."""
    return lambda f, init, xs, length: jb.scan(f, init, xs, length, gradient=method)


def costs_of(config: Config, a: Problem, run: Run, stop: StopRequest) -> list[Cost]:
    """The costs of all; SystemExit where an exact gradient is another than the baseline's."""
    programs = {name: jax.value_and_grad(a.loss(scan), argnums=(0, 1)) for name, scan in scans().items()}
    costs = measure(run, stop, programs, (GUESS, a.begin), config.rounds)
    for cost in costs:
        if not cost.name.startswith("truncated") and not cost.distance < AGREE:
            raise SystemExit(f"{cost.name}: its gradient differs from the baseline's by {cost.distance:.0e}")
    return costs


def table(costs: list[Cost]) -> str:
    """The costs as Markdown."""
    head = ["method", "ms", "× baseline", "quartiles", "MiB", "of baseline", "distance"]
    rows = [
        [
            cost.name,
            f"{cost.milliseconds:.0f}",
            f"{cost.time:.2f}",
            f"{cost.low:.2f}–{cost.high:.2f}",
            f"{cost.temporaries / MIB:.2f}",
            part(cost.memory),
            f"{cost.distance:.0e}",
        ]
        for cost in costs
    ]
    return markdown(head, rows) + "\n"


# The truncated gradient.


def compare(config: Config, a: Problem, run: Run, stop: StopRequest) -> list[Seen]:
    """For every window: the truncated gradient at the guess, beside the exact one."""
    found = {m["window"]: m for m in run.metrics(window=int, cosine=float, by_rates=float, by_begin=float)}
    windows = sorted(set(config.windows))
    exact: Any = None
    for h in windows:
        stop.leave()
        if h not in found:
            exact = gradient(a, jax.lax.scan) if exact is None else exact
            found[h] = {"window": h, **beside(gradient(a, by(jb.truncated(h))), exact)}
            run.record(**found[h])
    return [Seen(*(found[h][name] for name in Seen._fields)) for h in windows]


def gradient(a: Problem, scan: Scan) -> tuple[np.ndarray, np.ndarray]:
    """dE by the rates and by (u_0, v_0), both flat, at the guess."""
    by_rates, by_begin = jax.jit(jax.grad(a.loss(scan), argnums=(0, 1)))(GUESS, a.begin)
    return np.asarray(by_rates), np.concatenate([np.ravel(field) for field in by_begin])


def beside(truncated: tuple[np.ndarray, ...], exact: tuple[np.ndarray, ...]) -> dict[str, float]:
    """Cosine of the gradients by the rates, and norms as ratios."""
    ratios = [float(np.linalg.norm(t) / np.linalg.norm(e)) for t, e in zip(truncated, exact, strict=True)]
    cosine = float(truncated[0] @ exact[0] / (np.linalg.norm(truncated[0]) * np.linalg.norm(exact[0])))
    return {"cosine": cosine, "by_rates": ratios[0], "by_begin": ratios[1]}


# The search.


def search(config: Config, a: Problem, method: jb.GradientMethod) -> Descent:
    """L-BFGS on the rates, from the guess; the gradient is that of the method."""

    def error(unknown: Array) -> Array:
        return a.loss(by(method))(unknown, a.begin)

    lines = optax.scale_by_zoom_linesearch(max_linesearch_steps=12, initial_guess_strategy="one")
    optimizer = optax.lbfgs(linesearch=lines)
    value_and_grad = optax.value_and_grad_from_state(error)

    @jax.jit
    def update(state: tuple[Array, optax.OptState]) -> tuple[Array, optax.OptState]:
        unknown, inner = state
        value, slope = value_and_grad(unknown, state=inner)
        change, inner = optimizer.update(slope, inner, unknown, value=value, grad=slope, value_fn=error)
        return unknown + change, inner

    def advance(state: tuple[Array, optax.OptState], number: int) -> tuple[Any, dict[str, Any]]:
        count = 1 if number == 0 else 0  # the first update also asks for the gradient at the guess
        state = update(state)
        steps = optax.tree_utils.tree_get(state[1], "num_linesearch_steps")
        p = np.asarray(rates(state[0]), float)
        said = {"gradients": int(steps) + count, "rates": p.tolist()}
        return state, {"loss": float(optax.tree_utils.tree_get(state[1], "value")), **said}

    def ended(lines: Curve) -> bool:
        return lines[-1]["loss"] < ROUNDING or sum(m["gradients"] for m in lines) >= config.gradients

    return Descent(repr(method), (GUESS, optimizer.init(GUESS)), advance, config.updates, ended)


def off(p: list[float]) -> float:
    """The largest relative error of the rates."""
    return float(np.max(np.abs(np.asarray(p) / np.asarray(rates(0 * GUESS)) - 1)))


def search_all(config: Config, a: Problem, run: Run, stop: StopRequest) -> dict[str, Curve]:
    """The lines of every search, the exact one first."""
    methods = [jb.checkpointed(slots=16), *(jb.truncated(h) for h in dict.fromkeys(config.searches))]
    return {repr(m): descend(run, stop, search(config, a, m)) for m in methods}


# What came out.


def judge(costs: list[Cost], seen: list[Seen], curves: dict[str, Curve]) -> list[Row]:
    """What the top of this file expects, and what came out."""
    named = {cost.name: cost for cost in costs}
    farthest = max(cost.distance for cost in costs if not cost.name.startswith("truncated"))
    rows = [
        Row("exact gradients, largest difference", f"below {AGREE:g}", f"{farthest:.0e}", farthest < AGREE)
    ]
    for name, most, known in (("full()", 3 / 4, "3/4"), ("checkpointed(slots=16)", 1 / 12, "1/12")):
        cost, other = named[name], named[NESTED]
        ours = f"{part(cost.memory)}, in {cost.time:.2f} of the time"
        ours += f" (nested jax.checkpoint {part(other.memory)}, {other.time:.2f})"
        rows.append(Row(f"temporaries of {name} / plain scan", f"at most {known}", ours, cost.memory <= most))
    largest = max((one.by_begin for one in seen), default=0.0)
    shown = f"exactly {largest:g}" if largest == 0 else f"{largest:.1e} of the exact norm"
    rows.append(Row("truncated gradient by (u_0, v_0), all windows", "0", shown, largest == 0))
    for i, (name, lines) in enumerate(curves.items()):
        error = off(lines[-1]["rates"])
        used = sum(m["gradients"] for m in lines)
        ours = f"{100 * error:.2g} % after {used} gradients, E = {lines[-1]['loss']:.0e}"
        known, met = ("below 0.1 %", error < FOUND) if i == 0 else ("above 1 %", not error <= ASTRAY)
        rows.append(
            Row(
                f"largest error of a rate, {name}",
                f"{known}; {100 * off(_guess()):.0f} % at first",
                ours,
                met,
            )
        )
    return rows


def _guess() -> list[float]:
    return np.asarray(rates(GUESS), float).tolist()


def main(config: Config) -> None:
    """Measure, compare, search, draw, judge."""
    check(config)
    with jax.enable_x64(False):
        run = Run(config.out, settings(config))
        a = problem(config.cells, config.steps)
        with StopRequest() as stop:
            costs = costs_of(config, a, run, stop)
            seen = compare(config, a, run, stop)
            curves = search_all(config, a, run, stop)
        run.write("table.md", table(costs))
        print(table(costs))
        run.save_figure("simulator.png", draw(a, costs, seen, curves), dpi=110)
        for name, lines in curves.items():
            shown = ", ".join(f"{n} {p:.5f}" for n, p in zip(NAMES, lines[-1]["rates"], strict=True))
            print(f"{name}: {shown}")
        conclude(run, "simulator", config, judge(costs, seen, curves), 1, seconds_of_descents(run))


if __name__ == "__main__":
    run_script(main, Config, __doc__)

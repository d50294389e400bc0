"""Contenders that are trained in turns: a round of each, then the next round of each, A B C B C A.

The first in a round is the last in the next, since its place has an influence on its time. After every round
all of them are saved, and a line of metrics says of each what it reached and how long it took. A run that was
killed goes on from there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from tqdm import tqdm

from experiments.support.checkpoints import Checkpoints
from experiments.support.learning import Curve
from experiments.support.runs import Run, StopRequest

Round = Callable[[Any], tuple[Any, Any]]  # a state -> the next one, and what is to be said of the round


class Turns(NamedTuple):
    """Who takes turns, and how often.

    Attributes:
      labels: what all their lines have in common, such as the seed; also the name of their checkpoints.
      begin: their states at the beginning, by name.
      program: name -> its round, compiled when it is asked for.
      say: what a round returned -> the values of its line, "loss" among them.
      steps: how many in all, a multiple of `every`.
      every: steps of a round.
      unit: what a step is called.
    """

    labels: dict[str, Any]
    begin: dict[str, Any]
    program: Callable[[str], Round]
    say: Callable[[Any], dict[str, Any]]
    steps: int
    every: int
    unit: str


class Together(NamedTuple):
    """The contenders after some steps."""

    step: Array
    states: dict[str, Any]


def train_in_turns(run: Run, stop: StopRequest, turns: Turns) -> dict[str, Curve]:
    """Rounds of all in turn, from the last checkpoint to the end.

    Args:
      run: where metrics.jsonl and the checkpoints are.
      stop: asked before every round; SystemExit then, with all rounds before it saved.
      turns: who takes turns.

    Returns:
      The lines of metrics.jsonl of each: the labels, curve (its name), step, took (seconds), and what was
      said.

    Raises:
      SystemExit: a stop was asked for; a loss is not finite; metrics or checkpoints are damaged.
    """
    state = Together(jnp.zeros((), int), turns.begin)
    name_of_all = " ".join(f"{key} {value}" for key, value in turns.labels.items())
    with Checkpoints(run.folder / "checkpoints" / name_of_all.replace(" ", "_")) as saved:
        state = saved.restore(state)
        done = int(state.step)
        run.keep_metrics_up_to(done, **turns.labels)
        names = [*turns.begin]
        curves = {name: lines_of(run, curve=name, **turns.labels) for name in names}
        if any(len(lines) != done // turns.every for lines in curves.values()):
            fix = f"delete {saved.folder} to begin again"
            raise SystemExit(f"metrics.jsonl lacks lines up to step {done} of {name_of_all}; {fix}")
        with tqdm(total=turns.steps, initial=done, unit=turns.unit, desc=name_of_all) as bar:
            while done < turns.steps:
                stop.leave()
                done += turns.every
                first = done // turns.every % len(names)
                for name in names[first:] + names[:first]:
                    state.states[name], said = one_round(turns, name, state.states[name])
                    line = {**turns.labels, "curve": name, "step": done, **said}
                    run.record(**line)
                    curves[name].append(line)
                state = state._replace(step=jnp.asarray(done, state.step.dtype))
                saved.save(state)
                bar.update(turns.every)
                shown = (f"{name} {lines[-1]['loss']:.3g}" for name, lines in curves.items())
                bar.set_postfix_str("loss: " + ", ".join(shown), refresh=False)
    return curves


def one_round(turns: Turns, name: str, state: Any) -> tuple[Any, dict[str, Any]]:
    """A round of one of them, and what its line says. SystemExit if its loss is not finite."""
    program = turns.program(name)
    began = time.perf_counter()
    state, out = jax.block_until_ready(program(state))
    took = time.perf_counter() - began
    said = turns.say(out)
    if not math.isfinite(said["loss"]):
        raise SystemExit(f"{name}: the loss is not finite; lower the learning rate")
    return state, {**said, "took": took}


def lines_of(run: Run, **labels: Any) -> Curve:
    """The lines of `train_in_turns` with these labels."""
    lines = run.metrics(curve=str, step=int, loss=float, took=float)
    return [m for m in lines if labels.items() <= m.items()]

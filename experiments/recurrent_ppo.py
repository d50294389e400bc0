"""Reinforcement learning that needs memory: a recurrent agent trained by PPO in a T-maze.

    python -m experiments.recurrent_ppo                   about a minute on two CPU cores

At the entrance of a corridor an agent sees a cue, left or right. Many steps later, at a junction, the reward
lies where the cue was (experiments/support/t_maze.py). Corridors have 10 to 30 steps, drawn anew for each
episode. Three agents are trained by the same PPO (experiments/support/ppo.py), with the same options:

    GRU               encoder of what is seen, the last action and the last reward; a GRU; a head with
                      two outputs, the logits of the actions and the value. It acts by `net.step`, and
                      learns by `jb.value_and_grad` from pieces of 32 steps and the carries stored there
    without memory    the same with a layer without recurrence in the place of the GRU
    GRU in flax       the GRU agent as one writes it with flax.linen, and with the same first parameters.
                      It goes apart from ours by its biases alone: see experiments/support/ppo_in_flax.py.
                      Without flax (pip install flax) it is left out, and the script says so

Their updates are interleaved, some of one agent, some of the next: A B C A B C. The time is that of acting
and learning; a ratio of times is the median over the rounds, ours against flax of the same round.

Expectation: in the last iterations the GRU is right in at least 95 % of the episodes, from every seed, in our
library as in flax, and takes no longer than in flax. An agent without memory can be right in half of them at
most, whatever it does; so it is right in at most 60 % in the last iterations, which are a sample.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.support import ppo, ppo_agents
from experiments.support.command_line import run_script
from experiments.support.curves import ends, plot
from experiments.support.findings import Row, conclude
from experiments.support.learning import Curve, Curves
from experiments.support.options import check_counts, check_positive, refusal, settings
from experiments.support.ppo import Agent, Report, Training
from experiments.support.runs import Run, StopRequest
from experiments.support.t_maze import Lengths
from experiments.support.turns import Turns, train_in_turns

OURS, WITHOUT, FLAX = "GRU", "without memory", "GRU in flax"


@dataclasses.dataclass(frozen=True)
class Config:
    """Corridors, agents, training."""

    shortest: int = 10
    """Steps of the shortest corridor."""
    longest: int = 30
    """Steps of the longest corridor."""
    hidden: int = 32
    """Hidden units of the GRU, and units of the layers beside it."""
    iterations: int = 300
    """Iterations of each agent; each acts in all mazes and then learns from that."""
    every: int = 10
    """Iterations of a round, after which the next agent has its turn."""
    rows: int = 64
    """Mazes at once."""
    steps: int = 32
    """Steps in every maze in an iteration."""
    epochs: int = 4
    """How often an iteration learns from each step."""
    parts: int = 4
    """Updates of an epoch; each reads rows / parts of the mazes."""
    learning_rate: float = 1e-3
    """Learning rate of Adam."""
    clip: float = 0.5
    """Largest global norm of the gradient; a longer gradient is scaled down to it."""
    seeds: int = 3
    """How many seeds; each gives other parameters and other mazes."""
    out: Path = Path("results/recurrent_ppo")
    """Folder of the results."""


def check(config: Config) -> None:
    """SystemExit if an option has a value that the script cannot use."""
    counts = ("shortest", "hidden", "iterations", "every", "rows", "steps", "epochs", "parts", "seeds")
    check_counts(config, longest=config.shortest, **dict.fromkeys(counts, 1))
    check_positive(config, "learning_rate", "clip")
    if config.rows % config.parts:
        raise refusal(config, "parts", f"a divisor of the {config.rows} rows")
    if config.iterations % config.every:
        raise refusal(config, "iterations", f"a multiple of the {config.every} of a round")


def training(config: Config) -> Training:
    """How all agents are trained."""
    of_ppo = (config.rows, config.steps, config.epochs, config.parts, config.learning_rate, config.clip)
    return Training(*of_ppo, Lengths(config.shortest, config.longest))


def agents(config: Config) -> dict[str, Agent]:
    """All agents by name, ours first."""
    net = ppo_agents.network("gru", config.hidden)
    found = {
        OURS: ppo_agents.agent(net),
        WITHOUT: ppo_agents.agent(ppo_agents.network("dense", config.hidden)),
    }
    if has_flax():
        from experiments.support import ppo_in_flax

        found[FLAX] = ppo_in_flax.agent(net, config.hidden)
    return found


def has_flax() -> bool:
    """Whether flax is installed."""
    return importlib.util.find_spec("flax") is not None


def train(config: Config, run: Run, stop: StopRequest) -> Curves:
    """The lines of metrics.jsonl of every agent and seed."""
    how, all_agents = training(config), agents(config)
    program = functools.cache(lambda name: ppo.compiled(all_agents[name], how, config.every))
    curves: Curves = {name: [] for name in all_agents}
    for seed in range(config.seeds):
        states = {name: ppo.begin(agent, how, seed) for name, agent in all_agents.items()}
        turns = Turns({"seed": seed}, states, program, say, config.iterations, config.every, "iteration")
        for name, lines in train_in_turns(run, stop, turns).items():
            curves[name].append(lines)
    return curves


def say(reports: Report) -> dict[str, float]:
    """What the line of a round says."""
    return {"loss": float(reports.loss[-1]), "right": ppo.share_right(reports)}


def times(curves: Curves, name: str) -> np.ndarray:
    """Seconds of an agent in every round of every seed."""
    return np.array([m["took"] for lines in curves[name] for m in lines])


def judge(config: Config, curves: Curves) -> list[Row]:
    """Success of the last round, and the time beside flax."""
    rows = []
    for name, of_seeds in curves.items():
        right = ends(of_seeds, "right")
        if name == WITHOUT:
            known, met = "at most 60 %; no memory, half at most", right.max() <= 0.6
        else:
            known, met = "at least 95 %", right.min() >= 0.95
        ours = f"{100 * right.min():.1f} to {100 * right.max():.1f} %"
        if name != WITHOUT:
            ours += f", first after {first_reached(of_seeds)} iterations"
        rows.append(Row(f"episodes right in the last {config.every} iterations, {name}", known, ours, met))
    if FLAX in curves:
        ratios = times(curves, OURS) / times(curves, FLAX)
        low, ratio, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        each = 1e3 * np.median(times(curves, OURS)) / config.every
        ours = f"{ratio:.2f} ({low:.2f} to {high:.2f} the quartiles), {each:.0f} ms an iteration"
        rows.append(Row("time of the GRU, ours / in flax", "at most 1", ours, bool(ratio <= 1)))
    return rows


def first_reached(of_seeds: list[Curve]) -> str:
    """Iterations until a round is 95 % right, of the fastest seed to the slowest."""
    found = [next((m["step"] for m in lines if m["right"] >= 0.95), math.inf) for lines in of_seeds]
    return f"{min(found)}" if min(found) == max(found) else f"{min(found)} to {max(found)}"


def draw(config: Config, curves: Curves) -> Figure:
    """Success over iterations, and the time of an iteration."""
    figure = Figure(figsize=(6.4, 8.4), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(2, 1))
    plot(above, curves, "right", 100)
    above.axhline(50, color="0.3", lw=1, ls="--")
    above.text(config.iterations, 43, "no memory: at most 50 %", color="0.3", ha="right", va="top")
    above.set(xlim=(0, config.iterations * 1.02), ylim=(0, 104), xlabel="iterations")
    above.set_ylabel("episodes that end at the right arm, %")
    above.set_title(f"T-maze, corridors of {config.shortest} to {config.longest} steps: one line a seed")
    above.legend(loc="lower right", bbox_to_anchor=(1, 0.05))
    for i, name in enumerate(curves):
        each = 1e3 * times(curves, name) / config.every
        low, middle, high = np.quantile(each, [0.25, 0.5, 0.75])
        below.barh(name, middle, xerr=[[middle - low], [high - middle]], color=f"C{i}", alpha=0.8)
        below.text(high, i, f"  {middle:.0f} ms", va="center")
    below.invert_yaxis()
    below.set(xlabel="ms an iteration, acting and learning (median and quartiles)")
    below.set_xlim(0, 1.25 * below.get_xlim()[1])
    return figure


def main(config: Config) -> None:
    """Train, draw, judge."""
    check(config)
    run = Run(config.out, settings(config) | {"flax": has_flax()})
    with StopRequest() as stop:
        curves = train(config, run, stop)
    run.save_figure("recurrent_ppo.png", draw(config, curves))
    if FLAX not in curves:
        print("flax is not installed, so there is no agent in flax to compare with; pip install flax")
    seconds = sum(float(times(curves, name).sum()) for name in curves)
    conclude(run, "recurrent_ppo", config, judge(config, curves), config.seeds, seconds)


if __name__ == "__main__":
    run_script(main, Config, __doc__)

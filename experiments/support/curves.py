"""A network learnt from several seeds: trained one after the other, summed up, drawn in one colour."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.support.learning import Learner, learn
from experiments.support.runs import Run, StopRequest

Curve = list[dict[str, Any]]  # what `learn` returns, one line a score
Curves = dict[str, list[Curve]]  # by the name of the network, one for each seed


def learn_seeds(run: Run, stop: StopRequest, learners: list[Learner], seeds: int) -> Curves:
    """Every network from seeds 0, 1, .., in parameters and batches; see `learn`."""
    return {
        one.name: [
            learn(run, stop, one._replace(name=f"{one.name}, seed {seed}", seed=seed))
            for seed in range(seeds)
        ]
        for one in learners
    }


def ends(curves: list[Curve], score: str) -> np.ndarray:
    """The last value of a score, by seed; an array, since its min and max are NaN where one value is."""
    return np.array([lines[-1][score] for lines in curves])


def updates(curves: list[Curve]) -> str:
    """How many updates were made, from the least of all seeds to the most."""
    made = sorted({lines[-1]["step"] for lines in curves})
    return f"{made[0]:,} updates" if len(made) == 1 else f"{made[0]:,} to {made[-1]:,} updates"


def seconds(curves: Mapping[Any, list[Curve]]) -> float:
    """Of all training."""
    return sum(lines[-1]["seconds"] for of_seeds in curves.values() for lines in of_seeds)


def plot(axes: Any, curves: Curves, score: str, scale: float = 1.0) -> None:
    """A score over updates: a colour for each network, a line for each seed, a dot where it ends."""
    for i, (name, of_seeds) in enumerate(curves.items()):
        for seed, lines in enumerate(of_seeds):
            steps, values = [m["step"] for m in lines], [scale * m[score] for m in lines]
            label = name if seed == 0 else None
            axes.plot(steps, values, color=f"C{i}", lw=1.4, alpha=0.8, label=label)
            axes.plot(steps[-1], values[-1], "o", color=f"C{i}", ms=4)

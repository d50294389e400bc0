"""Learning curves of networks that were trained from several seeds: their last values, and their figure."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from experiments.support.learning import Curve, Curves


def ends(curves: list[Curve], score: str) -> np.ndarray:
    """The last value of a score, by seed; an array, since its min and max are NaN where one value is."""
    return np.array([lines[-1][score] for lines in curves])


def updates(curves: list[Curve]) -> str:
    """How many updates were made, from the least of all seeds to the most."""
    made = sorted({lines[-1]["step"] for lines in curves})
    return f"{made[0]:,} updates" if len(made) == 1 else f"{made[0]:,} to {made[-1]:,} updates"


def plot(axes: Axes, curves: Curves, score: str, scale: float = 1.0) -> None:
    """A score over updates: a colour for each network, a line for each seed, a dot where it ends."""
    for i, (name, of_seeds) in enumerate(curves.items()):
        for seed, lines in enumerate(of_seeds):
            steps, values = [m["step"] for m in lines], [scale * m[score] for m in lines]
            label = name if seed == 0 else None
            axes.plot(steps, values, color=f"C{i}", lw=1.4, alpha=0.8, label=label)
            axes.plot(steps[-1], values[-1], "o", color=f"C{i}", ms=4)

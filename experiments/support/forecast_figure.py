"""The figure of `forecast`: some rows with their intervals, the scores by horizon, and the training."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.support.early_stopping import lowest
from experiments.support.fertility import FIRST, LAST, VALIDATED, at, rates
from experiments.support.forecasts import WITHIN, Scores
from experiments.support.learning import Curve

SHOWN = "Niger", "Bangladesh", "Germany", "Korea, Rep."


def draw(curves: list[Curve], paths: dict[str, np.ndarray], scores: dict[str, Scores]) -> Figure:
    """Rows, scores and training, one above the other, so that a phone shows them, too."""
    figure = Figure(figsize=(6.4, 14), layout="constrained")
    grid = figure.add_gridspec(3, 1, height_ratios=(5, 5, 3))
    rows, by_horizon = (figure.add_subfigure(grid[i]) for i in (0, 1))
    for axes, name in zip(np.ravel(rows.subplots(2, 2, sharex=True)), SHOWN, strict=True):
        _draw_row(axes, name, next(iter(paths.values())))
    rows.suptitle(
        "births per woman: what happened (black), and from 2001 on\nthe network's median and interval of 90 %"
    )
    above, below = by_horizon.subplots(2, 1, sharex=True)
    _draw_scores(above, below, {name: of for name, of in scores.items() if name in paths})
    _draw_training(figure.add_subplot(grid[2]), curves)
    return figure


def _draw_row(axes: Axes, name: str, paths: np.ndarray) -> None:
    row = rates().names.index(name)
    births = rates().births[:, row]
    years = np.arange(FIRST, LAST + 1)
    axes.plot(years, births, color="0.2", lw=1.6)
    ahead = years[at(VALIDATED) :]
    low, middle, high = (
        np.concatenate([births[[at(VALIDATED)]], np.quantile(paths[..., row], level, axis=1)])
        for level in (WITHIN[0], 0.5, WITHIN[1])
    )
    axes.fill_between(ahead, low, high, color="C0", alpha=0.25, lw=0)
    axes.plot(ahead, middle, color="C0", lw=1.8)
    axes.axvline(VALIDATED, color="0.6", lw=1, ls=":")
    axes.set_title(name, fontsize=11)


def _draw_scores(above: Axes, below: Axes, scores: dict[str, Scores]) -> None:
    for i, (name, of) in enumerate(scores.items()):
        horizons = np.arange(1, len(of.crps) + 1)
        width = 2.4 if i == 0 else 1.4
        above.plot(horizons, of.crps, "o-", ms=4, color=f"C{i}", lw=width, label=name)
        below.plot(horizons, 100 * of.covered, "o-", ms=4, color=f"C{i}", lw=width)
    above.set(yscale="log", ylabel="CRPS (low is good)")
    above.set_yticks((0.02, 0.05, 0.1, 0.2), ("0.02", "0.05", "0.1", "0.2"))
    above.minorticks_off()
    above.legend(loc="lower right")
    above.set_title("all rows, by years ahead")
    below.axhline(90, color="0.3", lw=1, ls="--")
    below.set(ylabel="within the interval of 90 %, %", xlabel="years ahead", ylim=(68, 101))


def _draw_training(axes: Axes, curves: list[Curve]) -> None:
    for i, lines in enumerate(curves):
        steps, best = [m["step"] for m in lines], lowest(lines, "valid")
        labels = [None, None, None] if i else ["years learnt, with noise", "years of validation", "kept"]
        axes.plot(steps, [m["loss"] for m in lines], color="0.6", lw=1, label=labels[0])
        axes.plot(steps, [m["valid"] for m in lines], color="C0", lw=1.4, label=labels[1])
        at_best = next(m["valid"] for m in lines if m["step"] == best)
        axes.plot(best, at_best, "o", color="C3", ms=6, label=labels[2], zorder=3)
    axes.set(xlabel="updates", ylabel="loss")
    axes.set_title("one line a seed; each stops when its validation loss no longer falls")
    axes.legend(loc="upper right")

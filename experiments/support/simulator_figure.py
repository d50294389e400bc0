"""The figure of `simulator`: the pattern, what the gradients cost, and what a truncated one does not see."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import LogLocator, NullFormatter

from experiments.support.learning import Curve
from experiments.support.reaction import GUESS, TRUE, Problem, rates, simulate
from experiments.support.scan_costs import Cost


class Seen(NamedTuple):
    """What a window sees: cosine to the exact gradient by the rates, and norms / norms of the exact one."""

    window: int
    cosine: float
    by_rates: float
    by_begin: float


def draw(a: Problem, costs: list[Cost], seen: list[Seen], curves: dict[str, Curve]) -> Figure:
    """Patterns, searches, costs and windows, one above the other, so that a phone shows them, too."""
    figure = Figure(figsize=(6.4, 17), layout="constrained")
    grid = figure.add_gridspec(4, 1)
    _draw_patterns(figure.add_subfigure(grid[0]), a, curves)
    _draw_searches(figure.add_subplot(grid[1]), curves)
    _draw_costs(figure.add_subplot(grid[2]), costs)
    _draw_windows(figure.add_subplot(grid[3]), seen, a.steps)
    return figure


def _draw_patterns(figure: FigureBase, a: Problem, curves: dict[str, Curve]) -> None:
    """v at first and in the end: as it is known, by the guess, and by the rates that each search found."""
    run = jax.jit(simulate, static_argnums=(0, 3))
    ends = {
        "by the guess": np.asarray(rates(GUESS)),
        **{n: np.array(c[-1]["rates"]) for n, c in curves.items()},
    }
    patterns = {"first v": a.begin[1], "last v, known": a.last[1]}
    for name, p in ends.items():
        patterns[name] = run(jax.lax.scan, p.astype(TRUE.dtype), a.begin, a.steps)[1]
    panels = np.ravel(figure.subplots(-(-len(patterns) // 3), 3))
    for axes in panels:
        axes.set_axis_off()
    for axes, (title, v) in zip(panels, patterns.items(), strict=False):
        axes.imshow(v, vmin=0, vmax=0.45, cmap="viridis")
        axes.set_title(title.replace("(", "\n("), fontsize=11)


def _draw_costs(axes: Axes, costs: list[Cost]) -> None:
    """One bar each for memory, with the time beside it."""
    places = np.arange(len(costs))[::-1]
    axes.barh(places, [cost.memory for cost in costs], height=0.35, align="edge", color="C0", alpha=0.75)
    for place, cost in zip(places, costs, strict=True):
        memory = f"1/{1 / cost.memory:.0f}" if cost.memory < 0.1 else f"{cost.memory:.2f}"
        text = f"{memory} of the memory, {cost.time:.2f} of the time"
        axes.annotate(text, (0.0011, place - 0.06), va="top", fontsize=11)
    axes.set(xscale="log", xlim=(1e-3, 1.5), xlabel="temporaries / those of jax.grad of the scan")
    axes.set_yticks(
        places, [cost.name.replace(" of the", "\nof the").replace("d j", "d\nj") for cost in costs]
    )
    axes.set_ylim(-0.55, len(costs) - 0.4)
    axes.set_title("what a gradient costs")


def _draw_windows(axes: Axes, seen: list[Seen], steps: int) -> None:
    windows = [one.window for one in seen]
    axes.axhline(1, color="0.4", lw=1, ls="--")
    axes.plot(windows, [one.cosine for one in seen], "o-", color="C0", label="by the rates: cosine")
    axes.plot(windows, [one.by_rates for one in seen], "s-", color="C1", label="by the rates: norm / exact")
    axes.plot(windows, [one.by_begin for one in seen], "v-", color="C3", label="by (u₀, v₀): norm / exact")
    axes.plot(steps, 1, "k*", ms=12, label="all steps", ls="none")
    axes.set(xscale="log", xlabel="window h, steps", ylim=(-0.08, 1.75))
    axes.xaxis.set_major_locator(LogLocator(base=4))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title("the truncated gradient at the guess")
    axes.legend(loc="upper left", fontsize=9.5)


def _draw_searches(axes: Axes, curves: dict[str, Curve]) -> None:
    for colour, (name, lines) in zip(("C2", "C1", "C3", "C4", "C5"), curves.items(), strict=False):
        errors = [np.max(np.abs(np.array(m["rates"]) / TRUE - 1)) for m in lines]
        made = np.cumsum([m["gradients"] for m in lines])
        start = np.max(np.abs(np.asarray(rates(GUESS)) / TRUE - 1))
        axes.plot([0, *made], [start, *errors], ".-", color=colour, label=name)
    axes.axhline(1e-3, color="0.6", lw=1, ls=":")
    axes.set(yscale="log", xlabel="gradients", ylabel="largest relative error of a rate")
    axes.set_title("the search for the rates (dotted: 0.1 %)")
    axes.legend(loc="center right", bbox_to_anchor=(1, 0.6))

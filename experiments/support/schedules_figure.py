"""The figure of `learned_optimizer`: where meta training goes, and what it learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.support.learning import Curve
from experiments.support.noisy_quadratic import PLANE, Exact, exact, expected, rates

if TYPE_CHECKING:
    from experiments.learned_optimizer import Mean

COLOURS = "C2", "C4", "C3", "C1", "C8", "C0", "C6", "C9"


def draw(
    steps: int, known: Exact, found: Mapping[str, Mean], curves: dict[str, Curve], point: np.ndarray
) -> Figure:
    """Paths over the expected meta loss, mean gradients, schedules, and losses by step."""
    figure = Figure(figsize=(6.4, 17), layout="constrained")
    plane, bias, schedules, losses = figure.subplots(4)
    colours = dict(zip(curves, COLOURS, strict=False))
    _draw_plane(plane, known, curves, colours)
    _draw_means(bias, steps, found, point)
    ts = np.arange(steps)
    ends = {name: jnp.asarray(lines[-1]["schedule"]) for name, lines in curves.items()}
    for name, schedule in {**ends, "optimum": known.best}.items():
        style = {
            "color": colours.get(name, "k"),
            "lw": 4 if name == "full()" else 1.8,
            "ls": "-" if name in colours else ":",
        }
        schedules.plot(1 + ts, rates(schedule, ts), label=name, **style)
        losses.plot(1 + ts, expected(steps, schedule), label=name, **style)
    schedules.set(yscale="log", xscale="log", xlabel="step", title="learning rates that were learnt")
    losses.set(yscale="log", xscale="log", xlabel="step", title="expected loss of the inner training")
    losses.set_yticks((0.15, 0.2, 0.3, 0.5, 1), ("0.15", "0.2", "0.3", "0.5", "1"))
    losses.minorticks_off()
    schedules.legend(fontsize=10.5)
    return figure


def window_of(name: str) -> int | None:
    """h of truncated(h); None for other methods."""
    return int(name.removeprefix("truncated(").removesuffix(")")) if name.startswith("truncated(") else None


def _draw_plane(axes: Axes, known: Exact, curves: dict[str, Curve], colours: dict[str, str]) -> None:
    across, up = (np.linspace(*ends, len(known.losses)) for ends in PLANE)
    shown = np.log10(np.nan_to_num(known.losses, nan=np.inf))
    low = np.log10(known.losses[np.isfinite(known.losses)].min())
    axes.contourf(
        across, up, np.minimum(shown, low + 0.6), levels=np.linspace(low, low + 0.6, 25), cmap="Greys"
    )
    for name, lines in curves.items():
        path = np.array([m["schedule"] for m in lines]).T
        axes.plot(*path, color=colours[name], lw=4 if name == "full()" else 1.6, label=name)
        axes.plot(*path[:, -1], "o", color=colours[name], ms=7, mec="k")
    axes.plot(*known.best, "*", color="w", mec="k", ms=16, label="optimum", ls="none")
    axes.set(xlim=PLANE[0], ylim=PLANE[1], xlabel="log α₀", ylabel="β, the decay")
    axes.set_title("meta training (darker: higher expected meta loss)")
    axes.legend(loc="upper left", fontsize=10.5)


def _draw_means(axes: Axes, steps: int, found: Mapping[str, Mean], point: np.ndarray) -> None:
    """The mean gradients by log α_0 and by β with two standard errors; crosses: closed form."""
    at = jnp.asarray(point)
    for i, (name, one) in enumerate(found.items()):
        closed = np.asarray(exact(steps, at, window_of(name)).slope)
        for side, colour in ((0, "C0"), (1, "C1")):
            axes.errorbar(
                one.mean[side], -i, xerr=2 * one.error[side], fmt="o", color=colour, ms=6, capsize=4
            )
            axes.plot(closed[side], -i, "x", color="k", ms=9)
    axes.plot([], [], "o", color="C0", label="by log α₀")
    axes.plot([], [], "o", color="C1", label="by β")
    axes.plot([], [], "x", color="k", ls="none", label="closed form")
    axes.axvline(0, color="0.6", lw=1, ls=":")
    axes.set_yticks(-np.arange(len(found)), list(found))
    axes.set(xlabel="mean meta gradient ± 2 standard errors")
    axes.set_title(f"at α₀ = {np.exp(point[0]):g}, β = {point[1]:g}")
    axes.legend(fontsize=10.5, loc="center left", bbox_to_anchor=(0, 0.33))

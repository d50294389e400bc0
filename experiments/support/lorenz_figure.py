"""The picture of experiments.lorenz: four attractors, and what came out by the interval of forcing."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.support.attractors import Attractor, apart

WIDTH, HEIGHT = 5.2, 9.6  # inches; 10 points are 10 pixels where a phone shows the picture 390 pixels wide
COLOURS = "C1", "C0", "C3"  # forced always, every ln 2 / λ steps, never
OTHERS = "0.5"
LOWEST = -0.5  # a largest exponent below it is shown there


def draw(
    tau: int,
    dt: float,
    published: float,
    attractors: tuple[Attractor, Attractor],
    networks: dict[str, list[Attractor]],
) -> Figure:
    """The attractors of the system and of three networks; distances and largest exponents of all.

    Args:
      tau: ln 2 / λ, in steps.
      dt: time units a step.
      published: the largest exponent, a time unit.
      attractors: of the system, from two sets of states.
      networks: by τ, from always to never, one for each seed.
    """
    system, again = attractors
    colours = dict.fromkeys(networks, OTHERS)
    first, *_, last = networks
    colours |= dict(zip((first, str(tau), last), COLOURS, strict=True))
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.1, 1)).ravel()

    portraits = above.subplots(2, 2, sharex=True, sharey=True).ravel()
    _path(portraits[0], system, "0.2", "the system")
    named = {first: "forced at every step", str(tau): f"every {tau} = ln 2 / λ", last: "never forced"}
    for axes, (name, title) in zip(portraits[1:], named.items(), strict=True):
        _path(axes, networks[name][0], colours[name], title)
    for n in (0, 1):
        portraits[2 + n].set_xlabel("x")
        portraits[2 * n].set_ylabel("z")

    distances, exponents = below.subplots(2, 1, sharex=True)
    for marker, (what, floor) in zip("os", apart(system, again).items(), strict=True):
        far = [[apart(one, system)[what] for one in of_seeds] for of_seeds in networks.values()]
        _by_tau(distances, far, list(colours.values()), marker)
        distances.plot([], [], marker, color=OTHERS, ls="-", lw=1, label=what)
        distances.axhline(floor, color="0.2", lw=1, ls=":")
    distances.plot([], [], color="0.2", lw=1, ls=":", label="the system from other states")
    distances.set(ylim=(0, 1.05), ylabel="distance to the system")
    distances.legend(loc="upper left", frameon=False)

    largest = [[max(one.exponents[0] / dt, LOWEST) for one in of_seeds] for of_seeds in networks.values()]
    _by_tau(exponents, largest, list(colours.values()), "o")
    exponents.axhline(published, color="0.2", lw=1, ls="--")
    exponents.text(len(networks) - 1, published - 0.04, f"{published:g} (Sprott)", va="top", ha="right")
    exponents.set(ylim=(LOWEST - 0.05, 1.1), ylabel="largest exponent")
    exponents.set_yticks((LOWEST, 0, 0.5, 1), (f"{LOWEST:g}\nor less".replace("-", "−"), "0", "0.5", "1"))
    exponents.set_xticks(range(len(networks)), list(networks))
    exponents.set_xlabel("steps from one forcing to the next")
    return figure


def _path(axes: Axes, shown: Attractor, colour: str, title: str) -> None:
    """The path of a free run, x and z."""
    x, _, z = shown.path.T
    axes.plot(x, z, color=colour, lw=0.6)
    axes.plot(x[-1], z[-1], "o", color=colour, ms=3)  # all that there is of a fixed point
    axes.set(xlim=(-3, 3), ylim=(-3, 3.5))
    axes.set_title(title, fontsize=10, color=colour)


def _by_tau(axes: Axes, values: list[list[float]], colours: list[str], marker: str) -> None:
    """A point a seed, and a line through the medians."""
    axes.plot([np.median(of_seeds) for of_seeds in values], color=OTHERS, lw=1, zorder=1)
    for n, (of_seeds, colour) in enumerate(zip(values, colours, strict=True)):
        axes.plot([n] * len(of_seeds), of_seeds, marker, color=colour, ms=5, alpha=0.8)

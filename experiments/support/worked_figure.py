"""The picture of the worked example: every number that a reader needs to recompute each bar by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

WIDTH, HEIGHT = 4.8, 8.35  # inches; 9 points are 10 pixels where a phone shows the picture 390 pixels wide
GREY, RED, BLUE, OCHRE = "0.35", "#b03030", "#3c6c9c", "#c08a35"


class Line(NamedTuple):
    """One line of a sum.

    Attributes:
      name: such as "i = 3".
      formula: the product of factors by their names, "" of the sum itself.
      numbers: the same in numbers.
      value: what it comes to.
    """

    name: str
    formula: str
    numbers: str
    value: float


def number(value: float) -> str:
    """A number as picture and text show it: four digits after the point, and no more than it has."""
    text = f"{value:g}" if value == round(value, 1) else f"{value:.4f}"
    return text.replace("-", "−")


def draw(values: Mapping[str, float], sums: Mapping[str, Sequence[Line]]) -> Figure:
    """The three steps with their numbers, the factors, and the terms that they multiply to.

    Args:
      values: W_x, W_s, W_y, S_0, X_1, ..., d_3, the states, Y_3, E_3 and all factors, by name.
      sums: for W_s, W_x and W_y the terms, and after several of them their sum.
    """
    figure = Figure(figsize=(WIDTH, HEIGHT))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0))  # inches from the upper left corner
    axes.set_axis_off()
    title = (
        "Backpropagation through three steps of one unit:\nall numbers behind the gradient of the error $E_3$"
    )
    axes.text(WIDTH / 2, 0.28, title, ha="center", va="center", fontsize=10.5, weight="bold")
    shown = {name: number(value) for name, value in values.items()}
    _given(axes, shown)
    _network(axes, shown)
    _factors(axes, shown)
    _sums(axes, sums)
    return figure


def _write(axes: Axes, x: float, y: float, text: str, color: str = "black", ha: str = "left") -> None:
    axes.text(x, y, text, color=color, ha=ha, va="center", fontsize=9)


def _given(axes: Axes, shown: Mapping[str, str]) -> None:
    """What is given, and how the states and the error come from it."""
    lines = (("W_x", "W_s", "W_y", "S_0", "d_3"), ("X_1", "X_2", "X_3"))
    _write(axes, 0.15, 0.72, "Given:")
    for i, names in enumerate(lines):
        _write(axes, 0.7, 0.72 + 0.2 * i, ",  ".join(f"${name} = {shown[name]}$" for name in names))
    _write(axes, 0.15, 1.2, "Forward:", GREY)
    formulas = (
        r"$S_t = \tanh(W_x X_t + W_s S_{t-1})$",
        r"$Y_3 = \mathrm{sigmoid}(W_y S_3) = 1/(1 + e^{-W_y S_3})$",
        r"$E_3 = (d_3 - Y_3)^2$",
    )
    for i, formula in enumerate(formulas):
        _write(axes, 0.85, 1.2 + 0.2 * i, formula, GREY)


def _network(axes: Axes, shown: Mapping[str, str]) -> None:
    """The unrolled network: grey arrows forward, red arrows back with their factors."""
    states = {f"S_{t}": (0.4 + 1.17 * t, 2.88) for t in range(4)}
    inputs = {f"X_{t}": (0.4 + 1.17 * t, 3.78) for t in (1, 2, 3)}
    places = states | inputs | {"Y_3": (3.91, 2.05), "E_3": (2.74, 2.05)}
    for name, (x, y) in places.items():
        box = {"boxstyle": "round,pad=0.3", "fc": "white", "ec": GREY}
        axes.text(x, y, f"${name}$\n{shown[name]}", ha="center", va="center", fontsize=9, bbox=box)
    for t in (1, 2, 3):
        _arrow(axes, places[f"S_{t - 1}"], places[f"S_{t}"], GREY, "$W_s$")
        _arrow(axes, places[f"X_{t}"], places[f"S_{t}"], GREY, "$W_x$")
    _arrow(axes, places["S_3"], places["Y_3"], GREY, "$W_y$")
    _arrow(axes, places["Y_3"], places["E_3"], GREY)
    for above, below in (("S_3", "S_2"), ("S_2", "S_1"), ("Y_3", "S_3"), ("E_3", "Y_3")):
        factor = f"d{above}/d{below}"
        _arrow(axes, places[above], places[below], RED, f"${factor}$\n{shown[factor]}")


def _arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str, text: str = ""
) -> None:
    """An arrow between two boxes, a little to its left, so that those of both directions are apart."""
    step = np.subtract(end, start)
    length = float(np.hypot(*step))
    along, left = step / length, np.array([step[1], -step[0]]) / length
    room = 0.33 if step[1] == 0 else 0.25  # half a box
    tail, head = (np.array(point) + 0.06 * left for point in (start + room * along, end - room * along))
    style = {"arrowstyle": "-|>", "color": color, "lw": 1.3, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (head[0], head[1]), (tail[0], tail[1]), arrowprops=style)
    if text:
        x, y = (tail + head) / 2 + left * (0.2 if "\n" in text and step[1] == 0 else 0.1)
        _write(axes, x, y, text, color, "center" if step[1] == 0 else "right" if left[0] < 0 else "left")


def _factors(axes: Axes, shown: Mapping[str, str]) -> None:
    """The formula of each factor, and the last factors, which the network does not show."""
    back = (
        r"$dE_3/dY_3 = -2\,(d_3 - Y_3)$",
        r"$dY_3/dS_3 = Y_3\,(1 - Y_3)\,W_y$",
        r"$dS_t/dS_{t-1} = (1 - S_t^2)\,W_s$",
    )
    _write(axes, 0.15, 4.25, "Back:", RED)
    for i, formula in enumerate(back):
        _write(axes, 0.7, 4.25 + 0.2 * i, formula, RED)
    _write(axes, 0.15, 4.9, "Last factor ($S_{t-1}$ held fixed):", RED)
    rows = (("W_s", "S_{t-1}"), ("W_x", "X_t"))
    for column, t in enumerate((3, 2, 1)):
        right = 3.22 + 0.68 * column
        _write(axes, right, 4.9, f"$t = {t}$", RED, "right")
        for i, (weight, _) in enumerate(rows):
            _write(axes, right, 5.1 + 0.2 * i, shown[f"dS_{t}/d{weight}"], RED, "right")
    for i, (weight, read) in enumerate(rows):
        _write(axes, 0.15, 5.1 + 0.2 * i, rf"$dS_t/d{weight} = (1 - S_t^2)\,{read}$", RED)
    _write(axes, 0.15, 5.5, r"$dY_3/dW_y = Y_3\,(1 - Y_3)\,S_3$", RED)
    _write(axes, 3.22, 5.5, shown["dY_3/dW_y"], RED, "right")


def _sums(axes: Axes, sums: Mapping[str, Sequence[Line]]) -> None:
    """Each term as a product with its value, and a bar of that length."""
    values = [line.value for lines in sums.values() for line in lines]
    inch = 0.95 / (max(values) - min(values))
    zero, y = WIDTH - 0.1 - inch * max(values), 5.85
    top = y - 0.1
    product = r"= \mathrm{sum\ over\ } i \mathrm{\ of\ } dE_3/dY_3 \cdot dY_3/dS_3 \cdot\ldots\cdot dS_i/d"
    heads = {"W_s": product + "W_s", "W_x": product + "W_x", "W_y": r"= dE_3/dY_3 \cdot dY_3/dW_y"}
    for weight, color in (("W_s", BLUE), ("W_x", OCHRE), ("W_y", GREY)):
        _write(axes, 0.15, y, f"$dE_3/d{weight} {heads[weight]}$", color)
        for line in sums[weight]:
            y += 0.2
            _write(axes, 0.15, y, line.name, color)
            _write(axes, 0.55, y, f"{line.numbers} = {number(line.value)}")
            alpha = 0.6 if line.name.startswith("i") else 1  # a term is paler than a gradient
            bar = Rectangle((zero, y - 0.065), inch * line.value, 0.13, color=color, alpha=alpha)
            axes.add_patch(bar)
        y += 0.27
    axes.plot([zero, zero], [top, y - 0.15], color="0.3", lw=0.8)

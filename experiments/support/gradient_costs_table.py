"""The costs that `gradient_methods` measured, as Markdown and as a figure."""

from __future__ import annotations

import itertools
from typing import Any

import jax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator
from matplotlib.transforms import Bbox

from experiments.support.comparisons import markdown
from jax_bptt.gradients.schedule import advances

MIB, GIB = 2**20, 2**30


def titled(size: dict[str, Any]) -> str:
    """A measured size in words."""
    names = {"T": "steps", "B": "rows", "I": "inputs", "H": "hidden"}
    return ", ".join((size["cell"], *(f"{letter} = {size[name]}" for letter, name in names.items())))


def part(ratio: float) -> str:
    """0.25 as 1/4.0, 1.5 as 1.5."""
    return f"1/{1 / ratio:.1f}" if ratio < 0.995 else f"{ratio:.2f}"


def table(measured: list[dict[str, Any]], counts: list[dict[str, int]], million: list[dict[str, Any]]) -> str:
    """All measurements as Markdown."""
    blocks = [
        f"Value and gradient on {jax.devices()[0].device_kind}, float32.",
        *(_costs(list(of_size)) for _, of_size in itertools.groupby(measured, lambda m: m["size"])),
        "MiB, T·B·H (in floats) and of baseline: the temporaries. runs: how often a step is run forward,\n"
        "on average. distance: ‖difference to the baseline's gradient‖ / ‖gradient‖, for the array where it\n"
        "is largest.",
        _advances(counts),
        *([_million(million)] if million else []),
    ]
    return "\n\n".join(blocks) + "\n"


def _costs(of_size: list[dict[str, Any]]) -> str:
    size = of_size[0]["size"]
    unit = 4 * size["steps"] * size["rows"] * size["hidden"]
    head = ["method", "ms", "× baseline", "quartiles", "MiB", "T·B·H", "of baseline", "runs", "distance"]
    rows = [
        [
            m["method"],
            f"{m['milliseconds']:.{0 if m['milliseconds'] >= 100 else 2}f}",
            f"{m['time_ratio']:.2f}",
            "–".join(f"{q:.2f}" for q in m["quartiles"]),
            f"{m['temporaries'] / MIB:.2f}",
            f"{m['temporaries'] / unit:.2f}",
            part(m["temporaries_ratio"]),
            f"{m['forward_runs']:.2f}" if m["forward_runs"] else "",
            f"{m['distance']:.0e}",
        ]
        for m in of_size
    ]
    return f"**{titled(size)}**\n\n{markdown(head, rows)}"


def _advances(counts: list[dict[str, int]]) -> str:
    head = ["leaves n", "slots m", "t(n, m)", "in the schedule", "r n − C(m+r, r−1)", "t(n, m) / n"]
    rows = [
        [str(number) for number in count.values()] + [f"{count['advances'] / count['leaves']:.2f}"]
        for count in counts
    ]
    return f"**Advances, to reverse n leaves with m states**\n\n{markdown(head, rows)}"


def _million(million: list[dict[str, Any]]) -> str:
    head = ["method", "seconds", "peak GiB", "before the step"]
    rows = [
        [m["million"], f"{m['seconds']:.1f}", f"{m['peak'] / GIB:.2f}", f"{m['before'] / GIB:.2f}"]
        for m in million
    ]
    title = f"One training step of {million[0]['steps']} steps: LSTM, B = 1, I = 1, H = 64, Adam"
    return f"**{title}**\n\n{markdown(head, rows)}"


def draw(measured: list[dict[str, Any]], counts: list[dict[str, int]]) -> Figure:
    """Time against temporaries for each size, and what few states cost in advances."""
    sizes = [list(of_size) for _, of_size in itertools.groupby(measured, lambda m: m["size"])]
    widths = [1.0] * len(sizes) + [0.8]
    figure = Figure(figsize=(6 * sum(widths), 5), layout="constrained")
    axes = figure.subplots(1, len(widths), width_ratios=widths)
    for panel, of_size in zip(axes, sizes, strict=False):
        _draw_costs(panel, of_size)
    _draw_advances(axes[-1], counts)
    figure.draw_without_rendering()  # settles the layout, which the names are placed in
    figure.set_layout_engine("none")
    for panel, of_size in zip(axes, sizes, strict=False):
        _name_points(panel, of_size)
    return figure


def _draw_costs(panel: Axes, of_size: list[dict[str, Any]]) -> None:
    for m in of_size:
        x, (low, high) = m["time_ratio"], m["quartiles"]
        colour = {"full": "C0", "checkpointed": "C2", "truncated": "C1"}.get(m["method"].split("(")[0], "0.3")
        spread = [[max(0, x - low)], [max(0, high - x)]]
        panel.errorbar(x, m["temporaries_ratio"], xerr=spread, fmt="o", color=colour, ms=6)
    panel.axvline(1, color="0.7", lw=1, ls=":")
    panel.axhline(1, color="0.7", lw=1, ls=":")
    panel.set(
        xscale="log",
        yscale="log",
        xlabel="time / baseline (bars: quartiles)",
        ylabel="temporaries / baseline",
    )
    panel.margins(0.25, 0.15)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    panel.set_title(titled(of_size[0]["size"]), fontsize=11)


def _name_points(panel: Axes, of_size: list[dict[str, Any]]) -> None:
    """A name beside each point, at the first place that covers no point, bar or other name."""
    taken = []
    for m in of_size:
        ends = [(x, m["temporaries_ratio"]) for x in (m["time_ratio"], *m["quartiles"])]
        pixels = panel.transData.transform(ends)
        taken.append(Bbox((pixels.min(0), pixels.max(0))).padded(7))
    frame = panel.get_window_extent()
    ways = (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)
    for m in of_size:
        for far, (right, up) in itertools.product(range(9, 100, 8), ways):
            text = panel.annotate(
                m["method"],
                (m["time_ratio"], m["temporaries_ratio"]),
                (right * far, up * far),
                textcoords="offset points",
                ha=("center", "left", "right")[right],
                va=("center", "bottom", "top")[up],
                fontsize=8.5,
                arrowprops={"arrowstyle": "-", "color": "0.6", "lw": 0.7} if far > 9 else None,
            )
            text.get_window_extent()  # puts the name and its arrow in their places
            box = Text.get_window_extent(text)
            if not box.count_overlaps(taken) and frame.contains(*box.min) and frame.contains(*box.max):
                break
            text.remove()
        taken.append(box)


def _draw_advances(panel: Axes, counts: list[dict[str, int]]) -> None:
    for n in (10, 100, 1000, 10_000):
        slots = range(2, min(n, 100) + 1)
        panel.plot(slots, [advances(n, m) / n for m in slots], lw=1.6, label=f"n = {n} leaves")
    counted = [(c["slots"], c["counted"] / c["leaves"]) for c in counts]
    panel.plot(*zip(*counted, strict=True), "ko", ms=5, label="schedules, counted")
    panel.set(xscale="log", yscale="log", xlabel="states kept, m", ylabel="advances of a leaf, t(n, m) / n")
    panel.set_xticks((2, 5, 10, 20, 50, 100), ("2", "5", "10", "20", "50", "100"))
    panel.set_yticks((1, 2, 5, 10, 20, 50, 100), ("1", "2", "5", "10", "20", "50", "100"))
    panel.minorticks_off()
    panel.set_title("checkpointed: what few states cost", fontsize=11)
    panel.legend(frameon=False)

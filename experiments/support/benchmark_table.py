"""The measurements of `benchmark` as Markdown and as a figure, and what of its expectation they meet."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from experiments.support.comparisons import markdown

MIB = 2**20
JAX_PEERS = "scan", "hoisted", "flax", "equinox"
COLOURS = {
    "fastest": "C5",
    "scan": "0.15",
    "hoisted": "0.6",
    "flax": "C2",
    "equinox": "C1",
    "torch": "C3",
    "cudnn": "C4",
}
COLOURS |= {"scan in float32": "C0"}


# The expectation.


class Claim(NamedTuple):
    """One part of the expectation: whether it is met, and what was found."""

    met: bool
    text: str


def judge(lines: list[dict[str, Any]]) -> str:
    """The last line: which programs were refused, and which parts of the expectation are met or not met."""
    timed = [m for m in lines if m["work"] == "value_and_grad"]
    lanes = list(dict.fromkeys(_all(timed, "lane")))
    claims = [c for lane in lanes for c in claims_of(lane, [m for m in timed if m["lane"] == lane])]
    refused = [
        f"{name} in {m['lane']} at {_where(m)}: gradient off by {d:.0e}"
        for m in lines
        for name, d in m["refused"].items()
    ]
    parts = {
        "refused": refused,
        "met": [claim.text for claim in claims if claim.met],
        "EXPECTATION NOT MET": [claim.text for claim in claims if not claim.met],
    }
    said = [f"{title}: {', '.join(texts)}" for title, texts in parts.items() if texts]
    if not claims:
        said.append("nothing of the expectation was measured")
    elif all(claim.met for claim in claims):
        said.append("as expected")
    return "; ".join(said)


def claims_of(lane: str, lines: list[dict[str, Any]]) -> list[Claim]:
    """The parts of the expectation for the value and gradient in one lane."""
    if lane == "bf16":
        wide = [m for m in lines if _hidden(m) >= 256]
        claims = [nowhere_below(2.5, "scan in float32", wide), nowhere_below(1, "torch", lines, spread=True)]
    else:
        claims = [nowhere_below(1, name, lines, spread=True) for name in JAX_PEERS]
        claims += [on_average(1.5, "scan", lines), on_average(1.2, "torch", lines)]
        claims += [nowhere_below(0.9, "torch", lines)]
        claims += fastest_claims(lines)
    return [Claim(c.met, f"{lane} {c.text}") for c in (*claims, less_memory(lines)) if c is not None]


def fastest_claims(lines: list[dict[str, Any]]) -> list[Claim | None]:
    """What is expected of the method that jb.fastest finds."""
    found = [m for m in lines if "fastest" in m["contenders"]]
    small = [m for m in found if m["cell"] == "lstm" and _hidden(m) <= 128]
    others = [m for m in found if m not in small]
    against = [*((name, found) for name in JAX_PEERS), ("torch", others)]
    claims = [nowhere_below(1, name, of, True, "ratio_to_fastest") for name, of in against]
    return [c and Claim(c.met, f"fastest against {c.text}") for c in claims]


def nowhere_below(
    least: float, name: str, lines: list[dict[str, Any]], spread: bool = False, kind: str = "ratio"
) -> Claim | None:
    """Whether the ratio to a contender is at least this at every cell and size, up to the spread or not."""
    found = [m for m in lines if name in m["contenders"]]
    if not found:
        return None
    worst = min(found, key=lambda m: _ratio(m, name, kind))
    below = [m for m in found if is_below(_ratio(m, name, kind), least, m["spread"] if spread else 0.0)]
    many = f", {len(below)} of {len(found)} below" if below else ""
    worst_is = f"worst {_ratio(worst, name, kind):.2f} at {_where(worst)}{many}"
    return Claim(not below, f"{name} >= {least:g} ({worst_is})")


def is_below(ratio: float, least: float, spread: float) -> bool:
    """Whether a ratio is less than this by more than the spread of ours against itself."""
    return ratio < least * (1 - spread)


def on_average(least: float, name: str, lines: list[dict[str, Any]]) -> Claim | None:
    """Whether the geometric mean of the ratios to a contender is at least this."""
    ratios = [_ratio(m, name) for m in lines if name in m["contenders"]]
    if not ratios:
        return None
    mean = statistics.geometric_mean(ratios)
    return Claim(mean >= least, f"{name} >= {least:g} on average ({mean:.2f} of {len(ratios)})")


def less_memory(lines: list[dict[str, Any]]) -> Claim | None:
    """Whether our temporaries are at most the scan's, where those are 32 MiB or more."""
    parts = [
        (m["contenders"]["ours"]["temporaries"] / m["contenders"]["scan"]["temporaries"], _where(m))
        for m in lines
        if "scan" in m["contenders"] and m["contenders"]["scan"]["temporaries"] >= 32 * MIB
    ]
    if not parts:
        return None
    most, where = max(parts)
    above = sum(part > 1 for part, _ in parts)
    many = f", {above} of {len(parts)} above" if above else ""
    return Claim(not above, f"temporaries <= scan's (most {most:.2f} at {where}{many})")


def _ratio(m: dict[str, Any], name: str, kind: str = "ratio") -> float:
    return float(m["contenders"][name][kind])


def _where(m: dict[str, Any]) -> str:
    return f"{m['cell']} {m['size']}"


def _hidden(m: dict[str, Any]) -> int:
    return int(m["size"].split("x")[-1])


def _all(lines: Iterable[dict[str, Any]], name: str) -> list[Any]:
    return [m[name] for m in lines]


def _others(lines: list[dict[str, Any]]) -> list[str]:
    """Every contender but ours, and those refused."""
    return [name for name in COLOURS if any(name in m["contenders"] or name in m["refused"] for m in lines)]


# Markdown.


def table(lines: list[dict[str, Any]]) -> str:
    """For each lane and work: the ratios, then what compiling takes and what memory."""
    blocks = [
        block
        for (lane, work), group in _groups(lines).items()
        for block in (f"**{work} in {lane}**", _ratios(group), *_ratios_to_fastest(group), _costs(group))
    ]
    blocks.append(
        "Size: T×B×I×H. The times of the others are multiples of ours, full() (above 1: ours is faster),\n"
        "with quartiles; in the second table of ours with what jb.fastest found. spread: half the distance\n"
        "between the quartiles of the ratio of ours to itself. of peak: FLOPs of the products per second,\n"
        "as a share of the fastest product of square matrices. distance: ‖difference of our gradient and\n"
        "the scan's in float32‖ / ‖gradient‖, for the array where it is largest."
    )
    return "\n\n".join(blocks) + "\n"


def _groups(lines: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    ordered = sorted(lines, key=lambda m: (m["lane"] == "bf16", m["lane"], m["work"] == "step", m["cell"]))
    grouped = itertools.groupby(ordered, key=lambda m: (m["lane"], m["work"]))
    return {key: list(group) for key, group in grouped}


def _ratios(group: list[dict[str, Any]]) -> str:
    names = _others(group)
    rows = []
    for m in group:
        ours = m["contenders"]["ours"]
        of_peak = m["flops"] / ours["milliseconds"] * 1e3 / m["peak"]
        ratios = [_with_quartiles(m, name) for name in names]
        milliseconds = f"{ours['milliseconds']:.{0 if ours['milliseconds'] >= 100 else 1}f}"
        rows.append([_where(m), milliseconds, f"{m['spread']:.2f}", f"{of_peak:.2f}", *ratios])
    return markdown(["cell, size", "ours, ms", "spread", "of peak", *names], rows)


def _ratios_to_fastest(group: list[dict[str, Any]]) -> list[str]:
    """The same as multiples of the time of the method that jb.fastest found, which is named."""
    found = [m for m in group if "fastest" in m["contenders"]]
    names = ["ours", *(name for name in _others(found) if name != "fastest")]
    rows = [
        [
            _where(m),
            m["fastest"],
            *(f"{_ratio(m, n, 'ratio_to_fastest'):.2f}" if n in m["contenders"] else "" for n in names),
        ]
        for m in found
    ]
    return [markdown(["cell, size", "fastest is", *names], rows)] if found else []


def _with_quartiles(m: dict[str, Any], name: str) -> str:
    if name not in m["contenders"]:
        return "refused" if name in m["refused"] else ""
    low, high = m["contenders"][name]["quartiles"]
    return f"{_ratio(m, name):.2f} ({low:.2f}–{high:.2f})"


def _costs(group: list[dict[str, Any]]) -> str:
    names = ["ours", *(name for name in _others(group) if name != "torch")]
    head = ["cell, size", *(f"{name}, {what}" for what in ("compile s", "MiB") for name in names), "distance"]
    rows = []
    for m in group:
        of = [m["contenders"].get(name) for name in names]
        compiling = [f"{c['compile_seconds']:.1f}" if c else "" for c in of]
        memory = [f"{c['temporaries'] / MIB:.1f}" if c else "" for c in of]
        rows.append([_where(m), *compiling, *memory, f"{m['contenders']['ours']['distance']:.0e}"])
    return markdown(head, rows)


# The figure.


def draw(lines: list[dict[str, Any]]) -> Figure:
    """Every contender's time as a multiple of ours: a panel for each cell, a row for each lane and work."""
    groups = _groups(lines)
    cells = list(dict.fromkeys(_all(lines, "cell")))
    sizes = list(dict.fromkeys(_all(lines, "size")))
    ends = [q for m in lines for c in m["contenders"].values() for q in c["quartiles"]]
    height = 1.2 + (0.9 + 0.5 * len(sizes)) * len(groups)
    figure = Figure(figsize=(1.5 + 3.2 * len(cells), height), layout="constrained")
    grid = figure.subplots(len(groups), len(cells), squeeze=False, sharex=True, sharey=True)
    for (key, group), panels in zip(groups.items(), grid, strict=True):
        for cell, panel in zip(cells, panels, strict=True):
            _draw_cell(panel, [m for m in group if m["cell"] == cell], sizes)
            panel.set_title(f"{cell}, {key[1].replace('_', ' ')}, {key[0]}", fontsize=10)
        panels[0].set_yticks(range(len(sizes)), sizes)
        panels[0].set_ylabel("T × B × I × H")
    grid[0, 0].invert_yaxis()
    grid[0, 0].set_xlim(min(0.9, *ends) / 1.1, max(ends) * 1.1)
    for panel in grid[-1]:
        panel.set_xlabel("time / ours (bars: quartiles)")
    named = {n: h for p in grid.flat for h, n in zip(*p.get_legend_handles_labels(), strict=True)}
    figure.legend(
        [named[n] for n in COLOURS if n in named],
        [n for n in COLOURS if n in named],
        loc="outside upper center",
        ncols=len(named),
        frameon=False,
    )
    return figure


def _draw_cell(panel: Axes, lines: list[dict[str, Any]], sizes: list[str]) -> None:
    names = _others(lines)
    for number, name in enumerate(names):
        met = [m for m in lines if name in m["contenders"]]
        if not met:
            continue
        shift = 0.6 * ((number + 0.5) / len(names) - 0.5)
        places = [sizes.index(m["size"]) + shift for m in met]
        ratios = [_ratio(m, name) for m in met]
        ends = zip(ratios, (m["contenders"][name]["quartiles"] for m in met), strict=True)
        bars = [(max(0, x - low), max(0, high - x)) for x, (low, high) in ends]
        colour = COLOURS[name]
        panel.errorbar(
            ratios, places, xerr=list(zip(*bars, strict=True)), fmt="o", ms=5, color=colour, label=name
        )
    for place in range(1, len(sizes)):
        panel.axhline(place - 0.5, color="0.9", lw=0.8)
    panel.axvline(1, color="0.3", lw=1)
    panel.axvspan(1e-3, 1, color="0.95", zorder=0)
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter("")

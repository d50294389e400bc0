"""What the experiments found, beside what is published or known in closed form, as one page.

python -m experiments.results          from results/*/results.json to experiments/RESULTS.md
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import tyro


@dataclasses.dataclass(frozen=True)
class Config:
    """Which results are collected, and where the page goes."""

    results: Path = Path("results")
    """Folder that holds the folders of results."""
    out: Path = Path("experiments/RESULTS.md")
    """File of the page."""


HEAD = """# Results

`python -m experiments.results` writes this page from the results of the scripts; each script prints its rows
at its end. "s" is the time of training in seconds, on the machine that the second table names.
"""


def page(found: dict[str, dict[str, Any]], figures: Path) -> str:
    """The table, an experiment after the other, and their figures.

    Args:
      found: results.json by folder, run.json under "about".
      figures: folder of the figures, beside the page.
    """
    rows = [
        [name if i == 0 else "", row["what"], row["known"], row["ours"]]
        + ([str(of["seeds"]), f"{of['seconds']:.0f}"] if i == 0 else ["", ""])
        + ["yes" if row["met"] else "NO"]
        for name, of in found.items()
        for i, row in enumerate(of["rows"])
    ]
    commands = [[name, f"`{of['command']}`", _machine(of["about"])] for name, of in found.items()]
    tables = (
        _table(["experiment", "what", "published or closed form", "ours", "seeds", "s", "met"], rows),
        _table(["experiment", "command", "on"], commands),
    )
    names = [name for name in found if (figures / f"{name}.png").exists()]
    shown = [f"![{name}]({figures.name}/{name}.png)" for name in names]
    return "\n\n".join([HEAD.strip(), *tables, *shown]) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _machine(about: dict[str, Any]) -> str:
    versions = about["versions"]
    return f"{about['device']}, {about['machine']}, JAX {versions['jax']}, Python {versions['python']}"


def main(config: Config) -> None:
    """Collect, write."""
    found = {}
    for path in sorted(config.results.glob("*/results.json")):
        about = json.loads((path.parent / "run.json").read_text())
        found[path.parent.name] = json.loads(path.read_text()) | {"about": about}
    if not found:
        raise SystemExit(f"no results in {config.results}; run an experiment first")
    config.out.write_text(page(found, config.out.parent / "figures"), encoding="utf-8")
    print(config.out)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

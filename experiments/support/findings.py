"""What an experiment found, beside what is published or expected: rows, and the last line that is printed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from experiments.support.options import given
from experiments.support.runs import Run

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Row(NamedTuple):
    """One measured number beside the known one.

    Attributes:
      what: what was measured, of which network.
      known: the published or closed-form number and where it is from, or the expectation.
      ours: what came out.
      met: whether it is as expected.
    """

    what: str
    known: str
    ours: str
    met: bool


def save(run: Run, name: str, config: DataclassInstance, rows: list[Row], seeds: int, seconds: float) -> None:
    """Write results.json, from which the page of results is made.

    Args:
      run: the result folder.
      name: of the experiment's module.
      config: its options, of which those that are not the default belong to the command.
      rows: what was found.
      seeds: how many.
      seconds: of all training, also before an interruption.
    """
    command = " ".join([f"python -m experiments.{name}", *given(config)])
    listed = [row._asdict() | {"met": bool(row.met)} for row in rows]  # of NumPy's bool JSON knows nothing
    found = {"command": command, "seeds": seeds, "seconds": seconds, "rows": listed}
    run.write("results.json", json.dumps(found, indent=2) + "\n")


def conclude(
    run: Run, name: str, config: DataclassInstance, rows: list[Row], seeds: int, seconds: float
) -> None:
    """`save`, print every row, and last whether all is as expected."""
    save(run, name, config, rows, seeds, seconds)
    for row in rows:
        print(f"{row.what}: {row.ours} (known: {row.known}){'' if row.met else '  NOT MET'}")
    met = sum(row.met for row in rows)
    verdict = "expectation met" if met == len(rows) else "EXPECTATION NOT MET"
    skipped = {m["curve"]: m["skipped"] for m in run.metrics(curve=str, skipped=int)}  # of each, the last
    if sum(skipped.values()):
        print(f"{sum(skipped.values())} updates were skipped, because their loss or gradient was not finite")
    print(f"{name}: {met} of {len(rows)} results are as expected, after {seconds:.0f} s; {verdict}")

"""On a GPU: ours in all its forms beside cuDNN, Flax and Equinox, microseconds a step, in eight minutes.

    python -m experiments.gpu                    on a machine with a GPU
    python -m experiments.gpu --rehearse         without one: every program in JAX is compiled for an H100

One layer with a linear readout and the squared error, the value and gradient by all parameters. A program is
timed only if its gradient agrees with that of full() in float32: ‖difference‖ / ‖gradient‖ of each array
below 1e-4 in float32, 1e-2 in TF32 and 0.1 in bfloat16 and float16. The sections run one after the other, the
most important first, each in a process of its own with a time limit: a kernel that hangs ends its own section
only. Every result is written at once; the same command again measures what is missing. It needs no more than
jax, optax, chex and NumPy, and measures Flax, Equinox and PyTorch where they are installed.

A call is waited for, so the time of the host counts. Microseconds a step are the median of 5 lots of calls,
each of at least 30 ms, divided by T. A difference below a tenth is no result: nothing is timed in turns here.

Expectation: full() is nowhere slower than autodiff() and the scan that one writes, and fused() nowhere slower
than full(); no gradient is refused.

The rehearsal needs the extra `gpu` (python -m pip install -e ".[gpu]") and shows what one step launches.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.support.comparisons import markdown
from experiments.support.files import append, read, replace
from experiments.support.gpu_cases import SECTIONS, Case
from experiments.support.gpu_section import rehearse_section, run_section

Line = dict[str, Any]
LINES = "lines.jsonl"
NAMES = [section.name for section in SECTIONS]
FASTER = (("full()", "autodiff()"), ("full()", "scan"), ("fused()", "full()"))  # expected of these pairs
NOISE = 0.1  # of two times, each taken once


def options(words: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line, by argparse, because tyro may not be there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=460, help="time for everything (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="SECTION", help=f"some of {NAMES}")
    parser.add_argument("--rehearse", action="store_true", help="compile for an H100, without a GPU")
    help_of_out = "result folder (results/gpu, or results/gpu_rehearsal)"
    parser.add_argument("--out", type=Path, help=help_of_out)
    parser.add_argument("--section", choices=NAMES, help=argparse.SUPPRESS)  # of the process of one section
    config = parser.parse_args(words)
    # what was rehearsed does not count as measured, so it has another folder
    config.out = config.out or Path("results") / ("gpu_rehearsal" if config.rehearse else "gpu")
    return config


def main(config: argparse.Namespace) -> None:
    """Run what is missing, section by section, and show all."""
    sections = {section.name: section for section in SECTIONS}
    if config.section:
        run = rehearse_section if config.rehearse else run_section
        run(sections[config.section], measured_cases(config.out))
        return
    if config.rehearse:
        os.environ["JAX_PLATFORMS"] = "cpu"  # of the sections; a search for GPUs would fail in them
    config.out.mkdir(parents=True, exist_ok=True)
    kept = [line for line in lines_in(config.out) if "error" not in line]  # what failed is tried again
    replace(config.out / LINES, "".join(json.dumps(line) + "\n" for line in kept))
    end = time.monotonic() + config.seconds
    for name in config.only or sections:
        limit = end - time.monotonic()
        limit = limit if config.rehearse else min(limit, sections[name].seconds)
        if limit < 5:
            break
        command = [sys.executable, "-m", "experiments.gpu", "--section", name, "--out", str(config.out)]
        for line in lines_of_process(name, command + ["--rehearse"] * config.rehearse, config.out, limit):
            print(line, flush=True)
            append(config.out / LINES, line + "\n")
    show(config.out)


def lines_of_process(name: str, command: list[str], out: Path, limit: float) -> Iterator[str]:
    """The lines of a section as they come. Its process is ended when its time is over."""
    began = time.monotonic()
    with (
        (out / f"{name}.log").open("w", encoding="utf-8") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        ) as one,
    ):
        timer = threading.Timer(limit, end_group, [one.pid])
        timer.start()
        try:
            assert one.stdout is not None
            yield from (line.rstrip() for line in one.stdout if line.startswith("{"))
            code = one.wait()
        finally:
            timer.cancel()
            end_group(one.pid)
    if code:
        after = f"its process ended with {code} after {time.monotonic() - began:.0f} s, see {log.name}"
        yield json.dumps({"section": name, "error": after})


def end_group(process: int) -> None:
    """End a process and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)


def lines_in(out: Path) -> list[Line]:
    """All lines that the folder holds; a line that a kill cut off is left out."""
    path, lines = out / LINES, []
    for text in read(path).splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            lines.append(json.loads(text))
    return lines


def measured_cases(out: Path) -> set[Case]:
    """The cases of which the folder has a result that is no error."""
    return {case_of(line) for line in lines_in(out) if "cell" in line and "error" not in line}


def case_of(line: Line) -> Case:
    """The case of a line."""
    of_case = {field: line[field] for field in Case._fields}
    return Case(**{**of_case, "size": tuple(line["size"])})


def show(out: Path) -> None:
    """The table and the verdict of all that the folder holds."""
    lines = lines_in(out)
    text = table([line for line in lines if "cell" in line and "error" not in line and "absent" not in line])
    replace(out / "table.md", text)
    print(text)
    for line in lines:
        if "cell" not in line:
            print(json.dumps(line))
    print(judge(lines))


def table(lines: list[Line]) -> str:
    """A row for each program, the fastest of its size first."""
    head = [
        "cell, TxBxIxH",
        "lane",
        "program",
        "µs a step",
        "operations a step",
        "MiB",
        "compile s",
        "distance",
        "same bits",
    ]
    rows = []
    for line in sorted(
        lines, key=lambda m: (m["cell"], m["size"], m["lane"], m.get("microseconds", math.inf))
    ):
        where = f"{line['cell']} {'x'.join(map(str, line['size']))}"
        rows.append([where, line["lane"], line["program"] + " with marks" * line["marks"], *figures(line)])
    return markdown(head, rows) + "\n"


def figures(line: Line) -> list[str]:
    """The numbers of a row; what was not measured is empty."""
    if "refused" in line:
        return ["refused", "", "", "", f"{line['distance']:.0e}", ""]
    shown = {
        "microseconds": "{:.2f}",
        "operations": "{}",
        "MiB": "{:.0f}",
        "compile": "{:.1f}",
        "distance": "{:.0e}",
        "repeats": "{}",
    }
    return ["" if line.get(key) is None else text.format(line[key]) for key, text in shown.items()]


def judge(lines: list[Line]) -> str:
    """The last line: what failed, what is refused, and where one program is slower than is expected."""
    times = {case_of(line): line["microseconds"] for line in lines if "microseconds" in line}
    said = [
        f"{case.program} is slower than {other} at {case.cell}, {'x'.join(map(str, case.size))}, {case.lane}"
        for case, took in times.items()
        for program, other in FASTER
        if case.program == program and took > (1 + NOISE) * times.get(case._replace(program=other), math.inf)
    ]
    said += [f"{line['program']} is refused in {line['lane']}" for line in lines if "refused" in line]
    if errors := sum("error" in line for line in lines):
        said.append(f"{errors} errors")
    found = sum("error" not in line and "absent" not in line for line in lines if "cell" in line)
    verdict = "; ".join([f"EXPECTATION NOT MET: {', '.join(said)}"] if said else ["as expected"])
    return f"{found} programs; {verdict}"


if __name__ == "__main__":
    main(options())

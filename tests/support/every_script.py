"""Ask every script for its help, then write and print what is not ASCII as they do; in a process of its own.

python tests/support/every_script.py FOLDER
"""

import contextlib
import dataclasses
import runpy
import sys
from pathlib import Path

from experiments.support.command_line import run_script
from experiments.support.findings import Row, conclude
from experiments.support.runs import Run

SCRIPTS = sorted(path.stem for path in Path("experiments").glob("[a-z]*.py"))


@dataclasses.dataclass(frozen=True)
class Config:
    out: Path = Path("results/one")


def write(config):
    run = Run(config.out, {})
    run.write("page.md", "λ 1921–1955\n")
    conclude(run, "one", config, [Row("λ 1921–1955", "½", "θ*", True)], 1, 1.0)


if __name__ == "__main__":
    out = sys.argv[1]
    for name in SCRIPTS:
        sys.argv = [name, "--help"]
        with contextlib.suppress(SystemExit):
            runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
    sys.argv = ["write", "--out", out]
    run_script(write, Config, None)

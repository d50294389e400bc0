"""Run char_lm once undisturbed, and once killed and resumed many times.

    python tests/support/kill_and_resume.py FOLDER KILLS OPTIONS OF CHAR_LM

Every run of experiments.char_lm is a process of its own, forked from this one after the imports, which are
what takes time, and before JAX does anything. It prints a line of JSON a kill.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import tyro

from experiments import char_lm

NONE, KILLED = 0, -signal.SIGKILL


def begin(options, out):
    """The process number of a run."""
    number = os.fork()
    if number == 0:
        with out.with_suffix(".log").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        code = 1
        try:
            char_lm.main(tyro.cli(char_lm.Config, args=[*options, "--out", str(out)]))
            code = NONE
        finally:
            sys.stdout.flush()
            os._exit(code)
    return number


def end(number):
    """The exit code of a run that has ended."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def newest(out):
    """Step of the newest whole checkpoint."""
    return max((int(p.name) for p in (out / "checkpoints").glob("*") if p.name.isdigit()), default=0)


def unnamed(out):
    """Checkpoints that are being written."""
    return [p.name.split(".")[0] for p in (out / "checkpoints").glob("*.new*")]


def kill_once(options, out, draw, when):
    """Begin, wait for the moment, kill; what happened."""
    number, before, left = begin(options, out), newest(out), unnamed(out)
    if when == "starting":
        time.sleep(draw.uniform(0, 1))
    else:
        while newest(out) == before:
            time.sleep(0.001)
        while when == "saving" and not unnamed(out):
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.02 if when == "saving" else 0.05))
    os.kill(number, signal.SIGKILL)
    code, written = end(number), [f"checkpoint {step}" for step in unnamed(out) if step not in left]
    if (out / "metrics.jsonl").exists() and not (out / "metrics.jsonl").read_text().endswith("\n"):
        written.append("metrics.jsonl")
    return {"code": code, "when": when, "step": newest(out), "being written": " ".join(written)}


def main(folder, kills, *options):
    """First the run that is left alone, then the other."""
    folder = Path(folder)
    whole, killed = folder / "whole", folder / "killed"
    assert end(begin(options, whole)) == NONE
    draw = random.Random(0)
    for kill in range(int(kills)):
        when = ("saving", "any time", "starting", "saving")[kill % 4]
        print(json.dumps({"kill": kill + 1, **kill_once(options, killed, draw, when)}), flush=True)
    assert end(begin(options, killed)) == NONE


if __name__ == "__main__":
    main(*sys.argv[1:])

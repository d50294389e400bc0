"""Several processes that share the rows of a batch train as one does, also after one was killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
import support.witnesses as w

import jax_bptt as jb
from experiments import char_lm
from experiments.support import language_model, processes
from experiments.support.checkpoints import Checkpoints

ROOT = Path(__file__).parents[1]
SMALL = {"hidden": 16, "rows": 8, "window": 16, "epochs": 1, "every": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    (folder / "text.txt").write_text("To be, or not to be, that is the question. " * 300)
    return folder


def _started(folder, out):
    """char_lm by two processes."""
    given = {**SMALL, "text": folder / "text.txt", "out": folder / out, "processes": 2}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    environment = {
        "PYTHONWARNINGS": "error",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, "-m", "experiments.char_lm", *words]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, text=True, **pipe)


def _ended(process):
    said, _ = process.communicate(timeout=120)
    return process.returncode, said


def _by_two(folder, out):
    code, said = _ended(_started(folder, out))
    assert code == 0, said
    return folder / out


def _by_one(folder, out):
    """In this process, as it runs outside of the tests."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        char_lm.main(char_lm.Config(text=folder / "text.txt", out=folder / out, **SMALL))
    return folder / out


def _steps(out):
    return sorted(int(p.name) for p in (out / "checkpoints").glob("*") if p.name.isdigit())


def _wait_for_a_checkpoint(process, out):
    while process.poll() is None and not _steps(out):
        time.sleep(0.01)


def _params(folder, out):
    """Of the newest checkpoint."""
    config = char_lm.Config(text=folder / "text.txt", **SMALL)
    with jax.enable_x64(False), Checkpoints(out / "checkpoints") as saved:
        net, optimizer = language_model.build(config, char_lm.load(config).vocabulary.size, 1)
        return saved.restore(jb.init_train_state(jax.random.key(1), net, optimizer, (SMALL["rows"],))).params


@pytest.fixture(scope="module")
def one(folder):
    return _by_one(folder, "one")


@pytest.fixture(scope="module")
def two(folder):
    return _by_two(folder, "two")


def _summary(out):
    return json.loads((out / "summary.json").read_text())


def _agree(folder, a, b):
    assert not w.wrong(_params(folder, a), _params(folder, b), 1e-5)
    assert abs(_summary(a)["valid"] - _summary(b)["valid"]) < 1e-4


def test_two_processes_train_as_one_does(folder, one, two):
    _agree(folder, one, two)
    assert (two / "char_lm.png").stat().st_size > 10_000
    lines = [(out / "metrics.jsonl").read_text().splitlines() for out in (one, two)]
    steps = [[json.loads(line)["step"] for line in of_one] for of_one in lines]
    assert steps[0] == steps[1]
    assert steps[0][-1] > 50


def _cut(folder, two, out):
    """A run of which the last checkpoint and all that came after it are lost."""
    shutil.copytree(two, folder / out)
    (folder / out / "summary.json").unlink()
    shutil.rmtree(folder / out / "checkpoints" / str(_steps(two)[-1]))


def test_begun_by_two_it_is_ended_by_one(folder, two):
    _cut(folder, two, "two, then one")
    _agree(folder, two, _by_one(folder, "two, then one"))


def test_one_of_two_killed_the_other_ends_and_the_run_goes_on_bit_for_bit(folder, two):
    process, out = _started(folder, "killed"), folder / "killed"
    _wait_for_a_checkpoint(process, out)
    _, second = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(second), signal.SIGKILL)
    code, said = _ended(process)
    assert code == 1
    fix = "run the same command again to go on from the last checkpoint"
    # On the last line, maybe behind the progress bar of the process that was killed.
    assert said.splitlines()[-1].endswith(f"process 1 of 2 ended with exit code -9; {fix}")
    assert "Traceback" not in said
    assert not (out / "summary.json").exists()

    chex.assert_trees_all_equal(_params(folder, _by_two(folder, "killed")), _params(folder, two))
    for name in ("metrics.jsonl", "summary.json"):
        assert (out / name).read_text() == (two / name).read_text()


def test_two_processes_stop_at_the_same_step(folder):
    process, out = _started(folder, "stopped"), folder / "stopped"
    _wait_for_a_checkpoint(process, out)
    process.send_signal(signal.SIGINT)
    code, said = _ended(process)
    assert code == 1
    assert said.splitlines()[-1] == "stopped and saved; run the same command again to go on"
    assert "Traceback" not in said
    assert _steps(out)[-1] % language_model.REPORT == 0


def test_processes_whose_parent_is_gone_stop(monkeypatch):
    monkeypatch.setenv(processes.PARENT, str(os.getppid()))
    assert not processes.any_process(False)
    assert processes.any_process(True)
    monkeypatch.setenv(processes.PARENT, "0")
    assert processes.any_process(False)


def test_rows_that_cannot_be_shared_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    processes.check_rows(8)
    with pytest.raises(SystemExit, match="--rows 9: give a multiple of 2, the number of devices"):
        processes.check_rows(9)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (SystemExit("no room"), processes.REFUSED, "no room\n"),
        (KeyError("a slip"), processes.REFUSED, "KeyError: 'a slip'\n"),
        (ValueError("UNKNOWN: Gloo all-reduce failed"), processes.LOST, f"; {processes.AGAIN}\n"),
        (jax.errors.JaxRuntimeError("UNAVAILABLE"), processes.LOST, f"; {processes.AGAIN}\n"),
    ],
)
def test_what_ends_a_process_early_ends_it_at_once(error, code, said, monkeypatch, capsys):
    class Ended(BaseException):
        pass

    def end(number):
        raise Ended(number)

    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "here")
    monkeypatch.setattr(processes, "_join", lambda: None)
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(Ended, match=str(code)), processes.joined():
        raise error
    assert capsys.readouterr().err.endswith(said)


def test_processes_that_differ_are_refused(monkeypatch):
    """In options or in checkpoints: they would train on, each with numbers of its own, or wait for ever."""
    processes.agree("their options", {"seed": 0})
    mine = []

    def gathered(own):
        mine.append(own)
        return np.stack([mine[0], own])

    monkeypatch.setattr(processes.multihost_utils, "process_allgather", gathered)
    processes.agree("their options", {"seed": 0})
    with pytest.raises(
        SystemExit, match="the processes differ in their options: start all of them with the same command"
    ):
        processes.agree("their options", {"seed": 1})

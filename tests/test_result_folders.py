"""A result folder has one run at a time, and what does not belong to it does no harm."""

import dataclasses
import fcntl
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

import jax_bptt as jb
from experiments import char_lm, results
from experiments.support import folder_lock, learning, runs


def _all_files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# One process at a time.


def test_a_folder_in_use_is_refused_and_not_touched(tmp_path):
    runs.Run(tmp_path, {}).record(step=1)
    (tmp_path / "checkpoints" / "60.new").mkdir(parents=True)
    other = os.open(tmp_path / folder_lock.NAME, os.O_RDWR)  # a file of its own, as in another process
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the run above has let go
    os.pwrite(other, b"process 7 since noon", 0)
    os.ftruncate(other, 20)
    before = _all_files(tmp_path)
    with pytest.raises(
        SystemExit, match="is in use by process 7 since noon; wait until it has ended, or choose"
    ):
        runs.Run(tmp_path, {})
    assert _all_files(tmp_path) == before
    os.close(other)  # as when it is killed: the file stays
    runs.Run(tmp_path, {})
    assert f"process {os.getpid()} on " in (tmp_path / folder_lock.NAME).read_text()


def test_a_process_may_open_its_folder_twice(tmp_path):
    first = runs.Run(tmp_path, {})
    runs.Run(tmp_path, {})
    with (tmp_path / folder_lock.NAME).open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    first.record(step=1)


def test_where_there_are_no_locks_the_run_goes_on(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError("Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    runs.Run(tmp_path, {})


# Which options a folder is held to.


def test_a_start_that_failed_does_not_claim_the_folder(tmp_path):
    runs.Run(tmp_path, {"hidden": 10**9})
    runs.Run(tmp_path, {"hidden": 10}).record(step=1)
    with pytest.raises(SystemExit, match=r"holds a run with hidden=10 \(now 9\)"):
        runs.Run(tmp_path, {"hidden": 9})

    (tmp_path / "checkpoints").mkdir()  # it ended before the first of them: it would begin again
    run = runs.Run(tmp_path, {"hidden": 9})
    assert not run.metrics()
    (tmp_path / "checkpoints" / "one" / "20").mkdir(parents=True)
    with pytest.raises(SystemExit, match=r"holds a run with hidden=9 \(now 8\)"):
        runs.Run(tmp_path, {"hidden": 8})
    (tmp_path / "run.json").unlink()
    with pytest.raises(SystemExit, match=r"holds a run, but .*run\.json is not its record; choose another"):
        runs.Run(tmp_path, {"hidden": 9})


def test_another_precision_is_refused(tmp_path):
    runs.Run(tmp_path, {}).record(step=1)
    with jax.enable_x64(False), pytest.raises(SystemExit, match=r"jax_enable_x64=True \(now False\)"):
        runs.Run(tmp_path, {})


@pytest.mark.parametrize("folder", ["", ".", "..", "/", "~"])
def test_a_folder_that_holds_other_things_is_refused(folder):
    with pytest.raises(SystemExit, match="is not a folder of its own; name one such as results/first"):
        runs.Run(Path(folder), {})


def test_a_name_that_the_locale_does_not_know_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsencode", lambda name: name.encode("latin-1"))
    with pytest.raises(SystemExit, match=r"--out .* is not UTF-8 in this locale; give a name of ASCII"):
        runs.Run(tmp_path / "é", {})
    assert not list(tmp_path.iterdir())


# What no run wrote.

FOREIGN = [{"loss": 1.0}, {"step": "abc"}, {"step": None, "loss": 2}, {"curve": 3}, {"curve": "GRU"}]


def test_foreign_lines_of_metrics_are_kept_and_not_read(tmp_path):
    run = runs.Run(tmp_path, {})
    for line in [{"step": 1, "loss": 1}, *FOREIGN, {"step": 2, "loss": "high"}, {"step": 3, "curve": "GRU"}]:
        run.record(**line)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(200_000 * "[" + "\n")  # nested too deep for the parser
    assert run.metrics(step=int, loss=float) == [{"step": 1, "loss": 1}]
    run.keep_metrics_up_to(1)
    assert run.metrics() == [{"step": 1, "loss": 1}, *FOREIGN]
    assert learning.seconds_of_training(run) == 0


@pytest.fixture
def config(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be, that is the question. " * 200)
    return char_lm.Config(text=text, hidden=4, rows=8, window=16, epochs=1, every=20, out=tmp_path / "out")


def test_char_lm_trains_with_the_method_that_is_the_fastest(config, monkeypatch, capsys):
    config = dataclasses.replace(config, gradient="fastest")
    found = SimpleNamespace(gradient=jb.full(recompute=True))
    monkeypatch.setattr(jb, "fastest", lambda net, loss, batch: found)
    monkeypatch.setattr(jb, "make_train_step", lambda *_, gradient: sys.exit(repr(gradient)))
    with pytest.raises(SystemExit, match=r"^full\(recompute=True\)$"):
        char_lm.main(config)
    assert repr(found) in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--gradient fastest: give full; each of several processes"):
        char_lm.main(dataclasses.replace(config, processes=2))


def test_char_lm_goes_on_beside_foreign_names_and_without_its_metrics(config, capsys):
    def finished():
        with jax.numpy_dtype_promotion("standard"):
            char_lm.main(config)
        return capsys.readouterr().out.splitlines()

    first = finished()
    (config.out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in FOREIGN))
    checkpoints = config.out / "checkpoints"
    for name in ("²", "٣", "007", "a folder"):
        (checkpoints / name).mkdir()
    (checkpoints / "999").write_text("a file")
    config.text.write_bytes(
        b"\xef\xbb\xbf" + config.text.read_bytes()
    )  # with a byte-order mark the same text
    again = finished()
    assert again[1].startswith("the checkpoint of step 999 is damaged and was renamed")
    assert again[2].startswith("metrics.jsonl lacks lines up to step")
    assert again[-1] == first[-1]


# The page of results.


def test_results_that_cannot_be_read_or_written_are_named(tmp_path):
    config = results.Config(tmp_path / "results", tmp_path / "elsewhere" / "page.md")
    with pytest.raises(SystemExit, match=r"no results in .*; run an experiment first, or name their folder"):
        results.main(config)
    folder = tmp_path / "results" / "one"
    folder.mkdir(parents=True)
    good = {"command": "c", "seeds": 1, "seconds": 1.0, "rows": []}
    about = {"device": "d", "machine": "m", "versions": {"jax": "1", "python": "3"}}
    for result, run in (("{", about), ("[]", about), ({**good, "rows": 3}, about), (good, {}), (good, "{")):
        for name, content in (("results.json", result), ("run.json", run)):
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(
            SystemExit, match=r"one has no results that can be read .*; run its experiment again"
        ):
            results.main(config)
    (folder / "run.json").write_text(json.dumps(about))
    with pytest.raises(SystemExit, match=r"cannot write to .*page\.md: No such file or directory"):
        results.main(config)

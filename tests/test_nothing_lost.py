"""A run survives kills, damaged files, full disks and batches that are not finite."""

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from support.optimizers import ADAM

import jax_bptt as jb
from experiments import char_lm
from experiments.support import findings, language_model, learning, runs
from experiments.support.checkpoints import Checkpoints

ROOT = Path(__file__).parents[1]
KILLS = 4  # two of them while a checkpoint is saved


def test_killed_again_and_again_it_ends_with_the_same_bits(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be, that is the question. " * 300)
    small = {"hidden": 16, "rows": 8, "window": 16, "epochs": 1, "every": 2, "text": text}
    options = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs"),  # the whole run compiles for all
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "OPENBLAS_NUM_THREADS": "1",  # no threads to be forked with
        "PYTHONPATH": str(ROOT),
    }
    script = ROOT / "tests" / "support" / "kill_and_resume.py"
    command = [sys.executable, script, tmp_path, str(KILLS), *options]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=300
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    assert [k["code"] for k in kills] == KILLS * [-9]
    assert any(k["being written"] for k in kills)
    for name in ("metrics.jsonl", "summary.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


# Damaged checkpoints.

NET = jb.network([jb.elman(3, 40)], jb.readout(40, 2))
FIRST = jb.init_train_state(jax.random.key(0), NET, ADAM, (2,))
SECOND, THIRD = (
    jb.init_train_state(jax.random.key(n), NET, ADAM, (2,))._replace(step=jnp.int32(n)) for n in (1, 2)
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        for state in (FIRST, SECOND, THIRD):
            checkpoints.save(state)
    return folder


def _flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


DAMAGE = {
    "deleted": lambda file: file.unlink(),
    "torn": lambda file: os.truncate(file, file.stat().st_size // 2),
    "emptied": lambda file: file.write_bytes(b""),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "noise": lambda file: file.write_bytes(np.random.default_rng(0).bytes(file.stat().st_size)),
    "a bit": _flip,
}


def _restored(folder):
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(FIRST)


def test_the_two_newest_are_kept(saved, capsys):
    assert sorted(p.name for p in saved.iterdir()) == ["1", "2"]
    chex.assert_trees_all_equal(_restored(saved), THIRD)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("damage", DAMAGE)
def test_whatever_file_is_damaged_the_checkpoint_before_is_restored(damage, saved, tmp_path, capsys):
    files = [p.relative_to(saved) for p in (saved / "2").rglob("*") if p.is_file()]
    assert len(files) > 10
    for i, file in enumerate(files):
        folder = tmp_path / str(i)
        shutil.copytree(saved, folder)
        DAMAGE[damage](folder / file)
        chex.assert_trees_all_equal(_restored(folder), SECOND)
        said = "the checkpoint of step 2 is damaged and was renamed; the run goes on from step 1\n"
        assert capsys.readouterr() == (said, "")


def test_orbax_alone_would_read_a_flipped_bit_as_a_number(saved, tmp_path):
    """What the sums are for."""
    shutil.copytree(saved, tmp_path / "checkpoints")
    _flip(max((tmp_path / "checkpoints" / "2").rglob("*"), key=lambda p: p.stat().st_size))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        found = checkpoints._orbax.restore(
            tmp_path / "checkpoints" / "2", args=ocp.args.StandardRestore(FIRST)
        )
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(found, THIRD)


def test_what_is_damaged_is_put_aside_and_saved_anew(saved, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    for _ in range(2):
        shutil.rmtree(folder / "2" / "d")
        with Checkpoints(folder) as checkpoints:
            assert int(checkpoints.restore(FIRST).step) == 1
            checkpoints.save(THIRD)
        chex.assert_trees_all_equal(_restored(folder), THIRD)
    assert sorted(p.name for p in folder.iterdir()) == ["1", "2", "2.damaged"]


def test_if_every_checkpoint_is_damaged_the_run_refuses_to_start_over(saved, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    for step in "12":
        (folder / step / "manifest.ocdbt").write_bytes(b"")
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit, match=r"every checkpoint in .*checkpoints is damaged \(steps \[1, 2\]\)"):
        _restored(folder)
    assert sorted(folder.rglob("*")) == before


def test_a_checkpoint_of_another_network_is_refused(saved):
    net = jb.network([jb.lstm(3, 40)], jb.readout(40, 2))
    other = jb.init_train_state(jax.random.key(0), net, ADAM, (2,))
    with (
        Checkpoints(saved) as checkpoints,
        pytest.raises(SystemExit, match=r"checkpoints/2 is not a checkpoint of this network .*; choose"),
    ):
        checkpoints.restore(other)


def test_a_run_begins_where_no_checkpoint_was_ever_finished(saved, tmp_path, capsys):
    shutil.copytree(saved / "1", tmp_path / "1.new")
    assert _restored(tmp_path) is FIRST
    assert not list(tmp_path.iterdir())
    assert not capsys.readouterr().out


# Damaged metrics and records.


@pytest.mark.parametrize(
    "line",
    [
        b'{"step": 2, "lo',
        b'{"step": 2, "scores": {"mse": 1.0}',  # ends as a whole one does
        b'{"step": 2, "lo{"step": 2, "loss": 1.0}',
        b"\0" * 30,
        b"\xff\xfe garbage}",
        b"17",
        b'["step"]',
    ],
)
def test_a_damaged_line_is_left_out_wherever_it_is(line, tmp_path):
    run = runs.Run(tmp_path, {})
    run.record(step=1)
    for place in ("within", "last"):
        with (tmp_path / "metrics.jsonl").open("ab") as file:
            file.write(line + (b"\n" if place == "within" else b""))
        run = runs.Run(tmp_path, {})
        run.record(step=3)
    assert [m["step"] for m in run.metrics()] == [1, 3, 3]
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 3


def test_a_damaged_record_is_no_record(tmp_path):
    runs.Run(tmp_path, {"seed": 1}).record(step=1)
    (tmp_path / "run.json").write_text('{"config": {"se')
    with pytest.raises(SystemExit, match=r"run\.json is not its record; choose another folder with --out"):
        runs.Run(tmp_path, {"seed": 1})


# Full disks, folders that cannot be written.


@contextlib.contextmanager
def _files_up_to(size):
    """What writes more to one file gets an OSError, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_ends_in_one_line_and_leaves_what_was_saved(tmp_path, capfd):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(SECOND)
        with (
            _files_up_to(50_000),
            pytest.raises(SystemExit, match=rf"cannot write to {tmp_path}: File too large; run the same"),
        ):
            checkpoints.save(THIRD)
    assert capfd.readouterr() == ("", "")
    chex.assert_trees_all_equal(_restored(tmp_path), SECOND)


def test_what_orbax_says_of_a_full_disk_is_one_line_too(tmp_path, monkeypatch):
    def save(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: Error writing\nNo space left on device [os_error_code='28']")

    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(checkpoints._orbax, "save", save)
        with pytest.raises(SystemExit, match=f"cannot write to {tmp_path}: .* Error writing No space left"):
            checkpoints.save(SECOND)


def test_a_full_disk_leaves_metrics_and_records(tmp_path):
    run = runs.Run(tmp_path, {})
    run.record(step=1)
    before = (tmp_path / "run.json").read_text()
    for write in (lambda: run.write("run.json", 100 * "x"), lambda: run.record(step=2, loss=100 * "x")):
        with _files_up_to(50), pytest.raises(SystemExit, match=f"cannot write to {tmp_path}: File too large"):
            write()
    assert (tmp_path / "run.json").read_text() == before
    assert [m["step"] for m in runs.Run(tmp_path, {}).metrics()] == [1]


@pytest.mark.parametrize("folder", ["file/out", "/proc/out"])
@pytest.mark.parametrize("what", [lambda folder: runs.Run(folder, {}), Checkpoints])
def test_a_folder_that_cannot_be_written(what, folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=f"cannot write to .*{folder}: (Not a directory|No such file)"):
        what(tmp_path / folder)


# Batches that are not finite.


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("To be, or not to be, that is the question. " * 300)
    config = char_lm.Config(text=path, hidden=4, rows=8, window=16, epochs=1, every=20, out=tmp_path / "out")
    return config, char_lm.load(config)


def _train(config, corpus, monkeypatch, bad):
    """The last state of char_lm where the steps `bad` of training weigh their errors with NaN."""
    chunk, width = language_model.chunk, config.window

    def spoiled(rows, start, length):
        batch = chunk(rows, start, length)
        hit = rows is corpus.train and start // width in bad
        return batch._replace(weight=jnp.full(batch.xs.shape, jnp.nan if hit else 1.0))

    with monkeypatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr(language_model, "chunk", spoiled)
        return language_model.train(config, runs.Run(config.out, {}), corpus).state


def _lines(config):
    return [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]


def test_char_lm_goes_on_after_bad_batches_and_stops_where_all_are(corpus, monkeypatch):
    with pytest.raises(
        SystemExit, match=r"step 60: .* each of 20 chunks is not finite; lower --learning-rate"
    ):
        _train(*corpus, monkeypatch, {3, 19, *range(40, 90)})
    config = corpus[0]
    assert [m["skipped"] for m in _lines(config) if "skipped" in m] == [2, 2]
    assert ["loss" in m for m in _lines(config) if "skipped" in m] == [False, True]  # of step 20 it is NaN
    assert max(int(p.name) for p in (config.out / "checkpoints").iterdir()) == 40

    after = _train(*corpus, monkeypatch, {3, 19, 45})  # goes on from step 40, the count too
    assert int(after.skipped) == 3
    shutil.rmtree(config.out)
    chex.assert_trees_all_equal(after, _train(*corpus, monkeypatch, {3, 19, 45}))


def test_char_lm_goes_on_from_the_checkpoint_before_a_damaged_one(corpus, monkeypatch, capsys):
    whole = _train(*corpus, monkeypatch, {})
    newest = corpus[0].out / "checkpoints" / str(int(whole.step))
    for file in newest.rglob("manifest.ocdbt"):
        file.write_bytes(b"")
    chex.assert_trees_all_equal(whole, _train(*corpus, monkeypatch, {}))
    assert f"the checkpoint of step {newest.name} is damaged" in capsys.readouterr().out


def _learner(bad):
    """Predict 0 from noise; a share `bad` of the batches is NaN."""
    net = jb.network([jb.elman(1, 3)], jb.readout(3, 1))

    def draw(key):
        xs = jax.random.normal(key, (4, 2, 1))
        return jb.Batch(jnp.where(jax.random.uniform(key) < bad, jnp.nan, xs), jnp.zeros((4, 2, 1)))

    def score(params):
        return {"size": jnp.square(params.readout.w_y).sum()}

    return learning.Learner("one", net, jb.squared_error, ADAM, draw, score, steps=40, every=10)


def test_learning_goes_on_after_bad_batches_and_stops_where_all_are(tmp_path, capsys):
    run = runs.Run(tmp_path, {})
    with jax.numpy_dtype_promotion("standard"), runs.StopRequest() as stop:
        lines = learning.learn(run, stop, _learner(0.3))
        assert 0 < lines[0]["skipped"] <= lines[-1]["skipped"] < 40
        assert np.isfinite([[m["loss"], m["grad_norm"]] for m in lines]).all()
        findings.conclude(run, "one", char_lm.Config(out=tmp_path), [], 1, 1.0)
        assert (
            f"\n{lines[-1]['skipped']} updates were skipped, because their loss"
            in "\n" + capsys.readouterr().out
        )
        with pytest.raises(SystemExit, match=r"one, step 10: .* each of 10 updates is not finite"):
            learning.learn(runs.Run(tmp_path / "bad", {}), stop, _learner(1.0))
        (tmp_path / "metrics.jsonl").write_text("")
        with pytest.raises(
            SystemExit, match=r"metrics\.jsonl has no line of step 40; delete .*checkpoints/one to"
        ):
            learning.learn(run, stop, _learner(0.3))
    assert not list((tmp_path / "bad" / "checkpoints" / "one").iterdir())

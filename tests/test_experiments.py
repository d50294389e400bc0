"""The worked example and the character model are right, and a stopped run resumes."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro

from experiments import char_lm, worked_example
from experiments.support import corpora, language_model, runs, worked_figure

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("which", ["scalars", "matrices"])
def test_the_three_terms_sum_to_jax_grad(which):
    if which == "scalars":
        example = worked_example.SCALARS
        worked = worked_example.work_scalars(example)
    else:
        example = worked_example.matrices()
        worked = worked_example.work_matrices(example)
    sums = sum(worked.terms_w_s), sum(worked.terms_w_x), worked.dw_y
    for by in (worked_example.by_jax, worked_example.by_library):
        for found, wanted in zip(sums, by(example), strict=True):
            assert np.linalg.norm(found - wanted) < 1e-12 * np.linalg.norm(wanted)


def test_worked_example_says_what_it_shows(tmp_path, capsys):
    worked_example.main(worked_example.Config(out=tmp_path))
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.endswith("(expected below 1e-12: met)")
    assert (tmp_path / "worked_example.png").stat().st_size > 10_000
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 6


def _by_hand(n):
    """The example from what is given, each step rounded as a reader would write it down."""
    n = dict(n)
    for t in (1, 2, 3):
        n[f"S_{t}"] = round(math.tanh(n["W_x"] * n[f"X_{t}"] + n["W_s"] * n[f"S_{t - 1}"]), 4)
    y = n["Y_3"] = round(1 / (1 + math.exp(-n["W_y"] * n["S_3"])), 4)
    n["E_3"] = round((n["d_3"] - y) ** 2, 4)
    first = n["dE_3/dY_3"] = round(-2 * (n["d_3"] - y), 4)
    second = n["dY_3/dS_3"] = round(y * (1 - y) * n["W_y"], 4)
    n["dY_3/dW_y"] = round(y * (1 - y) * n["S_3"], 4)
    n["dE_3/dW_y"] = round(first * n["dY_3/dW_y"], 4)
    for weight, read in (("W_s", "S_{}"), ("W_x", "X_{}")):
        back, terms = first * second, []
        for t in (3, 2, 1):
            slope = 1 - n[f"S_{t}"] ** 2
            last = n[f"dS_{t}/d{weight}"] = round(slope * n[read.format(t - (weight == "W_s"))], 4)
            terms.append(round(back * last, 4))
            n[f"dE_3/d{weight}, i = {t}"] = terms[-1]
            if t > 1:
                n[f"dS_{t}/dS_{t - 1}"] = round(slope * n["W_s"], 4)
                back *= n[f"dS_{t}/dS_{t - 1}"]
        n[f"dE_3/d{weight}, sum"] = round(sum(terms), 4)
    return n


def test_a_reader_recomputes_every_number_of_the_picture(capsys):
    example = worked_example.SCALARS
    worked = worked_example.work_scalars(example)
    worked_example.show_by_hand(example, worked)
    lines = [line for line in capsys.readouterr().out.splitlines() if " = " in line]
    names = [line.split(": ")[0] if ": " in line else line.split(" = ")[0] for line in lines]
    said = [line.split(" = ")[-1] for line in lines]
    printed = {name: float(text.replace("−", "-")) for name, text in zip(names, said, strict=True)}
    given = {name: printed[name] for name in ("W_x", "W_s", "W_y", "S_0", "X_1", "X_2", "X_3", "d_3")}
    assert _by_hand(given) == printed

    values = {name: float(value) for name, value in worked_example.numbers(example, worked).items()}
    figure = worked_figure.draw(values, worked_example.terms_by_hand(example, worked))
    shown = "\n".join(text.get_text() for text in figure.axes[0].texts)
    assert [text for text in said if text not in shown] == []


def test_a_missing_term_would_be_seen(capsys):
    """Negative control of the comparison that worked_example prints."""
    worked = worked_example.work_scalars(worked_example.SCALARS)
    spoiled = worked._replace(terms_w_s=[0 * worked.terms_w_s[0], *worked.terms_w_s[1:]])
    assert worked_example.show("spoiled", worked_example.SCALARS, spoiled) > 0.1


def test_the_network_and_the_kgrams_score_the_same_characters():
    corpus = char_lm.load(char_lm.Config())
    valid, train = corpus.valid, corpus.train
    assert (valid[1:, 0] == valid[:-1, -1]).all()
    assert (train[1:, 0] == train[:-1, -1]).all()
    text = np.append(valid[:, :-1].reshape(-1), valid[-1, -1])
    assert len(text) - 1 == valid[:, 1:].size
    assert (text[1:] == valid[:, 1:].reshape(-1)).all()


SMALL = ["--hidden", "24", "--rows", "8", "--window", "16", "--epochs", "3", "--every", "20"]
SMALL += ["--cell", "lstm", "--layers", "2", "--dropout", "0.2"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    from pydoc_data.topics import topics

    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(topics[t] for t in sorted(topics))[:20_000], encoding="utf-8")
    return path


def _started(text, out):
    """char_lm in a process of its own."""
    words = [*SMALL, "--text", str(text), "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.char_lm", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _ended(process):
    said, _ = process.communicate()
    return process.returncode, said


def _in_this_process(text, out, *more):
    """The same without a new process: for what is refused, or is finished already."""
    words = [*SMALL, "--text", str(text), "--out", str(out), *more]
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        char_lm.main(tyro.cli(char_lm.Config, args=words))


@pytest.fixture(scope="module")
def uninterrupted(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    return out, *_ended(_started(text, out))


def test_char_lm_ends_with_what_it_showed(uninterrupted):
    out, code, said = uninterrupted
    assert code == 0, said
    assert "k-grams k=0" in said.splitlines()[-1]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["valid"] < summary["kgrams"][0]
    assert (out / "char_lm.png").stat().st_size > 10_000
    about = json.loads((out / "run.json").read_text())
    assert {"config", "versions", "device"} <= about.keys()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len([m for m in lines if "loss" in m]) == lines[-1]["step"] // 20


def test_a_run_that_is_stopped_ends_with_the_same_parameters_bit_for_bit(text, uninterrupted, tmp_path):
    """Layers and dropout, which is drawn by the number of the step, so a run cut short draws the same."""
    process, cut = _started(text, tmp_path), tmp_path
    while process.poll() is None and len(list((cut / "checkpoints").glob("[0-9]*"))) < 2:
        time.sleep(0.02)
    with pytest.raises(SystemExit, match=rf"is in use by process {process.pid} on .* since "):
        _in_this_process(text, cut)  # the same command at the same time
    process.send_signal(signal.SIGTERM)
    code, said = _ended(process)
    assert code == 1
    assert "Traceback" not in said
    assert said.splitlines()[-1] == "stopped and saved; run the same command again to go on"
    assert not (cut / "summary.json").exists()
    code, said = _ended(_started(text, cut))
    assert code == 0, said
    for name in ("summary.json", "metrics.jsonl"):
        assert (cut / name).read_text() == (uninterrupted[0] / name).read_text()


def test_a_finished_run_is_not_run_again(text, uninterrupted, capsys):
    out, _, said = uninterrupted
    before = (out / "metrics.jsonl").read_text()
    _in_this_process(text, out)
    assert capsys.readouterr().out.splitlines()[-1] == said.splitlines()[-1]
    assert (out / "metrics.jsonl").read_text() == before


def test_another_configuration_is_refused(text, uninterrupted):
    with pytest.raises(
        SystemExit, match=r"holds a run with seed=0 \(now 1\); choose another folder with --out"
    ):
        _in_this_process(text, uninterrupted[0], "--seed", "1")


def test_a_changed_text_is_refused(text, uninterrupted):
    path = uninterrupted[0] / "run.json"
    about = json.loads(path.read_text())
    about["config"]["text_sha256"] = "another"
    other = uninterrupted[0].with_name("changed")
    other.mkdir()
    (other / "run.json").write_text(json.dumps(about))
    (other / "metrics.jsonl").write_text('{"step": 20}')
    with pytest.raises(SystemExit, match="holds a run with text_sha256=another"):
        _in_this_process(text, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "99999999999999999999999"], "--seed 99999999999999999999999: give a number from 0"),
        (["--rows", "0"], "--rows 0: give a number of at least 1"),
        (["--every", "-20"], "--every -20: give a number of at least 1"),
        (["--layers", "0"], "--layers 0: give a number of at least 1"),
        (["--dropout", "1"], "--dropout 1.0: give a share from 0 to below 1"),
        (["--learning-rate", "nan"], "--learning-rate nan: give a positive number"),
        (["--text", "missing.txt"], "cannot read --text missing.txt as UTF-8"),
        (["--learning-rate", "1e38"], "is not finite; lower --learning-rate"),
    ],
)
def test_bad_options_are_refused(options, message, text, tmp_path):
    with pytest.raises(SystemExit, match=re.escape(message)):
        _in_this_process(text, tmp_path / "out", *options)
    assert not list((tmp_path / "out").glob("checkpoints/[0-9]*"))  # nothing that is not a number is saved
    if "finite" not in message:
        assert not (tmp_path / "out").exists()  # a slip does not claim the folder


def test_a_chunk_asks_for_the_next_character():
    corpus = char_lm.load(char_lm.Config())
    batch = corpora.chunk(corpus.train, 64, 16)
    assert (batch.xs == corpus.train[:, 64:80].T).all()
    assert (batch.targets[:-1] == batch.xs[1:]).all()
    assert (batch.targets[-1] == corpus.train[:, 80]).all()


def test_an_epoch_begins_without_memory(text, tmp_path, monkeypatch):
    """The carry that a step begins with is zero exactly at the first chunk of an epoch."""
    config = char_lm.Config(text=text, hidden=8, rows=8, window=500, epochs=2, every=10, out=tmp_path)
    make, begun = language_model.jb.make_train_step, []

    def recording(*args, **options):
        step = make(*args, **options)

        def run(state, batch):
            begun.append(bool(np.any(state.carry[0].h)))
            return step(state, batch)

        return run

    monkeypatch.setattr(language_model.jb, "make_train_step", recording)
    corpus = char_lm.load(config)
    chunks = (corpus.train.shape[1] - 1) // config.window
    with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counts with floats
        language_model.train(config, runs.Run(tmp_path, {}), corpus)
    assert chunks > 1
    assert begun == [i % chunks != 0 for i in range(2 * chunks)]


def test_a_text_that_is_too_short_is_refused(tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("too short")
    with pytest.raises(SystemExit, match="too few for 8 rows of 16"):
        _in_this_process(short, tmp_path / "out")


def test_a_torn_metrics_line_is_left_out(tmp_path):
    run = runs.Run(tmp_path, {})
    run.record(step=1, loss=2.0)
    run.record(step=2, loss=1.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    assert [m["step"] for m in run.metrics()] == [1, 2]
    run.keep_metrics_up_to(1)
    assert [m["step"] for m in run.metrics()] == [1]


def test_validation_covers_ragged_lengths():
    """The last, shorter part of the validation rows counts as much as it is long."""
    corpus = char_lm.load(char_lm.Config())
    net, _ = language_model.build(char_lm.Config(hidden=8), corpus.vocabulary.size, 1)
    params = net.init(jax.random.key(0))
    whole = language_model.validate(net, params, corpus, char_lm.Config(window=10_000))
    parts = language_model.validate(net, params, corpus, char_lm.Config(window=13))
    assert abs(whole - parts) < 1e-10

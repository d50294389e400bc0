"""The memory tasks draw right data, judge rightly, resume, and refuse bad options."""

import json
import math

import jax
import numpy as np
import pytest

from experiments import adding, copy_memory, temporal_order

TASKS = [adding, copy_memory, temporal_order]
ROWS = 200
KEY = jax.random.key(3)


def _drawn(batch):
    return np.asarray(batch.xs), np.asarray(batch.targets)


@pytest.mark.parametrize("steps", [20, 21])
def test_adding_marks_one_value_of_each_half(steps):
    xs, targets = _drawn(adding.sequences(KEY, ROWS, steps))
    assert xs.shape == (steps, ROWS, 2)
    values, marks = xs[..., 0], xs[..., 1]
    assert (marks[: steps // 2].sum(0) == 1).all()
    assert (marks[steps // 2 :].sum(0) == 1).all()
    assert set(np.unique(marks)) == {0, 1}
    assert {int(t) for t, _ in np.argwhere(marks)} == set(range(steps))  # every step is marked once
    for b in range(ROWS):
        assert targets[b].tolist() == [pytest.approx(values[marks[:, b] == 1, b].sum(), abs=1e-12)]


def test_the_error_of_predicting_one():
    _, targets = _drawn(adding.sequences(KEY, 20_000, 4))
    assert abs(np.mean((targets - 1) ** 2) - adding.BASELINE) < 4 * 0.2 / math.sqrt(20_000)


def test_copying_repeats_after_the_go_mark():
    steps = 7
    xs, targets = _drawn(copy_memory.sequences(KEY, ROWS, steps))
    assert xs.shape == (steps + 20, ROWS, 10)
    assert (xs.sum(-1) == 1).all()
    read = xs.argmax(-1)
    assert set(np.unique(read[:10])) == set(range(8))
    assert (read[10:-11] == copy_memory.BLANK).all()
    assert (read[-11] == copy_memory.GO).all()  # T steps after the last symbol
    assert (read[-10:] == copy_memory.BLANK).all()
    assert (targets[:-10] == copy_memory.BLANK).all()
    assert (targets[-10:] == read[:10]).all()


def test_the_nats_of_no_memory():
    """Blank for certain while it is due, then all symbols alike."""
    steps = 7
    _, targets = _drawn(copy_memory.sequences(KEY, ROWS, steps))
    p = np.zeros((steps + 20, ROWS, 9))
    p[:-10, :, copy_memory.BLANK] = 1
    p[-10:, :, :8] = 1 / 8
    nats = -np.log(np.take_along_axis(p, targets[..., None], -1)).mean()
    assert abs(nats / copy_memory.baseline(steps) - 1) < 1e-12


def test_temporal_order_is_that_of_two_letters():
    xs, targets = _drawn(temporal_order.sequences(KEY, ROWS, 50))
    assert xs.shape == (50, ROWS, 6)
    assert (xs.sum(-1) == 1).all()
    letters = xs.argmax(-1)
    places = [np.flatnonzero(letters[:, b] < 2) for b in range(ROWS)]
    assert {len(two) for two in places} == {2}
    first, second = np.transpose(places)
    assert set(first) == set(range(5, 10))
    assert set(second) == set(range(25, 30))
    rows = np.arange(ROWS)
    assert (targets == 2 * letters[first, rows] + letters[second, rows]).all()
    assert set(targets) == {0, 1, 2, 3}


def _curve(**scores):
    return [{"step": 100, "seconds": 1.0, **scores}]


def _adding(gru=0.002, elman=0.16, long=0.01):
    config = adding.Config()
    named = {"GRU, T = 100": gru, "Elman, T = 100": elman, "GRU, T = 400": long}
    return adding.judge(
        config, {n: [_curve(mse=0.001 if "GRU" in n else 0.17), _curve(mse=z)] for n, z in named.items()}
    )


def _copying(gru=0.08, elman=0.173):
    curves = {"GRU": gru, "Elman": elman}
    return copy_memory.judge(
        copy_memory.Config(), {n: [_curve(nats=z, recalled=0.5)] for n, z in curves.items()}
    )


def _order(clipped=0.005, free=0.75, nats=1.4):
    both = {"clipped": [_curve(error=0.001, nats=0.1), _curve(error=clipped, nats=0.1)]}
    both["not clipped"] = [_curve(error=0.74, nats=1.4), _curve(error=free, nats=nats)]
    return temporal_order.judge(temporal_order.Config(), both)


@pytest.mark.parametrize(
    ("judge", "spoiled", "row"),
    [
        (_adding, {"gru": 0.006}, 0),
        (_adding, {"gru": math.nan}, 0),
        (_adding, {"elman": 0.13}, 1),  # it learns
        (_adding, {"long": 0.03}, 2),
        (_copying, {"gru": 0.09}, 0),
        (_copying, {"elman": 0.16}, 1),  # it learns
        (_order, {"clipped": 0.02}, 0),
        (_order, {"free": 0.5}, 1),  # it learns
    ],
)
def test_a_figure_that_is_not_as_expected_is_seen(judge, spoiled, row):
    assert all(r.met for r in judge())
    assert [r.met for r in judge(**spoiled)] == [i != row for i in range(len(judge()))]


def test_seeds_that_are_not_finite_are_counted():
    assert "1 not finite" in _order(nats=math.nan)[1].ours


SMALL = {"updates": 4, "every": 2, "seeds": 1, "hidden": 4, "rows": 3, "test_rows": 5}
TINY = {
    adding: {**SMALL, "short": 4, "long": 5},
    copy_memory: {**SMALL, "steps": 3},
    temporal_order: {**SMALL, "steps": 10},
}


@pytest.mark.parametrize("task", TASKS)
def test_a_tiny_run_ends_and_does_nothing_twice(task, tmp_path, capsys, monkeypatch):
    name, learners = task.__name__.split(".")[-1], task.learners
    if task is adding:  # of its five the one that compiles fastest
        monkeypatch.setattr(task, "learners", lambda config: learners(config)[2:3])
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        task.main(task.Config(out=tmp_path, **TINY[task]))
        lines = (tmp_path / "metrics.jsonl").read_text()
        printed = capsys.readouterr().out
        task.main(task.Config(out=tmp_path, **TINY[task]))
    assert capsys.readouterr().out == printed
    assert f"{name}: " in printed.splitlines()[-1]
    assert (tmp_path / "metrics.jsonl").read_text() == lines
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert not all(r["met"] for r in rows)  # four updates teach nothing


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        (adding, {"short": 3}, "--short 3: give a number of at least 4"),
        (adding, {"long": 100}, "--long 100: give another number than --short"),
        (copy_memory, {"steps": 0}, "--steps 0: give a number of at least 1"),
        (copy_memory, {"clip": math.nan}, "--clip nan: give a positive number"),
        (temporal_order, {"steps": 9}, "--steps 9: give a number of at least 10"),
        (temporal_order, {"learning_rate": math.inf}, "--learning-rate inf: give a positive number"),
        (temporal_order, {"test_rows": 0}, "--test-rows 0: give a number of at least 1"),
    ],
)
def test_bad_options_are_refused(task, change, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        task.main(task.Config(out=tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()  # a slip does not claim the folder

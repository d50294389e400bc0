"""A model learns the same with our RNN in it; the scripts that show it end, resume and judge rightly."""

import importlib.util
import json
import math
import shutil

import jax
import pytest

from experiments import adopted, under_your_model
from experiments.support import comparisons
from experiments.support.runs import StopRequest

TINY = {"iterations": 2, "updates": 2, "every": 1, "hidden": 3, "units": 3}


@pytest.fixture(autouse=True)
def _as_a_script():
    """Without the strictness of the tests, which other libraries do not keep to."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize(
    ("script", "change", "message"),
    [
        (under_your_model, {"every": 7}, "--iterations 200: give a multiple of the 7 of a round"),
        (under_your_model, {"units": 0}, "--units 0: give a number of at least 1"),
        (under_your_model, {}, r'flax is not installed, .* pip install -e ".\[peers\]"'),
        (adopted, {"sizes": ("64x16x32",)}, "--sizes 64x16x32: give T, B, I and H as in 64x16x32x64"),
        (adopted, {"rounds": 1}, "--rounds 1: give a number of at least 2"),
        (adopted, {"frameworks": ("haiku",)}, r'none of these is installed: haiku; pip install -e ".\[peers'),
    ],
)
def test_bad_options_and_missing_packages_are_refused(script, change, message, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=message):
        script.main(script.Config(out=tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()


def _found(float64=1e-15, first=1e-6, later=1e-6, right=1.0, took=0.9, temporaries=9):
    """Of three rounds; the losses of theirs are 1, moved by 1e-6."""

    def curve(distances, took=1.0, right=1.0):
        return [{"losses": [1 + d, 1 + d], "right": right, "took": took} for d in distances]

    theirs, moved = curve([0, 0, 0]), curve([1e-6] * 3)
    curves = {"theirs": theirs, "ours": curve([first, later, later], took, right)}
    return under_your_model.Found(
        {**curves, under_your_model.MOVED: moved}, float64, {"theirs": 10, "ours": temporaries}
    )


@pytest.mark.parametrize(
    ("spoiled", "row"),
    [
        ({"float64": 1e-9}, 0),
        ({"first": 1e-3}, 1),
        ({"later": 1e-4}, 2),
        ({"right": 0.9}, 3),
        ({"right": math.nan}, 3),
        ({"took": 1.1}, 4),
        ({"temporaries": 11}, 5),
    ],
)
def test_what_is_not_as_expected_is_seen(spoiled, row):
    config = under_your_model.Config()
    assert all(r.met for r in under_your_model.judge(config, "agent", _found()))
    rows = under_your_model.judge(config, "agent", _found(**spoiled))
    assert [r.met for r in rows] == [i != row for i in range(6)]
    assert len(under_your_model.judge(config, "text", _found())) == 5


def _line(distance=1e-7, ratio=1.05, ours=32, **changes):
    size = {"framework": "nnx", "cell": "gru", "size": "2x2x2x2", "milliseconds": [1.0, 2.0], **changes}
    costs = {"quartiles": [0.9, 1.0], "spread": 0.1, "temporaries": [ours * 2**20, 32 * 2**20]}
    return {**size, **costs, "distance": distance, "ratio": ratio, "seconds": 1.0}


@pytest.mark.parametrize(
    ("spoiled", "row"),
    [({"distance": 1e-3}, 0), ({"distance": math.nan}, 0), ({"ratio": 1.2}, 1), ({"ours": 33}, 2)],
)
def test_a_layer_that_costs_more_is_seen(spoiled, row):
    assert all(r.met for r in adopted.judge([_line(), _line()]))
    assert [r.met for r in adopted.judge([_line(**spoiled), _line()])] == [i != row for i in range(3)]
    assert "| gru 2x2x2x2, nnx |" in adopted.table([_line()])


# With flax and the others.


def test_a_run_ends_and_after_a_kill_it_does_the_rest(tmp_path, capsys):
    pytest.importorskip("flax")
    config = under_your_model.Config(**TINY, out=tmp_path)
    under_your_model.main(config)
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith("under_your_model: ")
    assert [line for line in said if "float64" in line and "NOT MET" in line] == []
    assert (tmp_path / "under_your_model.png").stat().st_size > 10_000
    whole = _lines(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "model_text" / "2")
    under_your_model.main(config)
    assert _lines(tmp_path) == whole


def _lines(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    keys = ("model", "curve", "step")
    return {tuple(m.get(key) for key in keys): {**m, "took": None} for m in lines}


@pytest.mark.parametrize("framework", adopted.PACKAGES)
def test_a_layer_has_the_same_gradient(framework, monkeypatch):
    pytest.importorskip(adopted.PACKAGES[framework][0])
    monkeypatch.setattr(comparisons, "TURN", 1e-9)
    with jax.enable_x64(False):
        for cell in ("lstm", "gru")[framework == "scanned_rnn" :]:
            line = adopted.measure(framework, cell, "6x2x3x8", 2, StopRequest())
            assert line["distance"] < 1e-5

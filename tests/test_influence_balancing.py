"""The influence balancing experiment shows the effect, resumes, and refuses bad options."""

import json

import numpy as np
import pytest

from experiments import influence_balancing as balancing

SMALL = {"windows": (1, 40, 41, 110), "chunks": (50, 400), "steps": 12_000}


def _config(out, **changes):
    return balancing.Config(out=out, **{**SMALL, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("influence_balancing")
    balancing.main(_config(out))
    return out


def test_the_influences_in_closed_form():
    """(1 − A)⁻¹ is all twos on and above the diagonal."""
    influences = balancing.influences()
    assert abs(influences[-1] - 2 * balancing.SIGNS.sum()) < 1e-12
    assert abs(influences[-1] * balancing.OPTIMUM - 1) < 1e-12
    assert influences[:10].tolist() == list(range(1, 11))  # near units only: +1 a step


def test_it_ends_as_expected_and_does_nothing_twice(finished, capsys):
    before = (finished / "metrics.jsonl").read_text()
    balancing.main(_config(finished))
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("the sign is right from h = 41 on (sliding windows), from 110 on (chunks)")
    assert last.endswith("; as expected")
    assert (finished / "metrics.jsonl").read_text() == before
    assert (finished / "influence_balancing.png").stat().st_size > 10_000


def test_signs_and_ends(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    by_window = {m["window"]: m for m in lines if "window" in m}
    assert [by_window[h]["sliding"] > 0 for h in (1, 40, 41, 110)] == [False, False, True, True]
    assert [by_window[h]["chunked"] > 0 for h in (1, 40, 41, 110)] == [False, False, False, True]
    ends = {m["curve"]: balancing.distance(m["theta"])[-1] for m in lines if "curve" in m}
    assert ends["chunks of 50"] > 100
    assert all(end < 0.01 for name, end in ends.items() if name != "chunks of 50")
    assert np.isfinite(list(ends.values())).all()


def test_a_run_cut_short_does_the_rest(finished, tmp_path):
    """As a kill leaves it: the last line is torn, and one curve was not begun."""
    whole = (finished / "metrics.jsonl").read_text()
    *kept, torn, _ = whole.splitlines(keepends=True)
    (tmp_path / "run.json").write_text((finished / "run.json").read_text())
    (tmp_path / "metrics.jsonl").write_text("".join(kept) + torn[:9])
    balancing.main(_config(tmp_path))
    redone = [line for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    assert redone == whole.splitlines()


def test_a_stop_between_two_blocks_leaves(tmp_path):
    stop = balancing.StopRequest()
    stop.came = True
    with pytest.raises(SystemExit, match="run the same command again"):
        balancing.follow(_config(tmp_path), "RTRL", balancing.by_rtrl(_config(tmp_path)), stop)


def test_the_last_line_says_which_curves_overflowed(tmp_path, capsys):
    """A learning rate at which everything overflows: no NaN is kept, and the last line says so."""
    balancing.main(_config(tmp_path, learning_rate=10.0, windows=(1,), chunks=(50,), steps=800))
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert "RTRL diverged" in last
    assert last.endswith("EXPECTATION NOT MET")
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"windows": (401,)}, "--windows 401: give numbers from 1 to 400"),
        ({"chunks": (30,)}, "--chunks 30: give divisors of 400"),
        ({"steps": 0}, "--steps 0: give a number"),
        ({"learning_rate": float("nan")}, "--learning-rate nan: give a positive number"),
        ({"rate": 0.0}, "--rate 0.0: give a probability between 0 and 1"),
        ({"seed": -1}, "--seed -1: give a number from 0"),
    ],
)
def test_bad_options_are_refused(change, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        balancing.main(_config(tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()  # a slip does not claim the folder

"""The comparison of gradient methods writes its table, refuses bad options, and ends at a wrong gradient."""

import json

import jax
import pytest

import jax_bptt as jb
from experiments import gradient_methods as compared
from experiments.support import gradient_costs, million_steps
from experiments.support.comparisons import farthest
from jax_bptt.engine.chunks import chunk_of
from jax_bptt.gradients.checkpointed import _plan

TINY = {"steps": 40, "rows": 2, "inputs": 3, "hidden": 8, "outputs": 2, "cells": ("elman",)}
TINY |= {"repeats": 2, "million": False}


def _config(out, **changes):
    return compared.Config(out=out, **{**TINY, **changes})


def _stop(came):
    stop = compared.StopRequest()
    stop.came = came
    return stop


def test_it_writes_a_table_a_figure_and_a_line_for_each_method(tmp_path, capsys):
    compared.main(_config(tmp_path))
    printed = capsys.readouterr().out
    *_, last = printed.strip().splitlines()
    assert last.startswith("elman: full() ")
    assert last.endswith("4 of 4 schedules as long as the closed form; as expected")
    text = (tmp_path / "table.md").read_text()
    assert printed.startswith(text)
    assert (tmp_path / "gradient_methods.png").stat().st_size > 10_000

    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    costs = [m for m in lines if "method" in m]
    names = [repr(m) for m in (*compared.METHODS, *compared.AT_SMALL_SIZE)]
    assert sorted(m["method"] for m in costs) == sorted([*names, *2 * [gradient_costs.BASELINE]])
    assert all(f"| {m['method']} " in text for m in costs)
    assert all(m["temporaries"] > 0 and m["time_ratio"] > 0 for m in costs)
    distances = {m["method"]: m["distance"] for m in costs}
    assert distances["full()"] < distances["truncated(20, stride=1)"] < 1e-3
    assert max(d for name, d in distances.items() if gradient_costs.is_exact(name)) < 1e-5


def test_a_wrong_gradient_ends_it(tmp_path, monkeypatch):
    """Negative control: one that sees 5 steps of 40 and calls itself full()."""
    monkeypatch.setattr(compared, "METHODS", (jb.truncated(5)._replace(made_by=jb.full().made_by),))
    with pytest.raises(
        SystemExit, match=r"^full\(\): gradient differs from the baseline's by .* \(elman, T = 40"
    ):
        compared.main(_config(tmp_path))
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_nan_is_not_taken_for_agreement():
    assert not farthest([jax.numpy.array([float("nan")])], [jax.numpy.ones(1)]) < gradient_costs.AGREE


def test_the_closed_form_is_the_recursion():
    """t(n, m) = min over k of k + t(n − k, m − 1) + t(k, m), by trying every k."""
    best = {}
    for m in range(1, 6):
        for n in range(1, 41):
            ways = [k + best[n - k, m - 1] + best[k, m] for k in range(1, n)] if m > 1 else [n * (n - 1) // 2]
            best[n, m] = min(ways, default=0)
            assert gradient_costs.closed_form(n, m) == best[n, m]


@pytest.mark.parametrize("slots", [4, 16, None])
@pytest.mark.parametrize("steps", [40, 1000, 1])
def test_forward_runs_are_those_of_the_schedule(steps, slots):
    size = compared.Size("lstm", steps, 32, 64, 128, 8)
    _, carry, xs, _ = jax.eval_shape(lambda: gradient_costs.problem(size)[1])
    plan = _plan(slots, None, False, steps, chunk_of(steps, xs.shape[1], carry))
    assert gradient_costs.leaves(size, slots) == (plan.leaf, plan.leaves)
    name = repr(jb.checkpointed(slots=slots))
    runs = len(plan.actions) * plan.leaf + 2 * plan.head
    assert gradient_costs.forward_runs(size, name) == pytest.approx(runs / steps)


def test_long_steps_have_their_own_process_and_are_not_taken_twice(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(million_steps, "MILLION", 500)
    monkeypatch.setattr(million_steps, "OF_A_MILLION", (jb.checkpointed(slots=16),))
    run = compared.Run(tmp_path, {})
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        run.record(million="full()", steps=500, **million_steps.step_of(jb.full(), 500))
    taken = million_steps.take_the_million(run, _stop(False))
    assert [m["million"] for m in taken] == ["full()", "checkpointed(slots=16)"]
    assert all(m["seconds"] > 0 and m["peak"] >= m["before"] > 2**20 for m in taken)
    assert million_steps.take_the_million(run, _stop(False)) == taken == run.metrics()

    run.write("metrics.jsonl", json.dumps(taken[0] | {"grad_norm": 1.0}) + "\n" + json.dumps(taken[1]) + "\n")
    with pytest.raises(SystemExit, match=r"^checkpointed\(slots=16\): after a million steps its gradient"):
        million_steps.take_the_million(run, _stop(False))


def test_a_stop_ends_the_process_that_was_started():
    with pytest.raises(SystemExit, match="run the same command again"):
        million_steps._in_a_process("full()", _stop(True))


def test_the_error_of_a_process_is_reported(monkeypatch):
    monkeypatch.setattr(million_steps, "MILLION", 0)
    with pytest.raises(
        SystemExit, match=r"^full\(\): its process ended with exit code 1 --steps 0: give a number"
    ):
        million_steps._in_a_process("full()", _stop(False))


def test_unmet_expectations_are_named():
    size = compared.size_of(compared.Config(), "lstm")._asdict()
    costs = {"size": size, "time_ratio": 1.01, "temporaries_ratio": 0.2}
    measured = [costs | {"method": name} for name in ("full()", "checkpointed(slots=16)")]
    counts = [m | {"closed_form": 0} for m in compared.count_advances()]
    million = [{"million": "checkpointed(slots=16)", "steps": 9, "seconds": 1.0, "peak": 2**31}]
    shown, unmet = compared.judge(measured, counts, million)
    assert "full() 1.01 of the time, 1/5.0 of the temporaries" in shown
    assert unmet == [
        "time of full()",
        "time of checkpointed(slots=16)",
        "temporaries of checkpointed(slots=16)",
        "memory of a million steps",
        "schedules",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 1}, "--steps 1: give a number of at least 2"),
        ({"repeats": -1}, "--repeats -1: give a number of at least 1"),
        ({"cells": ()}, "--cells: give at least one of"),
        ({"peak": "print(1)"}, r"--peak print\(1\): give one of full\(\), full\(recompute=False\), "),
    ],
)
def test_bad_options_are_refused(change, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        compared.main(_config(tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()  # a slip does not claim the folder

"""The experiments simulator and learned_optimizer measure, judge, resume and refuse what they should."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from experiments import learned_optimizer as learned
from experiments import simulator
from experiments.support import noisy_quadratic as quadratic
from experiments.support import reaction
from experiments.support.scan_costs import Cost
from experiments.support.simulator_figure import Seen

TINY = {
    simulator: {"cells": 6, "steps": 12, "rounds": 1, "windows": (3,), "searches": (), "updates": 2},
    learned: {"steps": 12, "windows": (1,), "cut_rates": (0.05,), "draws": 256, "updates": 20, "rows": 4},
}


def _run(module, out, **changes):
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        module.main(module.Config(out=out, **{**TINY[module], **changes}))


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch):
    monkeypatch.setattr(simulator, "METHODS", (jb.full(), jb.checkpointed(slots=16)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("learned_optimizer")
    _run(learned, out)
    return out


def _rows(out):
    return {row["what"]: row for row in json.loads((out / "results.json").read_text())["rows"]}


# The simulator.


def test_a_step_of_the_reaction_by_loops():
    rng = np.random.default_rng(0)
    u, v, p = rng.uniform(size=(4, 4)), rng.uniform(size=(4, 4)), rng.uniform(size=4)
    new_u, new_v = reaction.react(jnp.asarray(p), (jnp.asarray(u), jnp.asarray(v)))
    for i in range(4):
        for j in range(4):
            beside = [(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)]
            flow = [sum(z[a % 4, b % 4] for a, b in beside) - 4 * z[i, j] for z in (u, v)]
            made = u[i, j] * v[i, j] ** 2
            du = p[2] * flow[0] - made + p[0] * (1 - u[i, j])
            dv = p[3] * flow[1] + made - (p[0] + p[1]) * v[i, j]
            assert abs(new_u[i, j] - u[i, j] - 0.1 * du) < 1e-14
            assert abs(new_v[i, j] - v[i, j] - 0.1 * dv) < 1e-14


def test_the_simulator_ends_and_after_a_kill_it_does_the_rest(tmp_path, capsys):
    _run(simulator, tmp_path)
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("simulator: ")
    assert (tmp_path / "simulator.png").stat().st_size > 10_000
    rows = _rows(tmp_path)
    assert rows["exact gradients, largest difference"]["met"]
    assert rows["truncated gradient by (u_0, v_0), all windows"]["ours"] == "exactly 0"
    *kept, torn = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(kept) + torn[:30])
    _run(simulator, tmp_path)
    *first, redone = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert first == kept  # nothing is measured twice
    assert _without_seconds(redone) == _without_seconds(torn)  # the optimizer is as it was, bit for bit


def _without_seconds(line):
    return {**json.loads(line), "seconds": None}


def test_a_wrong_gradient_ends_it(tmp_path, monkeypatch):
    """Negative control: one that sees 3 steps of 12 and calls itself full()."""
    monkeypatch.setattr(simulator, "METHODS", (jb.truncated(3)._replace(made_by=jb.full().made_by),))
    with pytest.raises(SystemExit, match=r"^full\(\): its gradient differs from the baseline's by "):
        _run(simulator, tmp_path)


def _judged(memory=(1, 0.05, 0.3, 0.05), distance=0.0, by_begin=0.0, errors=(1e-4, 0.1)):
    names = (simulator.PLAIN, simulator.NESTED, "full()", "checkpointed(slots=16)")
    costs = [Cost(name, 1.0, 1.0, 1.0, 1.0, 1, m, distance) for name, m in zip(names, memory, strict=True)]
    curves = {
        name: [{"loss": 1.0, "gradients": 1, "rates": (reaction.TRUE * (1 + error)).tolist()}]
        for name, error in zip(("checkpointed(slots=16)", "truncated(256)"), errors, strict=True)
    }
    return [row.met for row in simulator.judge(costs, [Seen(256, 1.0, 0.2, by_begin)], curves)]


@pytest.mark.parametrize(
    ("spoiled", "row"),
    [
        ({"distance": 1e-3}, 0),
        ({"memory": (1, 0.05, 0.8, 0.05)}, 1),
        ({"memory": (1, 0.05, 0.3, 0.1)}, 2),
        ({"by_begin": 1e-9}, 3),
        ({"errors": (0.01, 0.1)}, 4),
        ({"errors": (1e-4, 1e-3)}, 5),  # the truncated gradient finds them too
        ({"errors": (math.nan, 0.1)}, 4),
    ],
)
def test_an_unmet_expectation_of_the_simulator_is_seen(spoiled, row):
    assert all(_judged())
    assert _judged(**spoiled) == [i != row for i in range(6)]


# The learnt learning rate.


def test_the_moments_by_numpy():
    """E θ² of many runs of SGD with noise; and by hand where a window cuts every step."""
    schedule, rng = jnp.array([-0.5, 0.7]), np.random.default_rng(0)
    theta, losses = np.tile(quadratic.START, (20_000, 1)), []
    for t in range(5):
        rate = math.exp(-0.5) * (1 + t / 20) ** -0.7 * quadratic.CURVATURES
        theta = theta - rate * (theta - quadratic.NOISE * rng.normal(size=theta.shape))
        losses.append((quadratic.CURVATURES * theta**2).mean(1))
    spread = np.std(losses, axis=1) / math.sqrt(20_000)
    assert (np.abs(np.mean(losses, 1) - quadratic.expected(5, schedule)) < 4 * spread).all()


def test_the_mean_gradients_are_those_in_closed_form(trained):
    """full() and artbp beside the exact one, truncated(1) beside the derivative of each step alone."""
    rows = _rows(trained)
    assert rows["mean meta gradient, full()"]["met"]
    assert rows["mean meta gradient, artbp(0.05)"]["met"]
    assert rows["mean meta gradient, truncated(1)"]["met"]
    assert (trained / "learned_optimizer.png").stat().st_size > 10_000


def test_training_that_was_killed_goes_on_bit_for_bit(trained, tmp_path):
    lines = (trained / "metrics.jsonl").read_text().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if "curve" in line)
    (tmp_path / "run.json").write_text((trained / "run.json").read_text())
    (tmp_path / "metrics.jsonl").write_text("".join(lines[: first + 1]) + lines[first + 1][:20])
    _run(learned, tmp_path)
    again = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert list(map(_without_seconds, again)) == list(map(_without_seconds, lines))


WANTED = np.asarray(learned.exact(400, jnp.asarray(learned.POINT)).slope)


@pytest.mark.parametrize(
    ("name", "mean", "met"),
    [
        ("full()", WANTED * 1.001, True),
        ("full()", WANTED * 1.1, False),
        ("artbp(0.005)", WANTED * math.nan, False),
        ("truncated(50)", WANTED, False),  # as if it were not biased
        ("truncated(10)", -WANTED, False),  # biased otherwise than in closed form
    ],
)
def test_an_unmet_expectation_of_a_mean_is_seen(name, mean, met):
    found = {"full()": learned.Mean(WANTED, WANTED * 0 + 1e-3, np.ones(2))}
    found[name] = learned.Mean(mean, WANTED * 0 + 1e-3, np.ones(2))
    rows = learned.judge(learned.Config(), found, {}, jnp.asarray(learned.BEGIN))
    assert [row.met for row in rows if row.what.endswith(name)] == [met]


def test_what_was_learnt_is_judged():
    """The optimum as if learnt by every method: right for full(), wrong for the short windows."""
    best = learned.Exact.of(400).best
    assert np.linalg.norm(learned.exact(400, best).slope) < 1e-12
    curves = {name: [{"schedule": best.tolist()}] for name in ("full()", "truncated(1)")}
    assert [row.met for row in learned.judge(learned.Config(), {}, curves, best)] == [True, False]
    curves = {name: [{"schedule": [-0.5, 1.2]}] for name in ("full()", "truncated(1)", "truncated(50)")}
    assert [row.met for row in learned.judge(learned.Config(), {}, curves, best)] == [False, True, True]


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (simulator, {"steps": 1}, "--steps 1: give a number of at least 2"),
        (simulator, {"windows": (4096,)}, r"--windows .*: give numbers from 1 to 4095"),
        (simulator, {"searches": (0,)}, r"--searches .*: give numbers from 1 to 4095"),
        (learned, {"windows": (400,)}, r"--windows .*: give numbers from 1 to 399"),
        (learned, {"cut_rates": (1.0,)}, r"--cut-rates .*: give probabilities between 0 and 1"),
        (learned, {"cut_rates": ()}, r"--cut-rates .*: give probabilities"),
        (learned, {"learning_rate": math.nan}, "--learning-rate nan: give a positive number"),
        (learned, {"seed": -1}, "--seed -1: give a number from 0"),
    ],
)
def test_bad_options_are_refused(module, options, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        module.main(module.Config(out=tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()  # a slip does not claim the folder

"""The forecasts are scored, drawn and compared rightly; training keeps the best parameters and resumes."""

import itertools
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.optimizers import ADAM

import jax_bptt as jb
from experiments import forecast
from experiments.support import early_stopping, fertility, forecast_heads, forecasts, learning, runs

BIRTHS = fertility.rates().births
DRAW = np.random.default_rng(0)


# Scores.


def test_scores_by_loops():
    paths, happened = DRAW.normal(size=(2, 21, 4)), DRAW.normal(size=(2, 4))
    rows = np.array([[True, True, False, True], [True, True, True, True]])
    found = forecasts.score(paths, np.where(rows, happened, np.nan), rows)
    for h in range(2):
        by_row = []
        for n in np.flatnonzero(rows[h]):
            x, y = paths[h, :, n], happened[h, n]
            apart = np.mean([abs(a - b) for a, b in itertools.product(x, x)])
            inside = np.quantile(x, 0.05) <= y <= np.quantile(x, 0.95)
            by_row.append((abs(np.median(x) - y), np.mean(abs(x - y)) - apart / 2, inside))
        assert np.allclose([of[h] for of in found], np.mean(by_row, 0), rtol=1e-12)


def test_an_autoregression_finds_its_weights_and_goes_on():
    """Rows of one recurrence without noise, one with a gap; and the same as changes of logarithms."""
    y = np.zeros((15, 6))
    y[:2] = DRAW.normal(size=(2, 6))
    for t in range(2, 15):
        y[t] = 1.1 * y[t - 1] - 0.3 * y[t - 2] + 0.2
    known = y[:12].copy()
    known[3, 0] = np.nan

    def forecast_of(z):
        return forecasts.autoregression(z, order=2, horizon=3, samples=4, draw=DRAW)

    assert np.allclose(forecast_of(known), y[12:, None], rtol=0, atol=1e-10)
    grown = np.exp(np.concatenate([np.zeros((1, 6)), np.cumsum(y, 0)]))
    found = forecasts.of_log_changes(forecast_of)(grown[:13])
    assert np.allclose(found, grown[13:, None], rtol=1e-9, atol=0)


def test_the_last_value_spreads_as_its_row_did():
    y = np.cumsum(np.tile([[0.0, 0.0], [2.0, 0.1]], (50, 1)) - [1.0, 0.05], 0)  # to and fro
    paths = forecasts.last_value(y, 2, 4000, DRAW)
    assert np.allclose(np.median(paths, 1), y[-1], atol=0.1)
    changes = [y[years:] - y[:-years] for years in (1, 2)]
    for h, change in enumerate(changes):
        pooled, count = np.mean(change**2), len(change)
        wanted = np.sqrt(((change**2).sum(0) + 3 * pooled) / (count + 3))
        assert np.allclose(paths[h].std(0), wanted, rtol=0.05)


# Data.


def test_the_steps_of_a_row_with_gaps():
    """The inputs, targets and marks of every step, from the table itself; without noise and with it."""
    noise = DRAW.normal(size=(42, BIRTHS.shape[1]))
    batch, noisy = (jax.tree.map(np.asarray, forecast.batch(e, 1992, 2001)) for e in (0.0, noise))
    gaps = np.isfinite(BIRTHS).sum(0)
    assert (len(gaps), gaps.min()) == (201, 12)
    scale = forecast.scale()
    for n in [*np.argsort(gaps)[:6], 150]:
        for k in range(40):
            before, now, after = BIRTHS[k : k + 3, n]
            readable = math.isfinite(before + now)
            assert batch.mask[k, n] == readable
            assert batch.weight[k, n] == (math.isfinite(now + after) and 1962 + k >= 1992)
            if readable and math.isfinite(after):
                wanted = [(now - scale.mean) / scale.deviation, (now - before) / scale.change]
                assert np.allclose(batch.xs[k, n], wanted, rtol=1e-12, atol=1e-12)
                target = (after - now - (now - before)) / scale.change
                assert np.allclose(batch.targets[k, n], target, atol=1e-12)
                e_before, e_now = noise[k : k + 2, n]
                assert np.allclose(noisy.xs[k, n, 1], wanted[1] + e_now - e_before, atol=1e-12)
                assert np.allclose(noisy.targets[k, n], target - 2 * e_now + e_before, atol=1e-12)
    assert np.isfinite(batch.xs).all()
    assert len(forecast.batch(0.0, 1960, 1991).xs) == 30  # the last target is of 1991


# The closed loop.


def test_a_network_that_expects_no_turn_draws_straight_lines():
    learner = forecast.learner(forecast.Config(hidden=2), 0)
    params = jax.tree.map(jnp.zeros_like, learner.net.init(jax.random.key(0)))
    head = forecast.HEADS["gaussian"]._replace(draw=lambda said, key: said[..., 0])
    paths = forecast.closed_loop(learner.net, head, params, jax.random.key(0), 2)
    last, before = BIRTHS[forecast.at(2001)], BIRTHS[forecast.at(2000)]
    for h in range(10):
        known = np.isfinite(last + before)
        line = last + (h + 1) * (last - before)
        assert np.allclose(paths[h][:, known], line[known], rtol=0, atol=1e-10)
        assert np.isnan(paths[h][:, ~known]).all()


def test_samples_of_both_heads():
    """Quantiles of a uniform distribution give it back, to its ends and in any order."""
    key, said = jax.random.key(0), jnp.asarray(forecast_heads.LEVELS)
    share = jax.random.uniform(key, (500,))
    found = forecast_heads.from_quantiles(jnp.tile(said[::-1], (500, 1)), key)
    assert np.allclose(found, share, rtol=0, atol=1e-12)
    assert share.min() < 0.02 < 0.98 < share.max()
    found = forecast_heads.from_normal(jnp.tile(jnp.array([3.0, math.log(2.0)]), (500, 1)), key)
    assert np.allclose(found, 3 + 2 * jax.random.normal(key, (500,)), rtol=1e-12)


# Early stopping.

NET = jb.network([jb.elman(1, 2)], jb.readout(2, 1))


def _passing():
    """Weights go to 0; the score is lowest on the way there."""

    def draw(key):
        return jb.Batch(jnp.ones((3, 2, 1)), jnp.zeros((3, 2, 1)))

    def score(params):
        return {"valid": jnp.square(jnp.abs(params.readout.w_y).sum() - 1.0)}

    return learning.Learner("one", NET, jb.squared_error, ADAM, draw, score, steps=200, every=4)


def test_training_stops_after_the_lowest_score_and_resumes(tmp_path):
    def learnt(patience=12):
        with jax.numpy_dtype_promotion("standard"), runs.StopRequest() as stop:
            run = runs.Run(tmp_path, {})
            return early_stopping.learn_best(run, stop, _passing(), "valid", patience)

    lines, best = learnt()
    scores = [m["valid"] for m in lines]
    at = int(np.argmin(scores))
    assert 0 < at == len(scores) - 4  # three more blocks of four updates, none better
    assert float(_passing().score(best)["valid"]) == scores[at]
    newest = max((tmp_path / "checkpoints" / "one").iterdir(), key=lambda p: int(p.name))
    shutil.rmtree(newest)  # killed before it was written: the best one lies further back
    again, best_again = learnt()
    assert [m["valid"] for m in again] == scores
    assert all(map(np.array_equal, jax.tree.leaves(best_again), jax.tree.leaves(best)))


# The script.


def test_a_run_ends_with_its_rows_and_is_not_run_again(tmp_path, capsys):
    tiny = {"hidden": 2, "updates": 2, "every": 1, "samples": 3, "seeds": 1, "head": "quantile"}
    printed = []
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        for _ in range(2):
            forecast.main(forecast.Config(out=tmp_path, **tiny))
            printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    *_, last = printed[0].splitlines()
    assert last.startswith("forecast: ")
    assert last.endswith("EXPECTATION NOT MET")
    assert (tmp_path / "forecast.png").stat().st_size > 10_000
    rows = {row["what"]: row for row in json.loads((tmp_path / "results.json").read_text())["rows"]}
    assert len(rows) == 5
    assert (tmp_path / "table.md").read_text().count("| AR(5) of log changes ") == 3


def _judged(crps=0.1, alone=0.11, covered=0.9):
    def scores(crps, covered=0.9):
        return forecasts.Scores(*(np.full(10, z) for z in (0.1, crps, covered)))

    simple = {"last value": scores(0.3), "AR(5)": scores(0.12)}
    return forecast.judge({"GRU": scores(crps, covered), **simple, "seed 0 alone": scores(alone)})


@pytest.mark.parametrize(
    ("spoiled", "rows"),
    [
        ({"crps": 0.2}, [1]),
        ({"crps": math.nan}, [0, 1]),
        ({"alone": 0.13}, [2]),
        ({"covered": 0.8}, [3]),
        ({"covered": 0.97}, [3]),
    ],
)
def test_what_is_not_as_expected_is_seen(spoiled, rows):
    assert all(row.met for row in _judged())
    assert [row.met for row in _judged(**spoiled)] == [i not in rows for i in range(4)]


def test_a_horizon_that_is_lost_is_named():
    said = [row.ours.split(";")[0] for row in _judged(crps=np.r_[np.full(8, 0.1), 0.2, 0.3])]
    assert said[:2] == ["9, not at 10 years", "8, not at 9, 10 years"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patience": 0}, "--patience 0: give a number of at least 1"),
        ({"samples": 1}, "--samples 1: give a number of at least 2"),
        ({"noise": -1.0}, "--noise -1.0: give a number of at least 0"),
        ({"learning_rate": 0.0}, "--learning-rate 0.0: give a positive number"),
    ],
)
def test_bad_options_are_refused(change, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        forecast.main(forecast.Config(out=tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()

"""The experiments vanishing_exploding and error_surface measure, judge and refuse what they should."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import error_surface, results, vanishing_exploding
from experiments.support import findings, runs
from experiments.support.findings import Row

CONFIG = vanishing_exploding.Config(hidden=3, steps=10, rows=1)


def _expected():
    """Nine made-up networks that are as the script expects."""
    one = {"verdict": "healthy", "rate": 1.0, "profile": [1.0, 1.0], "exponents": [0.0], "seconds": 1.0}
    found = {name: dict(one) for name in vanishing_exploding.cells(CONFIG)}
    found["Elman, gain 0.5"] |= {"verdict": "vanishing", "rate": 0.4}
    found["Elman, gain 2"] |= {"verdict": "exploding", "exponents": [0.1, -1.0]}
    found["Elman, gain 1"]["profile"] = [1.0, 1e-3]
    return found


def test_nine_networks_are_judged():
    assert all(row.met for row in vanishing_exploding.rows(_expected()))


@pytest.mark.parametrize(
    ("name", "spoilt"),
    [
        ("Elman, gain 0.5", {"rate": 0.6}),
        ("Elman, gain 2", {"exponents": [-0.1]}),
        ("Elman, gain 2", {"verdict": "healthy"}),
        ("linear, orthogonal", {"exponents": [0.0, -1e-3]}),
        ("linear, orthogonal", {"profile": [1.0, 0.9]}),
        ("GRU, chrono", {"profile": [1.0, 1e-2]}),
    ],
)
def test_each_unmet_expectation_is_seen(name, spoilt):
    found = copy.deepcopy(_expected())
    found[name] |= spoilt
    assert sum(not row.met for row in vanishing_exploding.rows(found)) == 1


def test_one_network_is_measured():
    cell = vanishing_exploding.cells(CONFIG)["linear, orthogonal"]
    found = vanishing_exploding.measure(CONFIG, cell)
    assert np.allclose(found["profile"], 1)
    assert np.abs(found["exponents"]).max() < 1e-10
    terms = np.array(found["terms"])
    assert terms.shape == (10, 10)
    assert (terms[np.triu_indices(10, 1)] == 0).all()
    assert (terms[np.tril_indices(10)] > 0)[1:].any()


def test_the_error_is_the_recursion():
    h = 1 / (1 + np.exp(-0.5))
    for _ in range(50):
        h = 1 / (1 + np.exp(-(4.2 * h - 2.1)))
    assert abs(error_surface.error(jnp.array([4.2, -2.1])) - (h - 0.7) ** 2) < 1e-12


def test_the_wall_throws_one_path_away_and_not_the_other(tmp_path, capsys):
    error_surface.main(error_surface.Config(grid=60, starts=20, out=tmp_path))
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("error_surface: 4 of 4 results are as expected")
    assert (tmp_path / "error_surface.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (error_surface, {"grid": 1}, "--grid 1: give a number of at least 2"),
        (error_surface, {"max_norm": 0.0}, "--max-norm 0.0: give a positive number"),
        (vanishing_exploding, {"steps": 3}, "--steps 3: give a number of at least 10"),
    ],
)
def test_bad_options_are_refused(module, options, message):
    with pytest.raises(SystemExit, match=message):
        module.check(module.Config(**options))


def test_results_become_a_page_and_a_verdict(tmp_path, capsys):
    for name, met in (("good", np.True_), ("poor", False)):
        run = runs.Run(tmp_path / name, {})
        config = vanishing_exploding.Config(steps=12, out=tmp_path)
        findings.conclude(run, name, config, [Row("a", "1", "2", True), Row("b", "3", "4", met)], 5, 12.4)
    said = capsys.readouterr().out.splitlines()
    assert said[2] == "good: 2 of 2 results are as expected, after 12 s; expectation met"
    assert said[4] == "b: 4 (known: 3)  NOT MET"
    assert said[5].endswith("EXPECTATION NOT MET")
    results.main(results.Config(tmp_path, tmp_path / "page.md"))
    page = (tmp_path / "page.md").read_text()
    assert page.count("NO |") == 1
    assert "`python -m experiments.good --steps 12`" in page
    assert str(jax.devices()[0].device_kind) in page

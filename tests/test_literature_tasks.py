"""The tasks of the literature draw right data, judge rightly, resume, and refuse bad options."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import elman_xor, embedded_reber, lorenz, sequential_digits, sunspots
from experiments.support import attractors, options

# Run in this process, each on a few updates.

SMALL = {
    elman_xor: {"passes": 1, "seeds": 1},
    embedded_reber: {"sequences": 8, "seeds": 1},
    sunspots: {"updates": 1, "rows": 1, "seeds": 1},
    sequential_digits: {"rows": 2, "updates": 1, "seeds": 1},
    lorenz: {"rows": 1, "updates": 1, "seeds": 1},
}
NAMES = {experiment: experiment.__name__.split(".")[-1] for experiment in SMALL}


@pytest.fixture
def _few(monkeypatch):
    """Few images, of few pixels, one kind of network that reads strings, short runs: less to compute."""
    data = sequential_digits.images(64)  # the 784 ones take seconds to be read

    def few(steps):
        keep = slice(data.learnt - 10, data.learnt + 10)
        return sequential_digits.Images(data.pixels[keep, :16], data.classes[keep], 10)

    monkeypatch.setattr(sequential_digits, "images", few)
    monkeypatch.setattr(embedded_reber, "KINDS", {"LSTM": embedded_reber.KINDS["LSTM"]})
    monkeypatch.setattr(lorenz, "STEPS", 400)
    monkeypatch.setattr(lorenz, "TESTED", 8)


@pytest.mark.usefixtures("_few")
@pytest.mark.parametrize("experiment", SMALL, ids=NAMES.get)
def test_a_run_ends_with_its_rows_and_is_not_run_again(experiment, tmp_path, capsys):
    config = experiment.Config(out=tmp_path, **SMALL[experiment])
    with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counts with floats
        experiment.main(config)
        before = (tmp_path / "metrics.jsonl").read_text()
        first = capsys.readouterr().out.splitlines()
        experiment.main(config)
    assert capsys.readouterr().out.splitlines() == first
    assert (tmp_path / "metrics.jsonl").read_text() == before
    name = NAMES[experiment]
    assert first[0] == str(tmp_path / f"{name}.png")
    assert re.fullmatch(
        rf"{name}: \d of \d results are as expected, after \d+ s; (expectation met|EXPECTATION NOT MET)",
        first[-1],
    )
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["command"] == " ".join([f"python -m experiments.{name}", *options.given(config)])
    assert len(results["rows"]) == len(first) - 2


@pytest.mark.parametrize(
    ("experiment", "change", "message"),
    [
        (elman_xor, {"passes": 0}, "--passes 0: give a number of at least 1"),
        (elman_xor, {"learning_rate": float("nan")}, "--learning-rate nan: give a positive number"),
        (elman_xor, {"seeds": 0}, "--seeds 0: give a number"),
        (embedded_reber, {"sequences": 3}, "--sequences 3: give a number of at least 4"),
        (embedded_reber, {"learning_rate": 0.0}, "--learning-rate 0.0: give a positive number"),
        (embedded_reber, {"seeds": -1}, "--seeds -1: give a number"),
        (sunspots, {"updates": 0}, "--updates 0: give a number of at least 1"),
        (sunspots, {"noise": -0.1}, "--noise -0.1: give a number of at least 0"),
        (sunspots, {"learning_rate": float("inf")}, "--learning-rate inf: give a positive number"),
        (sequential_digits, {"rows": 0}, "--rows 0: give a number of at least 1"),
        (sequential_digits, {"updates": 0}, "--updates 0: give a number of at least 1"),
        (lorenz, {"updates": 0}, "--updates 0: give a number of at least 1"),
        (lorenz, {"rows": 0}, "--rows 0: give a number of at least 1"),
        (lorenz, {"noise": float("nan")}, "--noise nan: give a number of at least 0"),
        (lorenz, {"learning_rate": 0.0}, "--learning-rate 0.0: give a positive number"),
    ],
)
def test_bad_options_are_refused(experiment, change, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        experiment.main(experiment.Config(out=tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()


def test_options_that_are_not_the_defaults_are_in_the_command():
    assert options.given(elman_xor.Config()) == []
    changed = elman_xor.Config(passes=5, learning_rate=0.1)
    assert options.given(changed) == ["--passes 5", "--learning-rate 0.1"]


# Temporal XOR.


def test_every_third_bit_is_the_xor_of_the_two_before():
    first, second, third = elman_xor.stream(7, 500).reshape(500, 3).T
    assert (third == first ^ second).all()
    assert 0.4 < first.mean() < 0.6
    assert 0.4 < (first == second).mean() < 0.6


def test_the_errors_of_an_oracle_and_of_a_half():
    """By place: what the shown profile is for a network that answers ½, and the right bit at the third."""
    learner = elman_xor.learner(elman_xor.Config(), "2 units", 0)
    params = jax.tree.map(jnp.zeros_like, learner.net.init(jax.random.key(0)))  # answers ½
    scores = learner.score(params)
    assert len(scores) == 12
    assert np.allclose(list(scores.values()), 0.25)
    profile = np.tile([0.25, 0.25, 0.0], 4)
    assert np.allclose(elman_xor.by_place(profile), elman_xor.BEST)


def test_a_window_begins_with_a_triple_and_asks_for_the_next_bit():
    learner = elman_xor.learner(elman_xor.Config(), "2 units", 0)
    batch = learner.draw(jax.random.key(3))
    xs, targets = np.asarray(batch.xs)[..., 0].astype(int), np.asarray(batch.targets)[..., 0].astype(int)
    assert (xs[1:] == targets[:-1]).all()
    assert (xs[2::3] == xs[0::3] ^ xs[1::3]).all()


def _profiles(third):
    of_kind = {kind: np.tile([0.25, 0.26, 0.1], 4)[None, None] for kind in elman_xor.KINDS}
    return of_kind | {"6 units": np.tile([0.25, 0.26, third], 4)[None, None]}


def test_the_xor_judged():
    assert all(row.met for row in elman_xor.judge(_profiles(0.001)))
    assert [row.met for row in elman_xor.judge(_profiles(0.03))] == [True, False, True, True]


# Embedded Reber grammar.


def _accepts(string):
    """The grammar again, as regular expression: inner states by substitution."""
    loop = r"(?:T*VPX)*T*V"  # from the state after P, once around through V, P, X, or out by V
    inner = rf"B(?:TS*X(?:S|X{loop}(?:PS|V))|P{loop}(?:PS|V))E"
    return re.fullmatch(rf"BT{inner}TE|BP{inner}PE", string) is not None


def test_strings_of_the_grammar_and_what_may_come():
    data = embedded_reber.Strings(*map(np.asarray, embedded_reber.strings(0, 300)))
    letters = np.concatenate([data.now, data.next[-1:]])
    found = [
        "".join(embedded_reber.LETTERS[z] for z in of[: n + 1])
        for of, n in zip(letters.T, data.lengths, strict=True)
    ]
    assert len(set(found)) == 300
    assert all(map(_accepts, found))
    assert not _accepts("BTBPVVEPE")  # another letter at the end
    assert not _accepts("BTBPVPETE")
    followers = {}
    for string in found:
        for t in range(len(string) - 1):
            followers.setdefault(string[: t + 1], set()).add(string[t + 1])
    for n, string in enumerate(found):
        for t in range(len(string) - 1):
            may = {z for z, yes in zip(embedded_reber.LETTERS, data.allowed[t, n], strict=True) if yes}
            assert followers[string[: t + 1]] <= may
        assert may == {"E"}
        last = {z for z, yes in zip(embedded_reber.LETTERS, data.allowed[t - 1, n], strict=True) if yes}
        assert last == {string[1]}


def test_right_is_where_the_allowed_letters_are_most_active():
    allowed = jnp.array([[True, False, True], [True, False, False]])
    ys = jnp.array([[0.5, 0.4, 0.6], [0.5, 0.5, 0.4]])
    assert embedded_reber.right(ys, allowed).tolist() == [True, False]
    assert not embedded_reber.right(ys[:1] - jnp.array([[0.2, 0.0, 0.0]]), allowed[:1])[0]


def test_padding_is_masked():
    learner = embedded_reber.learner(embedded_reber.Config(), "LSTM", 0)
    batch = learner.draw(jax.random.key(0))
    ends = np.asarray(batch.mask).sum(0) - 1
    assert [embedded_reber.LETTERS[z] for z in np.asarray(batch.targets)[ends, np.arange(len(ends))]] == [
        "E"
    ] * 4
    assert (np.asarray(batch.xs).sum(-1) == 1).all()


def _lines(step, tested):
    return [{"step": step, "learnt": 1.0, "tested": tested, "memory": tested}]


@pytest.mark.parametrize(("tested", "met"), [(1.0, True), (0.99, False)])
def test_the_grammar_judged(tested, met):
    failed = [_lines(9, 0.5)]
    curves = {"LSTM": [_lines(5, 1.0), _lines(9, tested)], "Elman": failed, "Elman, one step": failed}
    rows = embedded_reber.judge(embedded_reber.Config(), curves)
    assert [row.met for row in rows] == [met, True, True]
    assert rows[0].ours.startswith("2 of 2 seeds" if met else "1 of 2 seeds")


# Digits by the pixel.


def test_an_image_is_read_row_by_row():
    import sklearn.datasets

    data = sequential_digits.images(64)
    assert (len(data.classes), data.learnt) == (1797, 1437)
    assert 0 == data.pixels.min() < data.pixels.max() == 1
    everything = sklearn.datasets.load_digits()
    order = np.random.default_rng(0).permutation(1797)
    first = sequential_digits.sequences(jnp.asarray(data.pixels))[:, 0, 0]
    assert np.allclose(np.asarray(first).reshape(8, 8), everything.images[order[0]] / 16)
    assert data.classes[0] == everything.target[order[0]]
    chance = np.bincount(data.classes[data.learnt :]).max() / (1797 - data.learnt)
    assert chance < 0.15


def _accuracies(short, long):
    of = {("GRU", 64): [0.96, short], ("Elman", 64): [0.96], ("GRU", 784): [long], ("Elman", 784): [0.4]}
    return {name: [[{"accuracy": z}] for z in ends] for name, ends in of.items()}


def test_the_digits_judged():
    assert all(row.met for row in sequential_digits.judge(_accuracies(0.95, 0.85)))
    met = [row.met for row in sequential_digits.judge(_accuracies(0.94, 0.6))]
    assert met == [False, True, False, False]


# Sunspots.


def test_the_series_and_what_needs_no_network():
    y = sunspots.series()
    assert y.shape == (309,)
    assert y[1957 - 1700] == y.max()
    assert abs(y[:280].var() / sunspots.VARIANCE - 1) < 0.05  # up to 1979
    mean = np.full(308, y[221:256].mean())
    assert abs(sunspots.arv(mean, (1921, 1955)) - y[221:256].var() / 1535) < 1e-12
    assert sunspots.arv(y[1:], (1921, 1955)) == 0
    baselines = {name: sunspots.arv(p, (1921, 1955)) for name, p in sunspots.baselines().items()}
    assert baselines["persistence"] > baselines["AR(2)"] > baselines["AR(9)"]


def test_autoregression_is_the_solution_of_the_normal_equations():
    y = sunspots.series()
    errors = (y[1:] - sunspots.autoregression(2))[1:220]  # of 1702 to 1920
    for regressor in (np.ones(219), y[1:220], y[:219]):
        assert abs(errors @ regressor) < 1e-6 * np.abs(y[:220]).sum()


def test_no_year_of_the_tests_is_learnt():
    learner = sunspots.learner(sunspots.Config(noise=0.0), "GRU", 0)
    batch = learner.draw(jax.random.key(0))
    read = sunspots.numbers(batch.xs[:, 0, 0])
    assert np.allclose(read, sunspots.series()[:220])  # up to 1919, so that 1920 is asked for
    assert np.allclose(sunspots.numbers((batch.xs + batch.targets)[:, 0, 0]), sunspots.series()[1:221])


def test_a_network_that_says_no_change_is_persistence():
    learner = sunspots.learner(sunspots.Config(), "Elman", 0)
    params = jax.tree.map(jnp.zeros_like, learner.net.init(jax.random.key(0)))
    assert np.allclose(sunspots.predicted(learner.net, params), sunspots.series()[:-1])
    persistence = sunspots.arv(sunspots.series()[:-1], sunspots.PERIODS["1956–1979"])
    assert np.allclose(learner.score(params)["1956–1979"], persistence)


def test_the_sunspots_judged():
    y = sunspots.series()
    found = {kind: np.stack([y[1:] + 1, y[1:] - 1]) for kind in sunspots.CELLS}
    assert all(row.met for row in sunspots.judge(found))
    found["GRU"] = np.stack([y[:-1], y[:-1]])
    assert [row.met for row in sunspots.judge(found)] == [True, False, True, False, False]


# The Lorenz attractor.


def test_the_volume_shrinks_as_the_divergence_says():
    """λ_1 + λ_2 + λ_3 = −(σ + 1 + β), whatever the states."""
    exponents, _ = attractors.free_run(lorenz.SYSTEM, jnp.array([10, 28, 8 / 3]), jnp.ones((2, 3)), 50)
    assert abs(sum(exponents) / lorenz.DT + 10 + 1 + 8 / 3) < 1e-3  # of Runge and Kutta


def test_the_data_replace_the_state_where_it_is_forced():
    weights = lorenz.init(jax.random.key(0))
    weights = weights._replace(w_2=10 * weights.w_2, b_2=jnp.array([0.3, -0.2, 0.1]))
    states, forced = jax.random.normal(jax.random.key(1), (7, 2, 3)), np.arange(6) % 3 == 0

    def by_hand(weights):
        z, errors = states[0], []
        for t in range(6):
            before = states[t] if t in (0, 3) else z
            hidden = jnp.tanh(before @ weights.w_1 + weights.b_1[None])
            z = weights.a[None] * before + hidden @ weights.w_2 + weights.b_2[None]
            far = jnp.abs(z - states[t + 1])
            errors.append(jnp.where(far < 0.1, far**2 / 2, 0.1 * (far - 0.05)))
        return jnp.mean(jnp.stack(errors))

    found, wanted = (
        jax.jit(jax.value_and_grad(f))(weights)
        for f in (lambda w: lorenz.loss(w, jnp.array(forced), states), by_hand)
    )
    for z, right in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert np.linalg.norm(z - right) < 1e-12 * np.linalg.norm(right)


def test_distances_of_attractors():
    p, q = np.array([1.0, 0.0]), np.array([0.5, 0.5])
    assert attractors.distance(p, p) == 0
    assert attractors.distance(p, p[::-1]) == 1
    assert abs(attractors.distance(p, q) - np.sqrt(1 - np.sqrt(0.5))) < 1e-12
    corner, far = np.full((4, 1, 2), 3.4), np.full((4, 1, 2), np.inf)
    assert attractors.visits(corner)[-1] == attractors.visits(far)[-1] == 1
    assert attractors.visits(-corner)[0] == 1
    waves = np.sin(2 * np.pi * np.arange(1000) / 20)[:, None, None]  # 25 periods in 500 steps
    assert np.argmax(attractors.powers(waves)) == 24
    assert attractors.powers(3 * waves).sum() == pytest.approx(1)
    assert attractors.distance(attractors.powers(0 * waves), attractors.powers(waves)) == 1  # it rests


def test_the_lorenz_networks_judged():
    """The system itself in the place of the networks forced every ln 2 / λ steps, or another in its place."""
    system = attractors.Attractor(lorenz.DT * np.array(lorenz.PUBLISHED), *np.eye(3)[:, :2])
    other = system._replace(exponents=1.2 * system.exponents, visits=system.powers, powers=system.visits)
    networks = {every: [other] for every in lorenz.intervals(38)} | {38: [system, system]}
    found = lorenz.Found(38, system, system, networks)
    assert all(row.met for row in lorenz.judge(lorenz.Config(), found))
    found = found._replace(networks={**networks, 38: [system, other]})
    met = [row.met for row in lorenz.judge(lorenz.Config(), found)]
    assert met == [True, False, False, False]

"""Verdicts, bounds and exponents against closed forms; cures, and that they do what they say."""

import functools
from typing import NamedTuple

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import support.witnesses as w
from support.optimizers import SGD

import jax_bptt as jb
from jax_bptt.engine.loops import forward, linearise, previous
from jax_bptt.engine.sequence import Sequence
from jax_bptt.flow.bounds import spectral_radius
from jax_bptt.gradients.jacobians import WHOLE, jacobians


def _linear(gain, hidden=4, steps=20):
    """A linear net whose gradient is multiplied by the gain at every step, exactly."""
    cell = jb.elman(2, hidden, "identity", recurrent=jb.orthogonal(gain))
    net = jb.network([cell], jb.last(jb.readout(hidden, 2)))
    xs = jax.random.normal(jax.random.key(0), (steps, 3, 2))
    return net, net.init(jax.random.key(1)), xs, jnp.ones((3, 2))


def _flow(net, params, xs, targets, **more):
    run = functools.partial(jb.gradient_flow, net, jb.squared_error, **more)
    return jax.jit(run)(params, None, xs, targets)


@pytest.mark.parametrize(("gain", "verdict"), [(0.5, "vanishing"), (1.0, "healthy"), (2.0, "exploding")])
def test_a_verdict_and_its_rate(gain, verdict):
    flow = _flow(*_linear(gain))
    assert flow.verdicts == (verdict,)
    layer = flow.layers[0]
    for found in (layer.rate, layer.bound, layer.sigma_max[0], layer.spectral_radius[0]):
        assert abs(found - gain) < 1e-6
    assert np.allclose(layer.profile, gain ** np.arange(20), rtol=1e-10)
    assert abs(flow.bias[-1]) < 1e-12
    assert abs(flow.cosine[-1] - 1) < 1e-12
    assert layer.saturation == 0
    assert f"layer 0: {verdict}, {gain:.4g} a step" in str(flow)


def test_the_horizon_is_where_the_rest_is_below_eps():
    flow = _flow(*_linear(0.5), eps=0.05)
    rest = np.cumsum(np.asarray(flow.lag_norm)[::-1])[::-1]
    assert flow.horizon == np.argmax(rest < 0.05 * rest[0])
    assert 2 < flow.horizon < 10
    assert _flow(*_linear(1.0)).horizon == 20


def test_saturated_and_dead_units_are_counted():
    cell = jb.elman(2, 4, "relu")
    net = jb.network([cell], jb.readout(4, 2))
    params = net.init(jax.random.key(1))
    dead = params.cells[0]._replace(w_h=jnp.zeros((4, 4)), b=jnp.array([-99.0, 99.0, 99.0, 99.0]))
    xs = jax.random.normal(jax.random.key(0), (6, 3, 2))
    flow = _flow(net, params._replace(cells=(dead,)), xs, xs)
    assert flow.layers[0].saturation == 0.25


def test_no_step_outgrows_its_bound():
    """η of every kind of cell is above ‖J_t‖ of every step and row."""
    for name in ("elman-tanh", "lstm-peephole", "indrnn", "own-layer-norm"):
        case = cases.make(name, 3, (2,))
        cell, net = case.row.cell, jb.network([case.row.cell], jb.readout(cases.H, 2))
        params = jb.NetworkParams((case.params,), net.readout.init(jax.random.key(0)))
        sequence = Sequence(case.xs)

        def norms(params, carry, cell=cell, sequence=sequence):
            _, states = forward(cell, params, carry, None, sequence)
            a = linearise(cell, params, previous(carry, None, sequence, states), sequence, states)
            return jnp.linalg.norm(jacobians(cell, params, a, states, WHOLE), 2, axis=(-2, -1)).max()

        run = jax.jit(functools.partial(jb.gradient_flow, net, jb.squared_error))
        flow = run(params, (case.carry,), case.xs, jnp.ones((3, 2, 2)))
        largest = jax.jit(norms)(case.params, case.carry)
        assert largest <= flow.layers[0].bound * (1 + 1e-12), name
        assert flow.layers[0].bound < 20 * largest, name


def test_spectral_radius_is_that_of_the_eigenvalues():
    for key in jax.random.split(jax.random.key(0), 3):
        m = jax.random.normal(key, (7, 7))
        assert abs(spectral_radius(m) - np.abs(np.linalg.eigvals(m)).max()) < 1e-5
    assert spectral_radius(jnp.array([[0.0, 1.0], [0.0, 0.0]])) == 0


def test_it_is_a_metric_of_training_inside_jit():
    net, _, xs, targets = _linear(0.9)
    state = jb.init_train_state(jax.random.key(0), net, SGD, (3,))
    train_step = jb.make_train_step(net, jb.squared_error, SGD)

    @jax.jit
    def step(state):
        flow = jb.gradient_flow(net, jb.squared_error, state.params, None, xs, targets, lags=5)
        return train_step(state, jb.Batch(xs, targets))[0], flow

    state, flow = step(state)
    assert flow.verdicts == ("healthy",)
    assert len(flow.bias) == 5


def test_a_gradient_that_is_none_is_no_verdict():
    net, params, xs, targets = _linear(1.0, steps=3)
    assert _flow(net, params, xs.at[0, 0, 0].set(jnp.nan), targets).verdicts == ("not finite",)


def test_a_reset_is_no_vanishing():
    """A linear orthogonal net is healthy, whatever the sequences that share a batch."""
    net, params, xs, _ = _linear(1.0)
    net = net._replace(readout=jb.readout(4, 2))
    reset = jnp.zeros((20, 3), bool).at[::5].set(True)
    flow = _flow(net, params, xs, xs, reset=reset)
    assert flow.verdicts == ("healthy",)
    assert np.allclose(flow.layers[0].profile[:5], 1)
    assert jnp.isnan(flow.layers[0].profile[5:]).all()


def test_a_gradient_that_is_zero_or_overflows_has_a_verdict():
    net, params, xs, targets = _linear(4.0, steps=40)
    flow = _flow(net, params, xs, net.apply(params, None, xs)[1])
    assert flow.verdicts == ("unknown",)
    assert "layer 0: unknown, nan a step" in str(flow)
    assert "no effective horizon within 40 steps" in str(flow)
    params, zeros, targets = jax.tree.map(lambda z: z.astype(jnp.float32), (params, 0 * xs, targets))
    flow = _flow(net, params, jnp.tile(zeros, (3, 1, 1)), targets)
    assert not jnp.isfinite(flow.grad_norm)
    assert flow.verdicts == ("exploding",)


def test_parameters_of_half_the_width():
    net, params, xs, _ = _linear(1.0, steps=4)
    params, xs = jax.tree.map(lambda z: z.astype(jnp.bfloat16), (params, xs))
    flow = _flow(net, params, xs, jnp.ones((3, 2), jnp.bfloat16))
    assert flow.verdicts == ("healthy",)
    assert np.abs(_spectrum(net.layers[0].forward)(params.cells[0], None, xs).exponents).max() < 0.01


@pytest.mark.parametrize(
    ("more", "message"),
    [({"eps": 1.0}, "eps: expected a share"), ({"lags": 1}, "lags: expected at least 2, got 1 lag of 20")],
)
def test_messages_of_gradient_flow(more, message):
    net, params, xs, targets = _linear(1.0)
    run = functools.partial(jb.gradient_flow, net, jb.squared_error, **more)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(run, params, None, xs, targets)


# Lyapunov exponents.


class Point(NamedTuple):
    h: jax.Array
    c: jax.Array


def _henon(params, s, x):
    return Point(1 - params * s.h**2 + s.c, 0.3 * s.h)


def _spectrum(cell, **more):
    return jax.jit(functools.partial(jb.lyapunov_spectrum, cell, **more))


def test_exponents_of_the_henon_map():
    """Published: 0.419 and −1.623 (a = 1.4, b = 0.3); their sum is log 0.3 exactly."""
    cell = jb.step_cell(1, 1, _henon, init=lambda key: jnp.asarray(1.4), carry_type=Point)
    found = _spectrum(cell, transient=100)(jnp.asarray(1.4), None, jnp.zeros((60_000, 1)))
    assert np.abs(found.exponents - np.array([0.419, -1.623])).max() < 0.005
    assert abs(found.exponents.sum() - np.log(0.3)) < 1e-9
    assert (found.finite == 59_900).all()


@pytest.mark.parametrize("name", ["elman-tanh", "lstm"])
def test_exponents_sum_to_the_mean_log_determinant(name):
    case = cases.make(name, 9, (2,))
    cell, sequence = case.row.cell, Sequence(case.xs)
    found = _spectrum(cell, key=jax.random.key(0))(case.params, case.carry, case.xs)

    @jax.jit
    def of_determinants(params, carry):
        _, states = forward(cell, params, carry, None, sequence)
        a = linearise(cell, params, previous(carry, None, sequence, states), sequence, states)
        return jnp.linalg.slogdet(jacobians(cell, params, a, states, WHOLE))[1].mean(0)

    wanted = of_determinants(case.params, case.carry)
    assert np.abs(found.exponents.sum(-1) - wanted).max() < 1e-9 * np.abs(wanted).max()
    few = _spectrum(cell, exponents=2, key=None)(case.params, case.carry, case.xs)
    assert few.exponents.shape == (2, 2)


def test_an_orthogonal_linear_net_has_zeros_and_a_dead_unit_none():
    net, params, xs, _ = _linear(1.0)
    found = _spectrum(net.layers[0].forward, transient=5)(params.cells[0], None, xs)
    assert np.abs(found.exponents).max() < 1e-12
    dead = jb.elman(2, 4, "relu")
    p = dead.init(jax.random.key(0))._replace(b=jnp.array([9.0, 9.0, 9.0, -99.0]))
    found = _spectrum(dead)(p, None, xs)
    assert jnp.isneginf(found.exponents[:, -1]).all()
    assert (found.finite[:, 0] == len(xs)).all()
    assert (found.finite[:, -1] == 0).all()


@pytest.mark.parametrize("dead", [0, 2])
def test_any_dead_unit_is_counted(dead):
    """R_ii is rounding there, not zero, when the unit is not the last."""
    cell = jb.elman(2, 4, "relu", recurrent=jb.orthogonal(0.1))
    params = cell.init(jax.random.key(0))._replace(b=jnp.full(4, 99.0).at[dead].set(-99.0))
    found = _spectrum(cell)(params, None, jnp.zeros((9, 2, 2)))
    assert jnp.isneginf(found.exponents[:, -1]).all()
    assert (np.asarray(found.finite) == [9, 9, 9, 0]).all()


def test_the_first_exponent_is_the_largest_where_no_unit_reads_another():
    cell = jb.indrnn(1, 3, "identity")
    params = cell.init(jax.random.key(0))._replace(w_h=jnp.array([0.2, 0.9, 0.5]))
    found = _spectrum(cell, transient=60)(params, None, jnp.zeros((70, 1)))
    assert np.allclose(jnp.exp(found.exponents), [0.9, 0.5, 0.2])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"exponents": 5}, "exponents: expected an integer from 1 to 4"),
        ({"transient": 20}, "transient: expected an integer from 0 to 19"),
    ],
)
def test_messages_of_lyapunov(more, message):
    net, params, xs, _ = _linear(1.0)
    with pytest.raises(ValueError, match=message):
        jb.lyapunov_spectrum(net.layers[0].forward, params.cells[0], None, xs, **more)


# Cures.


def test_omega_and_its_immediate_derivative_are_the_papers():
    """Equations (9) and (10) in NumPy, for one row of an Elman net; W_h only, all else a number."""
    cell = jb.elman(2, 3)
    net = jb.network([cell], jb.readout(3, 2))
    params = net.init(jax.random.key(0))
    params = params._replace(cells=(params.cells[0]._replace(w_h=1.5 * params.cells[0].w_h),))
    xs, targets = (jax.random.normal(jax.random.key(k), (4, 1, 2)) for k in (1, 2))
    run = functools.partial(jb.omega, net, jb.squared_error)
    value, grads = jax.jit(jax.value_and_grad(run))(params, None, xs, targets)

    p, _ = params
    w_x, w_h, b = map(np.asarray, p[0])
    s, hs = np.zeros(3), []
    for x in np.asarray(xs)[:, 0]:
        s = np.tanh(x @ w_x + s @ w_h + b)
        hs.append(s)
    ys = np.array(hs) @ np.asarray(params.readout.w_y) + np.asarray(params.readout.b_y)
    d_hs = -2 * (np.asarray(targets)[:, 0] - ys) @ np.asarray(params.readout.w_y).T

    def of(w):  # λ and the slopes as they are with w_h
        lam, total = np.zeros(3), 0.0
        for t in reversed(range(4)):
            lam = lam + d_hs[t]
            d_z = lam * (1 - hs[t] ** 2)
            total += (np.linalg.norm(d_z @ w.T) / np.linalg.norm(lam) - 1) ** 2
            lam = d_z @ w_h.T
        return total

    assert abs(value - of(w_h)) < 1e-12
    numeric = np.zeros((3, 3))
    for i, j in np.ndindex(3, 3):
        e = np.zeros((3, 3))
        e[i, j] = 1e-5
        numeric[i, j] = (of(w_h + e) - of(w_h - e)) / 2e-5
    assert np.linalg.norm(grads.cells[0].w_h - numeric) < 1e-7 * np.linalg.norm(numeric)
    assert (grads.cells[0].w_x == 0).all()
    assert (grads.readout.w_y == 0).all()


def test_omega_of_cut_rows_and_of_no_number():
    """A row whose gradient is cut is no part of the step, and a NaN is not left out of the sum."""
    net, params, xs, targets = _linear(1.0)
    run = functools.partial(jb.omega, net, jb.squared_error)
    cut = jnp.zeros((20, 3), bool).at[10, :2].set(True)
    assert abs(jax.jit(run)(params, None, xs, targets, cut=cut)) < 1e-20
    assert jnp.isnan(jax.jit(run)(params, None, xs.at[3, 0, 0].set(jnp.nan), targets))


def test_flossing_pulls_the_exponents_to_zero():
    cell = jb.elman(2, 4, recurrent=jb.orthogonal(0.5))
    params, xs = cell.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (10, 2, 2))
    loss = functools.partial(jb.flossing, cell, exponents=2)
    gradient = jax.jit(jax.grad(lambda p: loss(p, None, xs)))
    flat, unflatten = jax.flatten_util.ravel_pytree(params)
    way = jax.random.normal(jax.random.key(2), flat.shape)
    slope = jnp.vdot(jax.flatten_util.ravel_pytree(gradient(params))[0], way)
    value = jax.jit(lambda z: loss(unflatten(z), None, xs))
    assert abs((value(flat + 1e-5 * way) - value(flat - 1e-5 * way)) / 2e-5 / slope - 1) < 1e-7
    before = value(flat)
    for _ in range(30):
        params = jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient(params))
    assert value(jax.flatten_util.ravel_pytree(params)[0]) < 0.1 * before


def _by_hand_clipped(case, c):
    """λ of `clipped` for an Elman cell in NumPy: dE/dW_h, and the share of steps clipped."""
    w_x, w_h, b = map(np.asarray, case.params)
    xs, d_hs = np.asarray(case.xs), np.asarray(case.d_hs)
    s, hs = np.asarray(case.carry.h), [np.asarray(case.carry.h)]
    for x in xs:
        s = np.tanh(x @ w_x + s @ w_h + b)
        hs.append(s)
    lam, d_w, times = np.asarray(case.d_carry.h), 0, 0
    for t in reversed(range(len(xs))):
        lam = lam + d_hs[t]
        d_z = lam * (1 - hs[t + 1] ** 2)
        d_w = d_w + hs[t].T @ d_z
        lam = d_z @ w_h.T
        norm = np.linalg.norm(lam, axis=-1, keepdims=True)
        times += (norm > c).sum() if t else 0  # into the initial carry goes no step
        lam = lam * np.minimum(1, c / norm)
    return d_w, times / ((len(xs) - 1) * lam.shape[0])


def test_clipped_is_the_recursion_it_states():
    case = cases.make("elman-tanh", 7, (3,))
    for c in (0.3, 1.0, 1e9):
        d_w, share = _by_hand_clipped(case, c)
        found = w.manual(case, jb.clipped(c))[0].w_h
        assert np.linalg.norm(found - d_w) < 1e-12 * np.linalg.norm(d_w)
        assert (share > 0) == (c < 1e9)
    assert not w.wrong(w.manual(case, jb.clipped(1e9)), w.manual(case, jb.full()), 1e-15)


def test_the_share_of_steps_clipped():
    case = cases.make("elman-tanh", 7, (3,))
    case = case._replace(d_carry=jb.Carry(jnp.zeros((3, 4))))

    def loss(ys, targets):  # so that G_t is d_hs
        return (ys * targets).sum()

    net = jb.network([case.row.cell], jb.readout(4, 4))
    readout = jb.ReadoutParams(jnp.eye(4), jnp.zeros(4))
    run = jax.jit(functools.partial(jb.clipped_share, net, loss, max_norm=1.0))
    found = run(jb.NetworkParams((case.params,), readout), (case.carry,), case.xs, case.d_hs)
    assert abs(found[0] - _by_hand_clipped(case, 1.0)[1]) < 1e-15


def test_clipping_at_any_norm_of_half_the_width():
    """A norm above or below all that the dtype holds is no 0/0, and a NaN is no unclipped step."""
    net, params, xs, targets = _linear(1.0, steps=4)
    single = jax.tree.map(lambda z: z.astype(jnp.float32), (params, xs, targets))
    run = functools.partial(jb.value_and_grad(net, jb.squared_error), single[0], None, *single[1:])
    wanted = run()[1]
    for found, leaf in zip(
        jax.tree.leaves(run(gradient=jb.clipped(1e300))[1]), jax.tree.leaves(wanted), strict=True
    ):
        assert np.allclose(found, leaf, rtol=1e-5)
    assert all(jnp.isfinite(z).all() for z in jax.tree.leaves(run(gradient=jb.clipped(1e-300))[1]))
    share = jb.clipped_share(
        net, jb.squared_error, params, None, xs.at[0].set(jnp.nan), targets, max_norm=1.0
    )
    assert jnp.isnan(share).all()


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), "a"])
def test_a_norm_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="max_norm: expected a positive number"):
        jb.clipped(bad)


@pytest.mark.parametrize("spoilt", [jnp.nan, jnp.inf])
def test_one_bad_batch_changes_nothing_and_is_reported(spoilt):
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9))
    net = jb.network([jb.elman(2, 4)], jb.readout(4, 2))
    state = jb.init_train_state(jax.random.key(0), net, optimizer, (3,))
    train_steps = jb.make_train_steps(net, jb.squared_error, optimizer)
    xs = jax.random.normal(jax.random.key(1), (3, 5, 3, 2))
    good, bad = jnp.delete(xs, 1, axis=0), xs.at[1, 2, 0, 0].set(spoilt)
    after, metrics = train_steps(jax.tree.map(jnp.copy, state), jb.Batch(bad, xs))
    assert metrics.finite.tolist() == [True, False, True]
    without, _ = train_steps(state, jb.Batch(good, good))
    assert (int(after.step), int(after.skipped)) == (3, 1)
    after = after._replace(skipped=without.skipped)
    for found, wanted in zip(jax.tree.leaves(after[1:]), jax.tree.leaves(without[1:]), strict=True):
        assert (found == wanted).all()


def test_a_bad_first_batch_leaves_the_initial_carry():
    """Where the carry was None, there is one after the step; good or bad, of one structure."""
    net = jb.network([jb.elman(2, 4)], jb.readout(4, 2))
    state = jb.init_train_state(jax.random.key(0), net, SGD, (3,))
    xs = jnp.full((2, 3, 2), jnp.nan)
    after, metrics = jb.make_train_step(net, jb.squared_error, SGD)(
        state._replace(carry=None), jb.Batch(xs, xs)
    )
    assert not metrics.finite
    assert (after.carry[0].h == 0).all()

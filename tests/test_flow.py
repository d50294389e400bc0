"""The verdicts and bounds of `gradient_flow` agree with closed forms."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.linear_network import linear_network
from support.optimizers import SGD

import jax_bptt as jb
from jax_bptt.engine.phases import forward, linearise, previous
from jax_bptt.engine.run import Run
from jax_bptt.engine.sequence import Sequence
from jax_bptt.flow.bounds import spectral_radius
from jax_bptt.gradients.jacobians import WHOLE, jacobians


def _flow(net, params, xs, targets, **more):
    run = functools.partial(jb.gradient_flow, net, jb.squared_error, **more)
    return jax.jit(run)(params, None, xs, targets)


@pytest.mark.parametrize(("gain", "verdict"), [(0.5, "vanishing"), (1.0, "healthy"), (2.0, "exploding")])
def test_verdict_rate_and_bound_of_a_linear_network(gain, verdict):
    flow = _flow(*linear_network(gain))
    assert flow.verdicts == (verdict,)
    layer = flow.layers[0]
    for found in (layer.rate, layer.bound, layer.sigma_max[0], layer.spectral_radius[0]):
        assert abs(found - gain) < 1e-6
    assert np.allclose(layer.profile, gain ** np.arange(20), rtol=1e-10)
    assert abs(flow.bias[-1]) < 1e-12
    assert abs(flow.cosine[-1] - 1) < 1e-12
    assert layer.saturation == 0
    left = f"after 19 steps the gradient is {gain**19:.2g} times as large ({gain:.4g} a step)"
    assert f"layer 0: {verdict}, {left}, bound {gain:.4g} a step, saturated 0.0%, sigma_max" in str(flow)


def test_the_horizon_is_where_the_rest_is_below_eps():
    flow = _flow(*linear_network(0.5), eps=0.05)
    rest = np.cumsum(np.asarray(flow.lag_norm)[::-1])[::-1]
    assert flow.horizon == np.argmax(rest < 0.05 * rest[0])
    assert 2 < flow.horizon < 10
    assert _flow(*linear_network(1.0)).horizon == 20


def test_saturated_and_dead_units_are_counted():
    cell = jb.elman(2, 4, activation="relu")
    net = jb.network([cell], jb.readout(4, 2))
    params = net.init(jax.random.key(1))
    dead = params.cells[0]._replace(w_h=jnp.zeros((4, 4)), b=jnp.array([-99.0, 99.0, 99.0, 99.0]))
    xs = jax.random.normal(jax.random.key(0), (6, 3, 2))
    flow = _flow(net, params._replace(cells=(dead,)), xs, xs)
    assert flow.layers[0].saturation == 0.25


def test_a_gate_that_carries_the_gradient_is_not_saturated():
    """A GRU that keeps its state does not answer to its inputs; one that does neither is saturated."""
    net = jb.network([jb.gru(2, 4, update_bias=9.0)], jb.readout(4, 2))
    params, xs = net.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (6, 3, 2))
    flow = _flow(net, params, xs, xs)
    assert flow.layers[0].saturation == 0
    assert flow.layers[0].rate > 0.9
    gates = [z if g == "n" else z - 18 for g, z in zip("rzn", jnp.split(params.cells[0].b, 3), strict=True)]
    gates[2] = gates[2] + 9  # z shut: the state is the candidate, which is saturated
    shut = params.cells[0]._replace(b=jnp.concatenate(gates))
    assert _flow(net, params._replace(cells=(shut,)), xs, xs).layers[0].saturation == 1


def test_no_radius_is_given_of_a_matrix_that_a_step_may_use_in_any_way():
    """Here 0.1 w_h is used."""

    def step(params, s, x):
        return jb.Carry(x @ params.w_x + s.h @ (0.1 * params.w_h))

    cell = jb.step_cell(2, 4, step, init=jb.elman(2, 4).init)
    net = jb.network([cell], jb.readout(4, 2))
    params, xs = net.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (2, 3, 2))
    params = params._replace(cells=(params.cells[0]._replace(w_h=10 * jnp.eye(4)),))
    flow = _flow(net, params, xs, xs)
    assert flow.layers[0].spectral_radius.size == flow.layers[0].sigma_max.size == 0
    words = "healthy, after 1 step the gradient is 1 times as large (1 a step), bound 2 a step"
    assert f"layer 0: {words}\n" in str(flow)


def test_no_step_outgrows_its_bound():
    """η of every kind of cell is above ‖J_t‖ of every step and row."""
    for name in ("elman-tanh", "lstm-peephole", "indrnn", "own-layer-norm"):
        case = cases.make(name, 3, (2,))
        cell, net = case.row.cell, jb.network([case.row.cell], jb.readout(cases.H, 2))
        params = jb.NetworkParams((case.params,), net.readout.init(jax.random.key(0)))
        sequence = Sequence(case.xs)

        def norms(params, carry, cell=cell, sequence=sequence):
            run = Run(params, carry, None, sequence)
            states = forward(cell, run).states
            a = linearise(cell, run, previous(run, states), states)
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
    net, _, xs, targets = linear_network(0.9)
    state = jb.init_train_state(jax.random.key(0), net, SGD, (3,))
    train_step = jb.make_train_step(net, jb.squared_error, SGD)

    @jax.jit
    def step(state):
        flow = jb.gradient_flow(net, jb.squared_error, state.params, None, xs, targets, lags=5)
        return train_step(state, jb.Batch(xs, targets))[0], flow

    state, flow = step(state)
    assert flow.verdicts == ("healthy",)
    assert len(flow.bias) == 5


def test_a_gradient_that_is_not_finite_is_said_to_be_so():
    net, params, xs, targets = linear_network(1.0, steps=3)
    assert _flow(net, params, xs.at[0, 0, 0].set(jnp.nan), targets).verdicts == ("not finite",)


def test_a_reset_is_not_taken_for_a_vanishing_gradient():
    """A linear orthogonal net is healthy, whatever the sequences that share a batch."""
    net, params, xs, _ = linear_network(1.0)
    net = net._replace(readout=jb.readout(4, 2))
    reset = jnp.zeros((20, 3), bool).at[::5].set(True)
    flow = _flow(net, params, xs, xs, reset=reset)
    assert flow.verdicts == ("healthy",)
    assert np.allclose(flow.layers[0].profile[:5], 1)
    assert jnp.isnan(flow.layers[0].profile[5:]).all()


def test_a_gradient_that_is_zero_or_overflows_has_a_verdict():
    net, params, xs, targets = linear_network(4.0, steps=40)
    flow = _flow(net, params, xs, net.apply(params, None, xs)[1])
    assert flow.verdicts == ("unknown",)
    assert "layer 0: unknown, no gradient goes back a step, bound 4 a step" in str(flow)
    assert "no effective horizon within 40 steps" in str(flow)
    params, zeros, targets = jax.tree.map(lambda z: z.astype(jnp.float32), (params, 0 * xs, targets))
    flow = _flow(net, params, jnp.tile(zeros, (3, 1, 1)), targets)
    assert not jnp.isfinite(flow.grad_norm)
    assert flow.verdicts == ("exploding",)


def test_parameters_of_half_the_width():
    net, params, xs, _ = linear_network(1.0, steps=4)
    params, xs = jax.tree.map(lambda z: z.astype(jnp.bfloat16), (params, xs))
    flow = _flow(net, params, xs, jnp.ones((3, 2), jnp.bfloat16))
    assert flow.verdicts == ("healthy",)
    found = jb.lyapunov_spectrum(net.layers[0].forward, params.cells[0], None, xs)
    assert np.abs(found.exponents).max() < 0.01


@pytest.mark.parametrize(
    ("more", "message"),
    [({"eps": 1.0}, "eps: expected a share"), ({"lags": 1}, "lags: expected at least 2, got 1 lag of 20")],
)
def test_messages_of_gradient_flow(more, message):
    net, params, xs, targets = linear_network(1.0)
    run = functools.partial(jb.gradient_flow, net, jb.squared_error, **more)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(run, params, None, xs, targets)

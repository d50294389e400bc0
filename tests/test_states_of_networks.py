"""Networks and training with resets to given states, and with carries that hold keys and counters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support.witnesses as w
from cases import CELLS, H, I
from support import noisy_cell as noisy
from support.network_by_loop import by_loop, problem, some_marks, states_one_way
from support.optimizers import SGD
from support.roads import PROGRAMS
from support.states_programs import LSTM, NOISY, Runs, some

import jax_bptt as jb

LEARNED = jb.learn_carry(jb.gru(2 * H, H))
NETS = {  # the layers, a step for each of them, the methods, and the layers without starts of their own
    "both directions": (
        [jb.layer(LSTM[0], backward=jb.learn_carry(LSTM[0])), LEARNED],
        [LSTM[1], CELLS["gru"].plain],
        ["full"],
        (1,),
    ),
    "by chunks": (
        [LSTM[0], jb.lstm(H, 2 * H), LEARNED],
        [LSTM[1], LSTM[1], CELLS["gru"].plain],
        ["full", "checkpointed, few slots", "truncated to 3"],
        (0,),
    ),
}


def _problem(name):
    layers, plains, methods, without = NETS[name]
    net, marks = jb.network(layers, jb.readout(H, 2)), some_marks()
    marks["cut"] = np.roll(marks["reset"], 1, 0)
    params, carry, xs, targets = problem(net, marks)
    starts = some(net.initial_carry(params, xs.shape[:-1]), 7)
    starts = tuple(None if number in without else s for number, s in enumerate(starts))
    return net, plains, methods, (params, carry, xs, targets), marks, starts


def _squares(ys, targets, mask):
    return jnp.sum(jnp.where(mask[..., None], (ys - targets) ** 2, 0.0))


@pytest.mark.parametrize("name", NETS)
def test_starts_of_a_network_are_those_of_a_loop(name):
    """value_and_grad by layers and by chunks; net.apply with respect to starts as well."""
    net, plains, methods, (params, carry, xs, targets), marks, starts = _problem(name)

    def applied(method, params, starts):
        ys = net.apply(params, carry, xs, starts=starts, gradient=method, **marks)[1]
        return _squares(ys, targets, marks["mask"])

    def looped(program, params, starts):
        initial = net.initial_carry(params, xs.shape[:-1])
        whole = tuple(i if s is None else s for s, i in zip(starts, initial, strict=True))
        ys = by_loop(net, plains, params, carry, xs, {**marks, "starts": whole}, program)[1]
        return _squares(ys, targets, marks["mask"])

    def by_both(error, method):
        error, grads = jax.value_and_grad(functools.partial(error, method), (0, 1))(params, starts)
        return error, *grads

    def of_params(method):
        run = jb.value_and_grad(net, jb.squared_error)
        (error, _), grads = run(params, carry, xs, targets, gradient=method, starts=starts, **marks)
        return error, grads

    @jax.jit
    def everything():
        wanted = {program: by_both(looped, program) for program in {PROGRAMS[n][1] for n in methods}}
        of_methods = ((n, *PROGRAMS[n]) for n in methods)
        return {n: (of_params(m), by_both(applied, m), wanted[program]) for n, m, program in of_methods}

    for method, (of_params, of_both, wanted) in everything().items():
        assert not w.wrong({"apply": of_both}, {"apply": wanted}, 1e-12), method
        assert not w.wrong({"by hand": of_params}, {"by hand": wanted[:2]}, 1e-12), method


def test_a_training_step_goes_down_the_gradient_with_starts():
    """And two batches at once are two steps."""
    net, _, _, (params, _, xs, targets), marks, starts = _problem("both directions")
    batch = jb.Batch(xs, targets, **marks, starts=starts)
    _, grads = jb.value_and_grad(net, jb.squared_error)(params, None, xs, targets, starts=starts, **marks)
    state = jb.init_train_state(jax.random.key(0), net, SGD)._replace(params=params)
    once = jb.make_train_step(net, jb.squared_error, SGD, donate=False)
    after, _ = once(state, batch)
    assert not w.wrong(after.params, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), 1e-12)
    without, _ = once(state, batch._replace(starts=None))
    assert w.wrong(without.params, after.params, 1e-6)
    batches = jax.tree.map(lambda z: jnp.stack([z, z]), batch)
    both, _ = jb.make_train_steps(net, jb.squared_error, SGD, donate=False)(state, batches)
    assert not w.wrong(both.params, once(after, batch)[0].params, 1e-12)


# A carry with keys and counters


def test_a_network_is_trained_whose_carry_holds_a_key_that_goes_on():
    """Two batches against a loop; the second one draws on from where the first one ended."""
    net, rows = jb.network([noisy.CELL], jb.readout(H, 2)), (3,)
    state = jb.init_train_state(jax.random.key(0), net, SGD, rows)
    params, carry = state.params, noisy.start(state.params.cells[0], rows)
    step = jb.make_train_step(net, jb.squared_error, SGD, donate=False)
    for key in jax.random.split(jax.random.key(1)):
        xs, targets = (jax.random.normal(key, (4, *rows, size)) for size in (I, 2))
        state, metrics = step(state, jb.Batch(xs, targets))

        def error(params, carry=carry, xs=xs, targets=targets):
            last, states = states_one_way(noisy.plain, params.cells[0], carry._asdict(), xs, _BEGUN, False)
            z = states["h"] @ params.readout.w_y
            z = z + jnp.broadcast_to(params.readout.b_y, z.shape)
            return jnp.sum((z - targets) ** 2), noisy.Noisy(**last)

        grads, carry = jax.jit(jax.grad(error, has_aux=True))(params)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
        assert bool(metrics.finite)
        assert not w.wrong(state.params, params, 1e-12)
        assert (state.carry[0].key == carry.key).all()
    assert (state.carry[0].count == 8).all()


# nothing is reset, so any starts will do
_BEGUN = {"starts": noisy.start(noisy.init(jax.random.key(0)), (4, 3))._asdict()}


def test_a_stream_with_noise_has_the_gradient_of_the_sequence():
    runs = Runs(*NOISY, (2,), False, with_starts=False, steps=4)
    params, _, xs, _ = runs.fixed
    weights = jnp.cos(xs[..., :1] + jnp.arange(H, dtype=float).reshape(1, 1, H))
    state, total = jb.rtrl_init(noisy.CELL, params, (2,)), jax.tree.map(jnp.zeros_like, params)
    for t, x in enumerate(xs):
        marks = {name: mark[t] for name, mark in runs.marks.items()}
        state, _ = jb.rtrl_step(noisy.CELL, params, state, x, **marks)
        total = jax.tree.map(jnp.add, total, jb.rtrl_gradient(params, state, weights[t]))
    carry = noisy.start(params, (2,))._asdict()
    marks = {**runs.marks, "starts": runs.fixed[3]._asdict()}

    def error(params):
        return jnp.vdot(weights, states_one_way(noisy.plain, params, carry, xs, marks, False)[1]["h"])

    assert not w.wrong(total, jax.jit(jax.grad(error))(params), 1e-12)


def test_diagnostics_and_checks_take_a_carry_with_a_key():
    net, rows = jb.network([noisy.CELL], jb.readout(H, 2)), (2,)
    params = net.init(jax.random.key(0))
    xs, targets = jnp.ones((4, *rows, I)), jnp.zeros((4, *rows, 2))
    (_, _), grads = jb.value_and_grad(net, jb.squared_error)(params, None, xs, targets)
    terms = jb.credit(net, jb.squared_error, params, None, xs, targets)
    assert not w.wrong({"cells": terms.gradient}, {"cells": grads.cells}, 1e-12)
    (flow,) = jb.gradient_flow(net, jb.squared_error, params, None, xs, targets).layers
    flow = flow._replace(saturation=flow.profile)  # NaN for any step_cell
    assert all(np.isfinite(z).all() for z in jax.tree.leaves(flow))
    assert jb.check_gradient(noisy.CELL, steps=3).ok

"""The training step makes the right update, carries the state on, donates it, and reports its metrics."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import support.witnesses as w
from cases import METHODS
from support.optimizers import ADAM, SGD, lenient

import jax_bptt as jb

NET = jb.network([jb.elman(3, 6), jb.elman(6, 5)], jb.readout(5, 2))


def _batch(seed, steps=4, rows=2):
    k = jax.random.split(jax.random.key(seed))
    return jb.Batch(jax.random.normal(k[0], (steps, rows, 3)), jax.random.normal(k[1], (steps, rows, 2)))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_two_steps_equal_two_updates_by_hand(method):
    """The carry goes on into the second chunk, its gradient does not."""
    state = jb.init_train_state(jax.random.key(0), NET, SGD, (2,))
    params, carry = jax.tree.map(jnp.copy, (state.params, state.carry))
    step = jb.make_train_step(NET, jb.squared_error, SGD, gradient=method)
    for seed in range(2):
        batch = _batch(seed)
        state, metrics = step(state, batch)

        def loss(params, carry=carry, batch=batch):
            last, ys = NET.apply(params, carry, batch.xs, gradient=jb.autodiff())
            return jb.squared_error(ys, batch.targets), last

        (error, carry), grads = jax.value_and_grad(loss, has_aux=True)(params)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
        assert abs(float(metrics.loss) - float(error)) < 1e-12 * float(error)
        assert abs(float(metrics.grad_norm) - float(optax.tree.norm(grads))) < 1e-10
        assert bool(metrics.finite)
    assert int(state.step) == 2
    assert not w.wrong((state.params, state.carry), (params, carry), 1e-12)


def test_the_state_that_goes_in_is_donated():
    state = jb.init_train_state(jax.random.key(0), NET, ADAM, (2,))
    train_step = jb.make_train_step(NET, jb.squared_error, ADAM)
    after, _ = train_step(state, _batch(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    with pytest.raises(ValueError, match=r"train_step: state.carry\[0\].h: .* got a deleted .*donate=False"):
        train_step(after._replace(carry=state.carry), _batch(0))


@pytest.mark.parametrize(("loss", "skipped"), [(jb.squared_error, 0), (jb.softmax_cross_entropy, 1)])
def test_a_batch_of_no_rows_changes_nothing(loss, skipped):
    state = jb.init_train_state(jax.random.key(0), NET, SGD, (0,))
    batch = _batch(0, rows=0)
    targets = batch.targets if loss is jb.squared_error else jnp.zeros((4, 0), int)
    after, metrics = jb.make_train_step(NET, loss, SGD, donate=False)(state, batch._replace(targets=targets))
    assert (int(after.skipped), int(after.step)) == (skipped, 1)
    assert float(metrics.grad_norm) == 0 or skipped
    chex.assert_trees_all_equal(after.params, state.params)


def test_an_optimizer_that_keeps_the_parameters_shares_no_buffer_with_them():
    optimizer = optax.GradientTransformation(lambda p: p, lambda g, s, p=None: (g, s))
    state = jb.init_train_state(jax.random.key(0), NET, optimizer, (2,))
    state, metrics = jb.make_train_step(NET, jb.squared_error, optimizer)(state, _batch(0))
    assert bool(metrics.finite)


def test_a_batch_that_is_not_finite_is_reported():
    state = jb.init_train_state(jax.random.key(0), NET, SGD, (2,))
    batch = _batch(0)
    _, metrics = jb.make_train_step(NET, jb.squared_error, SGD)(
        state, batch._replace(xs=batch.xs.at[0, 0, 0].set(jnp.nan))
    )
    assert not bool(metrics.finite)
    assert np.isnan(metrics.loss)


def test_a_gradient_that_is_not_finite_is_reported_though_the_loss_is():
    def loss(ys, targets):
        return jnp.sum(jnp.sqrt(ys - ys))  # 0, with derivative inf - inf

    state = jb.init_train_state(jax.random.key(0), NET, SGD, (2,))
    _, metrics = jb.make_train_step(NET, loss, SGD)(state, _batch(0))
    assert float(metrics.loss) == 0
    assert not bool(metrics.finite)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_parameters_of_half_the_width_are_trained(dtype):
    """A gradient of norm 491 is one, though its square is no float16."""
    state, batch = jb.init_train_state(jax.random.key(0), NET, SGD), _batch(0)
    batch = batch._replace(targets=batch.targets + 30)
    grads = jb.value_and_grad(NET, jb.squared_error)(state.params, None, batch.xs, batch.targets)[1]
    norm = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(grads)))
    assert 300 < norm < 60_000
    half = jax.tree.map(lambda z: z.astype(dtype) if z.dtype == jnp.float64 else z, (state, batch))
    state, metrics = jb.make_train_step(NET, jb.squared_error, SGD)(*half)
    assert bool(metrics.finite)
    assert int(state.skipped) == 0
    assert metrics.grad_norm.dtype == jnp.float32
    np.testing.assert_allclose(metrics.grad_norm, norm, rtol=0.02)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_batches_of_which_no_update_is_made_are_counted(bad):
    batches = [_batch(seed) for seed in range(4)]
    spoiled = [b._replace(xs=b.xs.at[1, 0, 0].set(bad)) if i in (1, 2) else b for i, b in enumerate(batches)]
    one, many, clean = (jb.init_train_state(jax.random.key(0), NET, ADAM, (2,)) for _ in range(3))
    step, counts = jb.make_train_step(NET, jb.squared_error, ADAM), []
    for batch in spoiled:
        one, _ = step(one, batch)
        counts.append(int(one.skipped))
    many, metrics = jb.make_train_steps(NET, jb.squared_error, ADAM)(
        many, jax.tree.map(lambda *z: jnp.stack(z), *spoiled)
    )
    for i in (0, 3):
        clean, _ = step(clean, batches[i])
    assert counts == [0, 1, 2, 2]
    assert int(many.skipped) == int((~metrics.finite).sum()) == 2
    assert int(clean.skipped) == 0
    assert int(one.step) == 4
    chex.assert_trees_all_equal(one._replace(step=clean.step, skipped=clean.skipped), clean)


PLATEAU = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, accumulation_size=2)
LOOKAHEAD = lenient(optax.chain(optax.clip_by_global_norm(5.0), optax.lookahead(SGD, 2, 0.4)))
WANTS_MORE = {
    "a chain": lenient(optax.chain(optax.sgd(0.01), PLATEAU)),
    "every second batch": lenient(optax.MultiSteps(optax.polyak_sgd(), 2)),
    "two sets of parameters": LOOKAHEAD,
    "by parameter": lenient(
        optax.partition(
            {"cells": optax.contrib.momo(), "readout": optax.sgd(0.01)},
            lambda p: p._replace(cells=jax.tree.map(lambda _: "cells", p.cells), readout="readout"),
        )
    ),
}


@pytest.mark.parametrize("optimizer", WANTS_MORE.values(), ids=WANTS_MORE)
def test_an_optimizer_that_wants_more_equals_calls_of_it_by_hand(optimizer):
    """A batch that is not finite is none that it sees."""
    batches = [_batch(seed) for seed in range(7)]
    batches[3] = batches[3]._replace(xs=batches[3].xs.at[1, 0, 0].set(jnp.nan))
    state = jb.init_train_state(jax.random.key(0), NET, optimizer)
    params, opt_state = jax.tree.map(jnp.copy, (state.params, state.opt_state))
    train_steps = jb.make_train_steps(NET, jb.squared_error, optimizer)
    state, _ = train_steps(state, jax.tree.map(lambda *z: jnp.stack(z), *batches))

    @jax.jit
    def by_hand(params, opt_state, batch):
        def loss(p):
            return jb.squared_error(NET.apply(p, None, batch.xs, gradient=jb.autodiff())[1], batch.targets)

        error, grads = jax.value_and_grad(loss)(getattr(params, "fast", params))
        updates, opt_state = optimizer.update(grads, opt_state, params, value=error)
        return optax.apply_updates(params, updates), opt_state

    for batch in batches[:3] + batches[4:]:
        params, opt_state = by_hand(params, opt_state, batch)
    assert int(state.skipped) == 1
    assert isinstance(state.params, optax.LookaheadParams if optimizer is LOOKAHEAD else jb.NetworkParams)
    assert not w.wrong((state.params, state.opt_state), (params, opt_state), 1e-12)


def test_training_is_a_function_of_key_and_data():
    ends = []
    for _ in range(2):
        state = jb.init_train_state(jax.random.key(7), NET, ADAM, (2,))
        step = jb.make_train_step(NET, jb.squared_error, ADAM)
        for seed in range(3):
            state, _ = step(state, _batch(seed))
        ends.append(state)
    chex.assert_trees_all_equal(*ends)


def test_it_learns_to_remember():
    """Say what came three steps ago."""
    net = jb.network([jb.elman(1, 16)], jb.readout(16, 1))
    state = jb.init_train_state(jax.random.key(0), net, ADAM, (8,))
    step = jb.make_train_step(net, lambda ys, d: jnp.mean((ys - d) ** 2), ADAM)
    stream = jax.random.normal(jax.random.key(1), (300 * 10 + 3, 8, 1))
    losses = []
    for i in range(300):
        xs, targets = stream[3 + 10 * i : 13 + 10 * i], stream[10 * i : 10 * i + 10]
        state, metrics = step(state, jb.Batch(xs, targets))
        losses.append(float(metrics.loss))
    assert np.mean(losses[-20:]) < 0.1 * np.mean(losses[:5])


def test_many_steps_begin_from_a_whole_carry():
    state = jb.init_train_state(jax.random.key(0), NET, SGD, (2,))
    batches = jax.tree.map(lambda z: z[None], _batch(0))
    with pytest.raises(ValueError, match=r"state\.carry: expected .*, got tuple of None"):
        jb.make_train_steps(NET, jb.squared_error, SGD)(state._replace(carry=(None, state.carry[1])), batches)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_many_steps_in_one_dispatch_equal_one_after_the_other(bidirectional):
    cell = jb.elman(3, 6)
    net = jb.network(
        [jb.layer(cell, backward=cell, dropout=0.2) if bidirectional else cell],
        jb.readout(12 if bidirectional else 6, 2),
    )
    batches = [_batch(seed)._replace(key=jax.random.key(seed)) for seed in range(3)]
    one, many = (jb.init_train_state(jax.random.key(0), net, ADAM, (2,)) for _ in range(2))
    step, seen = jb.make_train_step(net, jb.squared_error, ADAM), []
    for batch in batches:
        one, metrics = step(one, batch)
        seen.append(metrics)
    steps = jb.make_train_steps(net, jb.squared_error, ADAM)
    for _ in range(2):  # the second call is not traced anew
        state = jax.tree.map(jnp.copy, many)
        state, metrics = steps(state, jax.tree.map(lambda *z: jnp.stack(z), *batches))
    assert steps._cache_size() == 1
    assert int(state.step) == 3
    assert not w.wrong((state.params, state.carry), (one.params, one.carry), 1e-12)
    np.testing.assert_allclose(metrics.loss, [m.loss for m in seen], rtol=1e-12)
    assert metrics.finite.all()


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ((1, 2), r"batches: expected a Batch, got tuple"),
        (jb.Batch(jnp.ones((3, 4, 2, 3)), jnp.ones((2, 4, 2, 2))), r"batches: expected one more axis, K"),
        (jb.Batch(jnp.ones((0, 4, 2, 3)), jnp.ones((0, 4, 2, 2))), r"batches: expected one more axis, K"),
        (
            _batch(0),
            r"batches\.xs: expected \[K, T, \*batch, I\] with the batch axes \(2,\) of state\.carry",
        ),
    ],
    ids=["no batch", "unequal K", "no steps", "one batch"],
)
def test_wrong_batches_are_refused(batches, message):
    state = jb.init_train_state(jax.random.key(0), NET, SGD, (2,))
    with pytest.raises(ValueError, match=message):
        jb.make_train_steps(NET, jb.squared_error, SGD)(state, batches)

"""The readout, the losses and value_and_grad agree with jax.grad of a loop over time."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import support.witnesses as w
from cases import METHODS

import jax_bptt as jb
from jax_bptt.networks.judged import Judged
from jax_bptt.networks.losses import value_and_slope

T, B, I, H, O = 5, 2, 3, 4, 6  # noqa: E741


def _quartic(ys, targets):
    """A loss of one's own, not even additive over time."""
    return jnp.sqrt(jnp.sum((ys - targets) ** 4) + 1)


def _last(ys, targets):
    return jb.squared_error(ys[-1], targets[-1])


NETWORKS = {
    "one layer": [jb.elman(I, H)],
    "two layers": [jb.elman(I, 5, activation="sigmoid"), jb.elman(5, H)],
    "three kinds": [
        jb.elman(I, 2, activation="identity"),
        jb.elman(2, 5, activation="relu"),
        jb.elman(5, H, activation=jnp.sin),
    ],
}
LOSSES = {
    "squared": jb.squared_error,
    "last": _last,
    "quartic": _quartic,
    "classes": jb.softmax_cross_entropy,
}


def _problem(cells, activation, loss, batch=(B,), dtype="float64"):
    net = jb.network(cells, jb.readout(H, O, activation=activation))
    keys = iter(jax.random.split(jax.random.key(3), 64))
    random = lambda z: jax.random.normal(next(keys), z.shape, dtype)  # noqa: E731
    params = jax.tree.map(lambda z: random(z) / len(z) ** 0.5, net.init(next(keys)))
    carry = jax.tree.map(random, net.initial_carry(params, batch))
    xs = jax.random.normal(next(keys), (T, *batch, I), dtype)
    targets = jax.random.normal(next(keys), (T, *batch, O), dtype)
    if loss is jb.softmax_cross_entropy:
        targets = jax.random.randint(next(keys), (T, *batch), 0, O)
    return net, params, carry, xs, targets


def _by_jax(net, loss, params, carry, xs, targets):
    """jax.grad of a loop over time that uses no unroll."""

    def run(params):
        states, ys = list(carry), []
        for x in xs:
            for layer, (cell, p) in enumerate(zip(net.layers, params.cells, strict=True)):
                u = x @ p.w_x + jnp.broadcast_to(p.b, (*x.shape[:-1], *p.b.shape))
                states[layer] = cell.forward.step({}, states[layer], (u,), (states[layer].h @ p.w_h,))
                x = states[layer].h
            z = x @ params.readout.w_y
            ys.append(net.readout.activation.g(z + jnp.broadcast_to(params.readout.b_y, z.shape)))
        return loss(jnp.stack(ys), targets), tuple(states)

    return jax.jit(jax.value_and_grad(run, has_aux=True))(params)


@pytest.mark.parametrize(
    ("cells", "loss"),
    [("three kinds", loss) for loss in LOSSES] + [("one layer", "squared"), ("two layers", "classes")],
)
def test_value_and_grad_equals_jax_grad_of_a_loop(cells, loss):
    loss = LOSSES[loss]
    net, *args = _problem(NETWORKS[cells], "tanh", loss)
    (error, last), wanted = _by_jax(net, loss, *args)
    for method in METHODS.values():
        (found_error, found_last), found = jax.jit(
            lambda *a, m=method: jb.value_and_grad(net, loss)(*a, gradient=m)
        )(*args)
        assert not w.wrong((found_error, found_last), (error, last), 1e-12)
        assert not w.wrong(found, wanted, 1e-12)


@pytest.mark.parametrize(
    "activation",
    ["identity", "tanh", "sigmoid", "relu", jnp.sin],
    ids=["identity", "tanh", "sigmoid", "relu", "sin"],
)
def test_every_readout_activation(activation):
    net, *args = _problem(NETWORKS["one layer"], activation, jb.squared_error)
    assert not w.wrong(
        jax.jit(jb.value_and_grad(net, jb.squared_error))(*args)[1],
        _by_jax(net, jb.squared_error, *args)[1],
        1e-12,
    )


@pytest.mark.parametrize("batch", [(), (1,), (2, 3)], ids=str)
def test_any_number_of_batch_axes(batch):
    net, *args = _problem(NETWORKS["two layers"], "identity", jb.softmax_cross_entropy, batch)
    found = jax.jit(jb.value_and_grad(net, jb.softmax_cross_entropy))(*args)[1]
    assert not w.wrong(found, _by_jax(net, jb.softmax_cross_entropy, *args)[1], 1e-12)


def test_single_precision_stays_single():
    net, *args = _problem(NETWORKS["two layers"], "tanh", jb.squared_error, dtype="float32")
    found = jax.jit(jb.value_and_grad(net, jb.squared_error))(*args)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {"float32"}
    assert not w.wrong(found[1], _by_jax(net, jb.squared_error, *args)[1], 1e-5)


def test_central_differences_of_the_whole_network():
    net, params, *rest = _problem(NETWORKS["two layers"], "sigmoid", jb.softmax_cross_entropy)
    flat, unflatten = jax.flatten_util.ravel_pytree(params)
    run = jb.value_and_grad(net, jb.softmax_cross_entropy)
    value = jax.jit(jax.vmap(lambda z: run(unflatten(z), *rest)[0][0]))
    steps = 1e-5 * jnp.eye(len(flat))
    differences = unflatten((value(flat[None] + steps) - value(flat[None] - steps)) / 2e-5)
    assert not w.wrong(jax.jit(run)(params, *rest)[1], differences, 1e-7)


def test_apply_is_differentiable_by_parameters_carry_and_inputs():
    net, params, carry, xs, targets = _problem(NETWORKS["two layers"], "tanh", jb.squared_error)

    def loss(method, *args):
        carry, ys = net.apply(*args, gradient=method)
        return jb.squared_error(ys, targets) + sum(jnp.sum(c.h**3) for c in carry)

    found, wanted = (
        jax.grad(lambda *a, m=m: loss(m, *a), (0, 1, 2))(params, carry, xs) for m in METHODS.values()
    )
    assert not w.wrong(found, wanted, 1e-12)


def test_value_and_grad_equals_jax_grad_of_apply():
    net, params, carry, xs, targets = _problem(NETWORKS["one layer"], "identity", jb.softmax_cross_entropy)
    (error, last), grads = jb.value_and_grad(net, jb.softmax_cross_entropy)(params, carry, xs, targets)

    def loss(params):
        last, ys = net.apply(params, carry, xs)
        return jb.softmax_cross_entropy(ys, targets), last

    (wanted_error, wanted_last), wanted = jax.value_and_grad(loss, has_aux=True)(params)
    assert not w.wrong((error, last), (wanted_error, wanted_last), 1e-12)
    assert not w.wrong(grads, wanted, 1e-12)


@pytest.mark.parametrize("loss", [jb.squared_error, jb.softmax_cross_entropy])
def test_hand_derived_loss_slopes_equal_jax_grad(loss):
    *_, targets = _problem(NETWORKS["one layer"], "identity", loss)
    ys = jax.random.normal(jax.random.key(0), (T, B, O))
    error, slope = value_and_slope(loss, ys, Judged(targets))
    wanted = jax.value_and_grad(lambda ys: loss(ys, targets))(ys)
    assert not w.wrong((error, slope), wanted, 1e-14)


def test_squared_error_is_the_articles_sum():
    ys, targets = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[0.0, 2.0], [1.0, 7.0]])
    assert float(jb.squared_error(ys, targets)) == 1 + 0 + 4 + 9


def test_softmax_cross_entropy_is_optax_averaged():
    ys = jax.random.normal(jax.random.key(0), (T, B, O))
    targets = jnp.arange(T * B).reshape(T, B) % O
    wanted = optax.softmax_cross_entropy_with_integer_labels(ys, targets).mean()
    assert abs(float(jb.softmax_cross_entropy(ys, targets) - wanted)) < 1e-14


@pytest.mark.parametrize("label", [-1, O])
def test_a_class_out_of_range_is_not_a_number(label):
    net, params, carry, xs, targets = _problem(NETWORKS["one layer"], "identity", jb.softmax_cross_entropy)
    (error, _), grads = jb.value_and_grad(net, jb.softmax_cross_entropy)(
        params, carry, xs, targets.at[0, 0].set(label)
    )
    assert np.isnan(error)
    assert np.isnan(grads.readout.w_y).any()
    slope = jax.grad(jb.softmax_cross_entropy)(jnp.zeros((2, O)), jnp.array([0, label]))
    assert np.isnan(slope[1]).all()
    assert np.isfinite(slope[0]).all()


def test_numpy_in_double_precision_is_taken_in_jax_precision():
    """With x64 off JAX casts NumPy's float64; params, carry, xs and targets alike."""
    net, *args = _problem(NETWORKS["one layer"], "identity", jb.squared_error)
    args = jax.tree.map(np.asarray, args)
    with jax.enable_x64(False):
        (error, _), grads = jb.value_and_grad(net, jb.squared_error)(*args)
        assert net.initial_carry(args[0], (2,))[0].h.dtype == "float32"
        assert float(jb.squared_error(np.ones((3, 1)), np.zeros((3, 1)))) == 3
        assert np.isfinite(jb.softmax_cross_entropy(np.zeros((3, 4)), np.ones(3, int)))
    assert {leaf.dtype.name for leaf in jax.tree.leaves((error, grads))} == {"float32"}


@pytest.mark.parametrize(("classes", "dtype"), [(256, "uint8"), (300, "uint8"), (128, "int8"), (6, "uint64")])
def test_narrow_and_unsigned_classes(classes, dtype):
    ys, targets = (
        jax.random.normal(jax.random.key(0), (4, classes)),
        jnp.array([0, 1, 5, min(classes, 120) - 1]),
    )
    found = jax.jit(value_and_slope, static_argnums=0)(
        jb.softmax_cross_entropy, ys, Judged(targets.astype(dtype))
    )
    wanted = jax.jit(jax.value_and_grad(jb.softmax_cross_entropy))(ys, targets)
    assert not w.wrong(found, wanted, 1e-14)


def test_a_loss_in_higher_precision_than_the_network():
    net, *args, targets = _problem(NETWORKS["one layer"], "tanh", jb.squared_error, dtype="float32")
    (error, _), grads = jb.value_and_grad(net, lambda ys, d: jnp.sum((ys - d).astype("float64") ** 2))(
        *args, targets
    )
    assert error.dtype == "float64"
    assert {leaf.dtype.name for leaf in jax.tree.leaves(grads)} == {"float32"}
    assert not w.wrong(grads, jb.value_and_grad(net, jb.squared_error)(*args, targets)[1], 1e-5)


def test_nan_reaches_the_loss_and_every_gradient():
    net, params, carry, xs, targets = _problem(NETWORKS["one layer"], "identity", jb.squared_error)
    (error, _), grads = jb.value_and_grad(net, jb.squared_error)(
        params, carry, xs.at[0, 0, 0].set(jnp.nan), targets
    )
    assert np.isnan(error)
    assert all(np.isnan(leaf).any() for leaf in jax.tree.leaves(grads))


def test_initial_parameters():
    cell = jb.elman(50, 40)
    params = cell.init(jax.random.key(0))
    assert np.allclose(params.w_h.T @ params.w_h, np.eye(40), atol=1e-12)
    assert abs(float(params.w_x.std()) * np.sqrt(50) - 1) < 0.1
    assert not params.b.any()
    net = jb.network([cell], jb.readout(40, 30))
    leaves = list(itertools.chain(jax.tree.leaves(net.init(jax.random.key(0)))))
    assert {leaf.dtype.name for leaf in leaves} == {"float64"}

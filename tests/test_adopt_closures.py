"""Functions and cells that read a value from outside: its gradient and its changes count."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.live import random_like
from support.witnesses import wrong

import jax_bptt as jb

B, T, I, H = 2, 6, 3, 4  # noqa: E741


@jax.numpy_rank_promotion("allow")
@jax.numpy_dtype_promotion("standard")
def test_a_weight_in_an_activation_of_keras_gets_its_gradient(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", os.environ.get("KERAS_BACKEND", "jax"))
    keras = pytest.importorskip("keras")
    from jax_bptt.adapters import keras as ours

    class Model(keras.Model):
        def __init__(self, layer):
            super().__init__()
            self.beta = self.add_weight(shape=(), initializer="ones", dtype="float64")
            self.layer = layer(H, activation=lambda z: jnp.tanh(self.beta.value * z), dtype="float64")

        def call(self, x):
            return self.layer(x)

    xs, found = random_like(0, jnp.zeros((B, T, I))), []
    for layer in (keras.layers.GRU, ours.GRU):
        model = Model(layer)
        model(xs)  # outside jit first: what is remembered must not be used later
        weights = [random_like(k, v.value) for k, v in enumerate(model.trainable_variables)]

        def loss(weights, model=model):
            return (model.stateless_call(weights, model.non_trainable_variables, xs)[0] ** 2).sum()

        found.append(jax.jit(jax.value_and_grad(loss))(weights))
    assert not wrong(found[1], found[0], 1e-12)


def test_a_function_that_has_changed_counts_in_linen():
    nn = pytest.importorskip("flax.linen")
    from jax_bptt.adapters import flax_linen

    scale = [1.0]
    cell = nn.SimpleCell(H, activation_fn=lambda z: jnp.tanh(scale[0] * z), param_dtype=jnp.float64)
    xs = random_like(0, jnp.zeros((B, T, I)))
    variables = nn.RNN(cell).init(jax.random.key(0), xs)
    for scale[0] in (1.0, 2.0):
        found, wanted = flax_linen.RNN(cell).apply(variables, xs), nn.RNN(cell).apply(variables, xs)
        np.testing.assert_allclose(found, wanted, rtol=1e-12)

    def loss(rnn, s):
        scale[0] = s
        return (rnn(cell).apply(variables, xs) ** 2).sum()

    gradients = [jax.grad(lambda s, rnn=rnn: loss(rnn, s))(3.0) for rnn in (flax_linen.RNN, nn.RNN)]
    np.testing.assert_allclose(*gradients, rtol=1e-12)


def test_a_step_cell_that_reads_another_traced_value_is_refused():
    eqx = pytest.importorskip("equinox")

    class Cell(eqx.Module):
        w: jax.Array
        f: object = eqx.field(static=True)
        input_size: int = I
        hidden_size: int = H

        def __call__(self, x, h):
            return self.f(x @ self.w + h)

    scale = [1.0]
    cell, xs = Cell(jnp.ones((I, H)), lambda z: jnp.tanh(scale[0] * z)), jnp.ones((T, I))

    def last(s):
        scale[0] = s
        return jb.unroll(*jb.adopt(cell), None, xs)[0].h.sum()

    assert last(1.0) != last(2.0)
    with pytest.raises(
        ValueError, match="adopt: cell: expected a step of its weights, its carry and x alone"
    ):
        jax.grad(last)(1.0)


@jax.numpy_rank_promotion("allow")
@jax.numpy_dtype_promotion("standard")
def test_a_layer_of_keras_as_activation_is_trained(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", os.environ.get("KERAS_BACKEND", "jax"))
    keras = pytest.importorskip("keras")
    from jax_bptt.adapters import keras as ours

    losses = []
    for layer in (keras.layers.LSTM, ours.LSTM):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [keras.Input((T, I)), layer(H, activation=keras.layers.PReLU(alpha_initializer="ones"))]
        )
        model.compile(keras.optimizers.SGD(0.1), "mse")
        xs = np.asarray(random_like(0, jnp.zeros((B, T, I))), "float32")
        losses.append(model.fit(xs, np.ones((B, H)), epochs=3, verbose=0, shuffle=False).history["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-5)

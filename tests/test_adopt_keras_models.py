"""Models with our layers are trained, saved and loaded by Keras as those with its own are."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from support.keras_layers import (
    MASK,
    SOME,
    B,
    H,
    I,
    T,
    as_keras_needs_it,  # noqa: F401  (a fixture of every test)
    keras,
    made,
    ours,
    primals,
)

import jax_bptt as jb
from jax_bptt.adapters import adopted

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras'


def model_of(module: Any, **options: Any) -> Any:
    """Words of unequal lengths, through both directions of an LSTM, a layer that goes backwards, a GRU."""
    keras.utils.clear_session()  # or the names count on
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((T,)),
            keras.layers.Embedding(9, I, mask_zero=True),
            keras.layers.Bidirectional(module.LSTM(H, return_sequences=True, dropout=0.3, seed=1, **options)),
            module.SimpleRNN(H, return_sequences=True, go_backwards=True, dropout=0.2, seed=2, **options),
            module.GRU(H, dropout=0.2, seed=3, **options),
            keras.layers.Dense(1),
        ]
    )


WORDS = np.where(MASK, np.arange(1, 25).reshape(4, 6) % 8 + 1, 0)[[0, 1, 3, 3, 0, 1, 3, 0]]
TARGETS = np.sin(np.arange(8.0)).astype("float32")[:, None]


def trained(model: Any) -> Any:
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model.fit(WORDS, TARGETS, batch_size=4, epochs=3, shuffle=False, verbose=0)


def test_a_model_is_trained_as_by_keras_and_traced_once(monkeypatch):
    traces = []

    def counted(*args, **kwargs):
        traces.append(args)
        return adopted.run(*args, **kwargs)

    monkeypatch.setattr(ours, "run", counted)
    theirs, mine = model_of(keras.layers), model_of(ours)
    mine.set_weights(theirs.get_weights())
    assert [w.path for w in mine.weights] == [w.path for w in theirs.weights]
    history = trained(mine)
    once = len(traces)
    mine.fit(WORDS, TARGETS, batch_size=4, epochs=2, shuffle=False, verbose=0)
    assert len(traces) == once > 0
    wanted = trained(theirs)
    theirs.fit(WORDS, TARGETS, batch_size=4, epochs=2, shuffle=False, verbose=0)
    np.testing.assert_allclose(history.history["loss"], wanted.history["loss"], rtol=1e-5)
    assert history.history["loss"][-1] != history.history["loss"][0]
    for a, b in zip(mine.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(mine.predict(WORDS, verbose=0), theirs.predict(WORDS, verbose=0), rtol=1e-4)
    np.testing.assert_allclose(*(m.evaluate(WORDS, TARGETS, verbose=0) for m in (mine, theirs)), rtol=1e-4)


def test_files_are_exchanged(tmp_path):
    theirs, mine = model_of(keras.layers), model_of(ours, gradient=jb.truncated(2))
    for source, target in [(theirs, mine), (mine, model_of(keras.layers))]:
        source.save_weights(tmp_path / "a.weights.h5")
        target.load_weights(tmp_path / "a.weights.h5")
        for a, b in zip(source.get_weights(), target.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    mine.save(tmp_path / "a.keras")
    for again in (keras.models.load_model(tmp_path / "a.keras"), keras.models.clone_model(mine)):
        assert [type(layer).__name__ for layer in again.layers[2:4]] == ["SimpleRNN", "GRU"]
        layers = [again.layers[1].forward_layer, again.layers[1].backward_layer, *again.layers[2:4]]
        assert [layer.gradient for layer in layers] == [jb.truncated(2)] * 4
        assert not any(layer.use_cudnn for layer in layers)  # or Bidirectional would take another loop
    again = keras.models.load_model(tmp_path / "a.keras")
    np.testing.assert_array_equal(again.predict(WORDS, verbose=0), mine.predict(WORDS, verbose=0))


METHODS = [
    jb.full(),
    jb.full(chunk=3, recompute=0.5),
    jb.clipped(1.0),
    jb.fused(jb.truncated(2)),
    jb.parallel(jb.newton(iterations=3)),
    jb.artbp(0.1),
]


@pytest.mark.parametrize("gradient", METHODS, ids=repr)
def test_a_method_is_saved_as_its_call(gradient):
    config = keras.saving.serialize_keras_object(ours.GRU(H, gradient=gradient))
    assert keras.saving.deserialize_keras_object(config).gradient == gradient


def test_a_stateful_layer_goes_on_where_it_stopped():
    whole = made(ours, "LSTM", **SOME, return_sequences=True)
    parts = made(ours, "LSTM", **SOME, return_sequences=True, stateful=True)
    parts.set_weights(whole.get_weights() + [np.zeros((B, H))] * (len(parts.weights) - 3))
    xs = primals("LSTM", whole)[2]
    found = jnp.concatenate([parts(xs[:, :2]), parts(xs[:, 2:])], 1)
    np.testing.assert_allclose(found, whole(xs), rtol=1e-12)
    parts.reset_state()
    np.testing.assert_allclose(parts(xs), whole(xs), rtol=1e-12)

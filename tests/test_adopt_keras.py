"""The layers of Keras give the same outputs, gradients, files and training with our gradient as with its own.

`python tests/test_adopt_keras.py` prints the largest ratio of norms of every row.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import conftest  # noqa: F401  (x64 and strict numerics, also when this file is run as a script)
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.live import compared, largest, random_like
from support.refusals import refused
from support.witnesses import ratios

os.environ["KERAS_BACKEND"] = "jax"
keras: Any = pytest.importorskip("keras")

import jax_bptt as jb  # noqa: E402
from jax_bptt.adapters import adopted  # noqa: E402
from jax_bptt.adapters import keras as ours  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras'

T, B, I, H = 6, 4, 2, 3  # noqa: E741
MASK = np.array([[1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 1, 0], [0] * 6, [1] * 6], bool)
SOME, NONE = {"activation": jnp.tanh}, {"activation": jnp.tanh, "use_bias": False}  # Keras' own is float32
CELLS = {
    "SimpleRNN": ("SimpleRNN", SOME),
    "SimpleRNN, relu, no bias": ("SimpleRNN", {"activation": "relu", "use_bias": False}),
    "SimpleRNN, softmax": ("SimpleRNN", {"activation": "softmax"}),
    "LSTM": ("LSTM", SOME),
    "LSTM, no bias, other gates": ("LSTM", NONE | {"recurrent_activation": "hard_sigmoid"}),
    "LSTM, one product a gate": ("LSTM", SOME | {"implementation": 1}),
    "GRU, reset after": ("GRU", SOME),
    "GRU, reset after, no bias": ("GRU", NONE),
    "GRU, reset after, elu": ("GRU", {"activation": "elu"}),
    "GRU, reset before": ("GRU", SOME | {"reset_after": False}),
    "GRU, reset before, no bias": ("GRU", NONE | {"reset_after": False}),
    "GRU, reset before, other gates": ("GRU", SOME | {"reset_after": False, "recurrent_activation": "silu"}),
}
MARKS = {
    "": (None, {}),
    "mask": (MASK, {}),
    "backwards": (None, {"go_backwards": True}),
    "mask, backwards": (MASK, {"go_backwards": True}),
    "mask, zeros": (MASK, {"zero_output_for_mask": True}),
}
RETURNS = {"return_sequences": True, "return_state": True}


@pytest.fixture(autouse=True)
def _as_keras_needs_it() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def made(module: Any, name: str, dtype: str = "float64", **options: Any) -> Any:
    layer = getattr(module, name)(H, dtype=dtype, **options)
    layer.build((B, T, I))
    return layer


def pair(name: str, gradient: Any = jb.full(), **options: Any) -> tuple[Any, Any]:
    """A layer of Keras and ours, with equal arguments and equal weights."""
    theirs, mine = made(keras.layers, name, **options), made(ours, name, gradient=gradient, **options)
    mine.set_weights(theirs.get_weights())
    return theirs, mine


def function_of(layer: Any, mask: Any) -> Any:
    """(weights, states, xs) -> all that the layer returns."""
    fixed = [variable.value for variable in layer.non_trainable_variables]

    def call(weights: Any, states: Any, xs: Any) -> Any:
        return [layer.stateless_call(weights, fixed, xs, initial_state=states, mask=mask)[0]]

    return call


def primals(name: str, layer: Any) -> tuple[Any, Any, Any]:
    weights = random_like(2, [w.value for w in layer.weights])
    shapes = [jnp.zeros((B, H))] * (2 if name == "LSTM" else 1), jnp.zeros((B, T, I))
    return weights, *(random_like(3 + k, shape) for k, shape in enumerate(shapes))


def ratios_of(row: str, marks: str, **returns: bool) -> dict[str, float]:
    (name, options), (mask, more) = CELLS[row], MARKS[marks]
    theirs, mine = pair(name, **options, **more, **returns)
    return compared(function_of(theirs, mask), function_of(mine, mask), *primals(name, mine))


@pytest.mark.parametrize("marks", MARKS)
@pytest.mark.parametrize("row", CELLS)
def test_a_layer_is_that_of_keras(row, marks):
    found = ratios_of(row, marks, **RETURNS)
    assert max(found.values()) < 1e-12, found


@pytest.mark.parametrize("marks", MARKS)
def test_the_last_output_alone(marks):
    found = ratios_of("LSTM", marks)
    assert max(found.values()) < 1e-12, found


@pytest.mark.parametrize("name", ["SimpleRNN", "LSTM", "GRU"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_cell_is_adopted_inside_a_loss_and_the_gradient_reaches_its_weights(name, wrapped):
    layer = made(keras.layers, name, **SOME, **RETURNS)
    cell = layer if wrapped else layer.cell

    def adopted_and_run(weights, states, xs):
        mine, params = jb.adopt(cell, weights)
        carry = type(mine.initial_carry(params, (B,)))(*states)
        last, hs = jb.unroll(mine, params, carry, xs.swapaxes(0, 1))
        return [(hs.swapaxes(0, 1), *last)]

    found = compared(function_of(layer, None), adopted_and_run, *primals(name, layer))
    assert max(found.values()) < 1e-12, found


def test_without_params_it_is_the_variables_that_count():
    layer = made(keras.layers, "GRU", **SOME)
    weights, _, xs = primals("GRU", layer)

    def last_by(params):
        def last(weights, xs):
            with keras.StatelessScope(zip(layer.weights, weights, strict=True)):
                cell, params_of_cell = jb.adopt(layer, params)
            return [jb.unroll(cell, params_of_cell, None, xs.swapaxes(0, 1))[0].h]

        return last

    fixed = [v.value for v in layer.non_trainable_variables]
    found = compared(lambda w, xs: [layer.stateless_call(w, fixed, xs)[0]], last_by(None), weights, xs)
    assert max(found.values()) < 1e-12, found
    cells = [jb.adopt(layer)[0], jb.adopt(made(keras.layers, "GRU", **SOME))[0]]
    assert cells[0] is cells[1] is jb.adopt(layer.cell, layer.get_weights())[0]
    assert jb.adopt(made(keras.layers, "LSTM", "float32"))[0] is jb.lstm(I, H)
    frozen = jax.jit(jax.grad(lambda w, xs: last_by(layer.get_weights())(w, xs)[0].sum()))(weights, xs)
    assert not any(jnp.any(d) for d in frozen)


@keras.saving.register_keras_serializable("tests")
class TwoStates(keras.Layer):
    """A cell whose output is no state, and which says neither how it starts nor what it returns."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units, self.state_size, self.output_size = units, [units, 1], units + 1

    def build(self, shape):
        self.kernel = self.add_weight((shape[-1] + self.units, self.units), name="kernel")

    def call(self, inputs, states):
        h = jnp.sin(keras.ops.concatenate([inputs, states[0]], -1) @ self.kernel)
        mean = 0.9 * states[1] + keras.ops.mean(h, -1, keepdims=True)
        return keras.ops.concatenate([h, mean], -1), [h, mean]


OTHERS = {
    "a cell of one's own": lambda: TwoStates(H, dtype="float64"),
    "several cells": lambda: keras.layers.StackedRNNCells(
        [keras.layers.LSTMCell(3, **SOME, dtype="float64"), keras.layers.GRUCell(2, **SOME, dtype="float64")],
        dtype="float64",
    ),
}


@pytest.mark.parametrize("gradient", [jb.full(), jb.checkpointed()], ids=repr)
@pytest.mark.parametrize("row", OTHERS)
def test_any_other_cell_becomes_a_step_cell(row, gradient):
    layer = keras.layers.RNN(OTHERS[row](), return_sequences=True, dtype="float64")
    layer.build((B, T, I))
    weights = random_like(2, [w.value for w in layer.weights])
    xs = random_like(3, jnp.zeros((B, T, I)))
    fixed = [v.value for v in layer.non_trainable_variables]

    def mine(weights, xs):
        cell, params = jb.adopt(layer, weights)
        return [jb.unroll(cell, params, None, xs.swapaxes(0, 1), gradient=gradient)[1].swapaxes(0, 1)]

    found = compared(lambda w, xs: [layer.stateless_call(w, fixed, xs)[0]], mine, weights, xs)
    assert max(found.values()) < 1e-12, found
    assert jb.adopt(layer)[0] is jb.adopt(layer.cell, layer.get_weights())[0]


def test_every_gradient_method_and_the_transformations_of_jax():
    layer = made(ours, "LSTM", **SOME)
    args = primals("LSTM", layer)

    def gradient_by(layer):
        return jax.jit(jax.grad(lambda *a: (function_of(layer, None)(*a)[0] ** 2).sum(), argnums=(0, 1, 2)))

    def gradient_of(method):
        return gradient_by(made(ours, "LSTM", gradient=method, **SOME))(*args)

    wanted = gradient_of(jb.full())
    for method in [jb.checkpointed(), jb.rtrl(), jb.full(chunk=2), jb.autodiff()]:
        assert max(ratios(gradient_of(method), wanted).values()) < 1e-12, method
    cut = gradient_of(jb.truncated(2))
    assert max(ratios(cut, wanted).values()) > 1e-3

    def by_unroll(weights, states, xs):
        cell, params = jb.adopt(layer, weights)
        carry = jb.LSTMCarry(*states)
        last, _ = jb.unroll(cell, params, carry, xs.swapaxes(0, 1), gradient=jb.truncated(2))
        return (last.h**2).sum()

    assert max(ratios(cut, jax.jit(jax.grad(by_unroll, argnums=(0, 1, 2)))(*args)).values()) < 1e-12
    many = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), args)
    each = jax.jit(jax.vmap(gradient_by(layer)))(*many)
    first = jax.tree.map(lambda a: a[0], each)
    assert max(ratios(first, wanted).values()) < 1e-12


def test_padding_even_nan_affects_nothing():
    mine = made(ours, "GRU", return_sequences=True, **SOME)
    weights, states, xs = primals("GRU", mine)
    spoiled = jnp.where(jnp.asarray(MASK)[..., None], xs, jnp.nan)
    call = jax.jit(jax.value_and_grad(lambda w, xs: function_of(mine, MASK)(w, states, xs)[0].sum()))
    for a, b in zip(jax.tree.leaves(call(weights, xs)), jax.tree.leaves(call(weights, spoiled)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_masks_of_another_form():
    mine = made(ours, "GRU", return_sequences=True, **SOME)
    xs = primals("GRU", mine)[2]
    wanted = mine(xs, mask=MASK)
    for mask in (MASK[..., None], MASK.astype("int32"), np.stack([MASK, ~MASK & False], -1)):
        np.testing.assert_array_equal(mine(xs, mask=jnp.asarray(mask)), wanted)


# Models: what is Keras' stays Keras'


def model_of(module: Any, **options: Any) -> Any:
    """Words of unequal lengths, through both directions of an LSTM, a layer that goes backwards, a GRU."""
    keras.utils.clear_session()  # or the names count on
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
    model.compile(keras.optimizers.SGD(0.5), "mse")
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


def test_mixed_precision():
    """Operands of products are rounded, states are not: nearer to float32 than Keras' own layer."""
    exact, _ = pair("LSTM", dtype="float32")
    theirs, mine = pair("LSTM", dtype="mixed_bfloat16")
    xs = primals("LSTM", exact)[2].astype("float32")
    for layer in (theirs, mine):
        layer.set_weights(exact.get_weights())
    assert mine(xs).dtype == theirs(xs).dtype == jnp.bfloat16
    assert {w.dtype for w in mine.weights} == {"float32"}
    fixed = [v.value for v in mine.non_trainable_variables]

    def d_weights(layer):
        weights = [w.value for w in layer.trainable_variables]
        final = lambda w: layer.stateless_call(w, fixed, xs)[0].astype("float32")  # noqa: E731
        return jax.jit(jax.grad(lambda w: (final(w) ** 2).sum()))(weights)

    errors = [max(ratios(d_weights(layer), d_weights(exact)).values()) for layer in (mine, theirs)]
    assert 1e-5 < errors[0] < 0.02
    assert errors[0] < errors[1]
    cell, params = jb.adopt(mine)
    assert cell.dtype == jnp.bfloat16
    assert params.w_h.dtype == jnp.float32
    short = made(ours, "GRU", "bfloat16", recurrent_initializer="uniform")
    assert short(xs.astype(jnp.bfloat16)).dtype == jb.adopt(short)[1].w_h.dtype == jnp.bfloat16


def test_rows_on_several_devices():
    _, mine = pair("LSTM", **SOME)
    weights, states, xs = primals("LSTM", mine)
    loss = jax.jit(
        jax.grad(lambda w, s, xs: (function_of(mine, None)(w, s, xs)[0] ** 2).sum(), argnums=(0, 1, 2))
    )
    wanted = loss(weights, states, xs)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    across = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None))
    split = loss(jax.device_put(weights, across), jax.device_put(states, spread), jax.device_put(xs, spread))
    assert max(ratios(split, wanted).values()) < 1e-12


class Wild(keras.Layer):
    """A cell that draws random numbers."""

    def __init__(self):
        super().__init__()
        self.state_size, self.seed = H, keras.random.SeedGenerator(0)

    def build(self, shape):
        self.kernel = self.add_weight((shape[-1], H))

    def call(self, inputs, states):
        h = keras.random.normal((1, H), seed=self.seed) + inputs @ self.kernel
        return h, [h]


class Weightless(keras.Layer):
    """A cell that counts."""

    state_size = 1

    def call(self, inputs, states):
        return states[0], [states[0] + 1]


def built(cell: Any) -> Any:
    cell.build((None, I))
    return cell


def _lstm() -> Any:
    return made(keras.layers, "LSTM", "float32")


_by_hand = jb.full()._replace(name="mine")
BAD = {
    "no built cell": (
        lambda: jb.adopt(keras.layers.GRU(H)),
        r"adopt: cell: expected a cell with weights, got GRUCell, which is not built; build it first: call",
    ),
    "backwards": (
        lambda: jb.adopt(made(keras.layers, "GRU", go_backwards=True)),
        r"adopt: cell.go_backwards: expected False, got True; pass reverse=True to jb.unroll",
    ),
    "stateful": (
        lambda: jb.adopt(made(ours, "GRU", stateful=True)),
        r"adopt: cell.stateful: expected False, got True; keep the carry yourself: jb.unroll returns it",
    ),
    "dropout": (
        lambda: jb.adopt(built(keras.layers.LSTMCell(H, dropout=0.5))),
        r"adopt: cell.dropout: expected 0, got 0.5; make it without, and drop inputs by a keras.layers.Drop",
    ),
    "recurrent dropout": (
        lambda: jb.adopt(
            built(keras.layers.StackedRNNCells([keras.layers.LSTMCell(H, recurrent_dropout=0.5)]))
        ),
        r"adopt: cell.recurrent_dropout: expected 0, got 0.5; make it without; jb.layer\(cell, recurrent_d",
    ),
    "no cell": (
        lambda: jb.adopt(keras.layers.Bidirectional(keras.layers.GRU(H))),
        r"adopt: cell: expected a cell of Keras or a layer that runs one.*got Bidirectional; pass the layers",
    ),
    "params of another number": (
        lambda: jb.adopt(_lstm(), _lstm().get_weights()[:2]),
        r"adopt: params: expected a list of 3 arrays, got list of .*; pass them as cell.get_weights\(\)",
    ),
    "params of another shape": (
        lambda: jb.adopt(_lstm(), _lstm().get_weights()[::-1]),
        r"adopt: params: expected arrays shaped as those of cell.get_weights\(\), got ValueError: Invalid",
    ),
    "half precision": (
        lambda: jb.adopt(made(keras.layers, "GRU", "mixed_float16")),
        r"adopt: dtype: expected a policy such as float32 or mixed_bfloat16, got mixed_float16; in float16 a",
    ),
    "half precision of a layer": (
        lambda: ours.GRU(H, dtype="mixed_float16"),
        r"keras.GRU: dtype: expected a policy such as float32 or mixed_bfloat16, got mixed_float16",
    ),
    "no weights": (
        lambda: jb.adopt(built(Weightless())),
        r"adopt: cell: expected a cell with weights, got Weightless; run it by jb.scan",
    ),
    "two axes of features": (
        lambda: jb.adopt(made(keras.layers, "ConvLSTM1D", "float32", kernel_size=2)),
        r"adopt: cell: expected a cell whose step takes one row, x \[I\], got ValueError: Kernel shape",
    ),
    "random numbers in a step": (
        lambda: jb.adopt(built(Wild())),
        r"adopt: cell: expected .*a step that changes no variable, got wild.*; draw no random numbers in it",
    ),
    "recurrent dropout of a layer": (
        lambda: ours.LSTM(H, recurrent_dropout=0.5),
        r"keras.LSTM: recurrent_dropout: expected 0, got 0.5; use dropout, or a network with jb.layer\(cell",
    ),
    "a loop in the program": (
        lambda: ours.SimpleRNN(H, unroll=True),
        r"keras.SimpleRNN: unroll: expected False, got True; leave it out: it changes no number",
    ),
    "another loop": (
        lambda: ours.GRU(H, use_cudnn=True),
        r"keras.GRU: use_cudnn: expected 'auto' or False, as the loop over time is another, got True; leave",
    ),
    "all inputs dropped": (
        lambda: ours.GRU(H, dropout=1.0),
        r"keras.GRU: dropout: expected less than 1, got 1.0; pass 0 to drop nothing; Keras' LSTM ignores 1",
    ),
    "inputs dropped for each gate": (
        lambda: ours.GRU(H, dropout=0.5, implementation=1),
        r"keras.GRU: implementation: expected 2 beside dropout, got 1; leave it out: 2 drops the same inputs",
    ),
    "no gradient method": (
        lambda: ours.GRU(H, gradient=jb.full),
        r"keras.GRU: gradient: expected a gradient method, got function; pass jb.full\(\), with parentheses",
    ),
    "a gradient that no call makes": (
        lambda: ours.GRU(H, gradient=_by_hand).get_config(),
        r"gradient: expected a method as a call such as jb.truncated\(2\) makes it, got .*; save the weights",
    ),
    "a gradient of another version": (
        lambda: ours.GRU.from_config(ours.GRU(H).get_config() | {"gradient": {"quantum": {}}}),
        r"gradient: expected the call of one of artbp, .*truncated, got \{quantum: \{\}\}; load it with the",
    ),
}

test_messages = refused(BAD)


def test_another_backend_is_refused(monkeypatch):
    layer = _lstm()
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    for call in (lambda: ours.LSTM(H), lambda: jb.adopt(layer)):
        with pytest.raises(
            ValueError, match=r"keras.backend: expected jax, got torch; set the environment v"
        ):
            call()


def main() -> None:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for row in CELLS:
            found = [ratios_of(row, marks, **RETURNS) for marks in MARKS]
            worst = {kind: max(largest(f, kind) for f in found) for kind in ("outputs", "gradients")}
            print(f"{row:32} outputs {worst['outputs']:.1e}   gradients {worst['gradients']:.1e}")


if __name__ == "__main__":
    main()

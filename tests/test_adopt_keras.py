"""The layers of Keras give the same outputs, gradients, files and training with our gradient as with its own.

`python tests/test_adopt_keras.py` prints the largest ratio of norms of every row.
"""

from __future__ import annotations

import conftest  # noqa: F401  (x64 and strict numerics, also when this file is run as a script)
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.keras_layers import (
    MASK,
    NONE,
    SOME,
    B,
    H,
    I,
    T,
    as_keras_needs_it,  # noqa: F401  (a fixture of every test)
    function_of,
    keras,
    made,
    ours,
    pair,
    primals,
)
from support.live import compared, largest, random_like
from support.witnesses import ratios

import jax_bptt as jb

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras'

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


def test_mixed_precision():
    """Operands of products are rounded, states are not: nearer to float32 than Keras' own layer."""
    keras.utils.set_random_seed(0)
    exact, _ = pair("LSTM", dtype="float32")
    theirs, mine = pair("LSTM", dtype="mixed_bfloat16")
    xs = primals("LSTM", exact)[2].astype("float32")
    for layer in (theirs, mine):
        layer.set_weights(exact.get_weights())
    assert mine(xs).dtype == theirs(xs).dtype == jnp.bfloat16
    assert {w.dtype for w in mine.weights} == {"float32"}

    def by_its_cell(weights):
        cell, params = jb.adopt(mine, weights)
        steps = xs.astype(jnp.bfloat16).astype("float32").swapaxes(0, 1)
        return jb.unroll(cell, params, None, steps)[0].h.astype(jnp.bfloat16)

    def d_weights(last):
        weights = [w.value for w in exact.trainable_variables]
        return jax.jit(jax.grad(lambda w: (last(w).astype("float32") ** 2).sum()))(weights)

    def d_of(layer):
        def last(weights):  # stateless_call would leave out what __call__ does about dtypes
            with keras.StatelessScope(zip(layer.weights, weights, strict=True)):
                return layer(xs)

        return d_weights(last)

    assert max(ratios(d_of(mine), d_weights(by_its_cell)).values()) < 1e-5
    errors = [max(ratios(d_of(layer), d_of(exact)).values()) for layer in (mine, theirs)]
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


def main() -> None:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for row in CELLS:
            found = [ratios_of(row, marks, **RETURNS) for marks in MARKS]
            worst = {kind: max(largest(f, kind) for f in found) for kind in ("outputs", "gradients")}
            print(f"{row:32} outputs {worst['outputs']:.1e}   gradients {worst['gradients']:.1e}")


if __name__ == "__main__":
    main()

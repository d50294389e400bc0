"""What our layers of Keras and `adopt` cannot do is refused by name, with what to do."""

from __future__ import annotations

from typing import Any

import pytest
from support.keras_layers import (
    H,
    I,
    as_keras_needs_it,  # noqa: F401  (a fixture of every test)
    keras,
    made,
    ours,
)
from support.refusals import refused

import jax_bptt as jb

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras'


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

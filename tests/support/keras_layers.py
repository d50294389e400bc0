"""Layers of Keras and ours beside them, with the same weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from support.live import random_like

os.environ["KERAS_BACKEND"] = "jax"
keras: Any = pytest.importorskip("keras")

import jax_bptt as jb  # noqa: E402
from jax_bptt.adapters import keras as ours  # noqa: E402

T, B, I, H = 6, 4, 2, 3  # noqa: E741
MASK = np.array([[1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 1, 0], [0] * 6, [1] * 6], bool)
SOME, NONE = {"activation": jnp.tanh}, {"activation": jnp.tanh, "use_bias": False}  # Keras' own is float32


@pytest.fixture(autouse=True)
def as_keras_needs_it() -> Iterator[None]:
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

"""Every core of Haiku, and a function that runs one inside an hk.transform."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from support.live import random_like

hk: Any = pytest.importorskip("haiku")

from jax_bptt.adapters import haiku as ours  # noqa: E402

T, B, I, H = 6, 4, 3, 5  # noqa: E741

KEY = jax.random.key(0)


class Core(NamedTuple):
    """A core and what it reads.

    Attributes:
      make: () -> core, inside an hk.transform.
      xs: leaves [T, B, ...].
      is_ours: whether one of our cells runs it.
    """

    make: Callable[[], Any]
    xs: Any = jnp.zeros((T, B, I))
    is_ours: bool = False


class Nested(hk.RNNCore):
    """A core with dicts in, dicts out, a dict for its state, and a trained initial state."""

    def __call__(self, inputs, state):
        h = jnp.tanh(hk.Linear(H)(inputs["x"]) * inputs["scale"] + hk.Linear(H)(state["h"]))
        return {"h": h, "twice": 2.0 * h}, {"h": h, "count": state["count"] + 1}

    def initial_state(self, batch_size):
        h = hk.get_parameter("h_0", [H], jnp.float64, init=hk.initializers.RandomNormal())
        return {"h": jnp.tile(h, (batch_size, 1)), "count": jnp.zeros((batch_size,), jnp.int32)}


BOTH = hk.dynamic_unroll, ours.dynamic_unroll

RESET = jnp.asarray(np.random.default_rng(2).random((T, B)) < 0.4)

UNITS = hk.LSTMState(jnp.asarray(np.random.default_rng(3).random((T, B, H)) < 0.4), RESET)

CORES = {
    "VanillaRNN": Core(lambda: hk.VanillaRNN(H), is_ours=True),
    "VanillaRNN one bias": Core(lambda: hk.VanillaRNN(H, double_bias=False), is_ours=True),
    "LSTM": Core(lambda: hk.LSTM(H), is_ours=True),
    "GRU": Core(lambda: hk.GRU(H), is_ours=True),
    "ResetCore VanillaRNN": Core(lambda: hk.ResetCore(hk.VanillaRNN(H)), (jnp.zeros((T, B, I)), RESET), True),
    "ResetCore LSTM": Core(lambda: hk.ResetCore(hk.LSTM(H)), (jnp.zeros((T, B, I)), RESET), True),
    "ResetCore GRU": Core(lambda: hk.ResetCore(hk.GRU(H)), (jnp.zeros((T, B, I)), RESET), True),
    "ResetCore of units": Core(lambda: hk.ResetCore(hk.LSTM(H)), (jnp.zeros((T, B, I)), UNITS)),
    "DeepRNN": Core(lambda: hk.DeepRNN([hk.LSTM(H), jax.nn.relu, hk.Linear(4), hk.GRU(H)])),
    "DeepRNN of ours": Core(
        lambda: hk.DeepRNN([hk.LSTM(H), jax.nn.relu, hk.GRU(H), jnp.tanh, hk.VanillaRNN(4)]), is_ours=True
    ),
    "skip connections": Core(lambda: hk.deep_rnn_with_skip_connections([hk.LSTM(H), hk.VanillaRNN(H)])),
    "ResetCore DeepRNN": Core(
        lambda: hk.ResetCore(hk.DeepRNN([hk.GRU(H), hk.LSTM(H)])), (jnp.zeros((T, B, I)), RESET)
    ),
    "IdentityCore": Core(hk.IdentityCore),
    "Conv1DLSTM": Core(lambda: hk.Conv1DLSTM((I,), 2, 3), jnp.zeros((T, B, I, 2))),
    "Conv2DLSTM": Core(lambda: hk.Conv2DLSTM((2, 2), 2, 3), jnp.zeros((T, B, 2, 2, 1))),
    "nested": Core(Nested, {"x": jnp.zeros((T, B, I)), "scale": jnp.zeros((T, B, 1))}),
}


def numbers(tree: Any) -> Any:
    """A tree with None for what is no number, such as a mark or a counter: it has no derivative."""
    return jax.tree.map(lambda z: z if jnp.issubdtype(z.dtype, jnp.floating) else None, tree)


def joined(tree: Any, found: Any) -> Any:
    """A tree with other numbers."""
    return jax.tree.map(lambda z, n: z if n is None else z + n, tree, found)


def model_of(row: Core, unroll: Callable[..., Any], **options: Any) -> Any:
    """(params, state, xs) -> outputs and states, where state and xs are added to those of the row."""

    def model(state, xs):
        core = row.make()
        state, xs = joined(core.initial_state(B), state), joined(row.xs, xs)
        if not options.get("time_major", True):
            xs = jax.tree.map(lambda z: z.swapaxes(0, 1), xs)
        return unroll(core, xs, state, **options)

    return hk.without_apply_rng(hk.transform(model))


def primals(row: Core) -> tuple[Any, Any, Any]:
    """Random params, initial state and inputs."""
    initial = hk.transform(lambda: row.make().initial_state(B))
    state, xs = (
        random_like(3, numbers(initial.apply(initial.init(KEY), None))),
        random_like(4, numbers(row.xs)),
    )
    return random_like(5, model_of(row, hk.dynamic_unroll).init(KEY, state, xs)), state, xs


XS = random_like(0, jnp.zeros((T, B, I)))


class Noisy(hk.RNNCore):
    """A core with a key and a count of its steps from Haiku."""

    def __call__(self, x, h):
        steps = hk.get_state("steps", [], jnp.int32, init=jnp.zeros)
        slow = hk.get_state("slow", [B, H], x.dtype, init=jnp.zeros)
        hk.set_state("steps", steps + 1)
        h = hk.GRU(H)(x + jax.random.normal(hk.next_rng_key(), x.shape, x.dtype), h)[0]
        hk.set_state("slow", 0.5 * slow + h)
        return h + slow, h

    def initial_state(self, batch_size):
        return jnp.zeros((batch_size, H))

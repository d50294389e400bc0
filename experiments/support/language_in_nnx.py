"""A character language model as one writes it with flax.nnx: nnx.Embed, an LSTM in nnx.RNN, nnx.Linear.

Every update reads the next window of each row; each window begins without memory, as nnx.RNN does by default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

RATE, CLIP = 3e-3, 1.0  # of Adam, and the largest norm of a gradient


class LanguageModel(nnx.Module):  # type: ignore[misc]
    """Characters [B, T] -> logits of the next, [B, T, classes]; `rnn` is nnx.RNN or one of its signature."""

    def __init__(
        self,
        classes: int,
        size: int,
        hidden: int,
        *,
        rngs: nnx.Rngs,
        param_dtype: Any = jnp.float32,
        rnn: Callable[..., Any] = nnx.RNN,
    ) -> None:
        self.embed = nnx.Embed(classes, size, param_dtype=param_dtype, rngs=rngs)
        self.rnn = rnn(nnx.OptimizedLSTMCell(size, hidden, param_dtype=param_dtype, rngs=rngs), rngs=rngs)
        self.linear = nnx.Linear(hidden, classes, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, codes: Array) -> Array:
        return self.linear(self.rnn(self.embed(codes)))


def error(model: LanguageModel, codes: Array) -> Array:
    """Nats per character, of codes [B, T+1]."""
    logits = model(codes[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, codes[:, 1:]).mean()


class Learnt(NamedTuple):
    """The updates made, and the arrays of model and optimizer, in a list, which a checkpoint can hold."""

    step: Array
    arrays: list[Array]


class Training(NamedTuple):
    """How a model is trained: its first state, and its updates."""

    begin: Learnt
    update: Callable[[Learnt], tuple[Learnt, Array]]


def training(text: Array, classes: int, size: int, hidden: int, window: int, rnn: Any, seed: int) -> Training:
    """The model with `rnn` and its training on a text.

    Args:
      text: codes in rows, [B, L + 1].
      classes, size, hidden: characters, numbers that stand for one, units of the LSTM.
      window: T, characters of a row that an update reads; L is at least T.
      rnn: nnx.RNN, or another of its signature.
      seed: of the parameters, which are the same for every `rnn`.
    """
    dtype = jnp.zeros(()).dtype  # float32, or float64 where it is switched on
    model = LanguageModel(classes, size, hidden, rngs=nnx.Rngs(seed), param_dtype=dtype, rnn=rnn)
    adam = optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(RATE))
    both = model, nnx.Optimizer(model, adam, wrt=nnx.Param)
    graph, keys, learnt = nnx.split(both, nnx.RngState, ...)
    arrays, structure = jax.tree.flatten(learnt)
    windows = (text.shape[1] - 1) // window

    def update(state: Learnt) -> tuple[Learnt, Array]:
        copied = jax.tree.map(lambda a: a, keys)  # nnx refuses to change what was made outside of a trace
        model, optimizer = nnx.merge(graph, copied, jax.tree.unflatten(structure, state.arrays))
        codes = jax.lax.dynamic_slice_in_dim(text, state.step % windows * window, window + 1, 1)
        nats, grads = nnx.value_and_grad(error)(model, codes)
        optimizer.update(model, grads)
        _, _, learnt = nnx.split((model, optimizer), nnx.RngState, ...)
        return Learnt(state.step + 1, jax.tree.leaves(learnt)), nats

    return Training(Learnt(jnp.zeros((), int), arrays), update)

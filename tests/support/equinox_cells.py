"""Every cell of Equinox and some modules that are cells, and loops over them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from support.live import random_like

eqx: Any = pytest.importorskip("equinox")

import jax_bptt as jb  # noqa: E402

T, B, I, H = 6, 3, 2, 4  # noqa: E741

KEY = jax.random.key(0)


class MyGRU(eqx.nn.GRUCell):
    """A subclass with another equation."""

    def __call__(self, input, hidden, *, key=None):
        return 0.5 * super().__call__(input, hidden) + 0.5 * hidden


class MyLSTM(eqx.nn.LSTMCell):
    """A subclass with another name only."""


class Own(eqx.Module):
    """A cell with parts, a function, a dict as its hidden state, and a counter in it."""

    inner: eqx.nn.GRUCell
    norm: eqx.nn.LayerNorm
    scale: jax.Array
    activation: Callable[[jax.Array], jax.Array]
    input_size: int = eqx.field(static=True, default=I)

    def __call__(self, x, hidden):
        h = self.inner(self.activation(self.scale * x), self.norm(hidden["a"]))
        return {"a": h, "count": hidden["count"] + 1, "z": 0.5 * hidden["z"] + h.sum()}


CELLS = {
    "GRUCell": eqx.nn.GRUCell(I, H, key=KEY),
    "GRUCell no bias": eqx.nn.GRUCell(I, H, use_bias=False, key=KEY),
    "LSTMCell": eqx.nn.LSTMCell(I, H, key=KEY),
    "LSTMCell no bias": eqx.nn.LSTMCell(I, H, use_bias=False, key=KEY),
    "subclass of GRUCell": MyGRU(I, H, key=KEY),
    "subclass of LSTMCell": MyLSTM(I, H, key=KEY),
    "own module": Own(eqx.nn.GRUCell(I, H, key=KEY), eqx.nn.LayerNorm(H), jnp.ones(()), jnp.tanh),
}

OURS = [name for name in CELLS if "Cell" in name and "subclass" not in name]

draw = np.random.default_rng(7)

MASK = jb.mask_of_lengths(jnp.array([T, 0, 3]), T)

HOLES, RESET = jnp.asarray(draw.random((T, B)) < 0.6), jnp.asarray(draw.random((T, B)) < 0.4)

MARKS = {
    "": {},
    "mask": {"mask": MASK},
    "reverse": {"reverse": True},
    "reset": {"reset": RESET},
    "all": {"mask": HOLES, "reset": RESET, "reverse": True},
}


def hidden_of(cell: Any) -> Any:
    h = random_like(3, jnp.zeros((B, H)))
    if isinstance(cell, Own):
        return {"a": h, "count": jnp.zeros(B, int), "z": h[:, 0]}
    return (h, random_like(4, h)) if isinstance(cell, eqx.nn.LSTMCell) else h


def where_at(t, mark, chosen, other):
    return jax.tree.map(lambda a, b: jnp.where(mark[t].reshape(B, *(1,) * (a.ndim - 1)), a, b), chosen, other)


def by_loop(cell, xs, hidden, mask=None, reset=None, reverse=False):
    """A loop of Python over the steps, with jax.vmap over the rows."""
    outputs = []
    for t in range(T)[:: -1 if reverse else 1]:
        wide = functools.partial(where_at, t)
        if reset is not None:
            hidden = wide(reset, jax.tree.map(jnp.zeros_like, hidden), hidden)
        x = xs[t] if mask is None else wide(mask, xs[t], jnp.ones_like(xs[t]))
        new = jax.vmap(cell)(x, hidden)
        y = jax.tree.leaves(new)[0]
        if mask is not None:
            y, new = wide(mask, (y, new), (jnp.zeros_like(y), hidden))
        hidden = new
        outputs.append(y)
    return hidden, jnp.stack(outputs[:: -1 if reverse else 1])


def floats(tree: Any) -> Any:
    return eqx.filter(tree, eqx.is_inexact_array)


def function_of(cell: Any, unroll: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """(weights, xs, hidden) -> what unroll returns, where weights replace those of the cell."""
    start = hidden_of(cell)

    def call(weights, xs, hidden):
        whole = eqx.combine(weights, cell)
        return floats(unroll(whole, xs, eqx.combine(hidden, start), **options))

    return call


def primals(cell: Any) -> tuple[Any, Any, Any]:
    weights = random_like(5, floats(cell))
    return weights, random_like(6, jnp.zeros((T, B, I))), floats(hidden_of(cell))


def by_scan(cell, xs):
    zeros = jnp.zeros(cell.hidden_size, xs.dtype)

    def step(hidden, x):
        hidden = cell(x, hidden)
        return hidden, hidden[0]

    return jax.lax.scan(step, (zeros, zeros), xs)


XS, KEYS = random_like(6, jnp.zeros((T, B, I))), jax.random.split(KEY, B)


def by_scan_of_gru(cell, xs, hidden):
    def step(hidden, x):
        hidden = cell(x, hidden)
        return hidden, hidden

    return jax.lax.scan(step, hidden, xs)


class Permuted(eqx.Module):
    """A cell with an array of integers."""

    weight: jax.Array
    order: jax.Array
    input_size: int = eqx.field(static=True, default=H)
    hidden_size: int = eqx.field(static=True, default=H)

    def __call__(self, x, hidden):
        return jnp.tanh(self.weight @ x + hidden[self.order])


PERMUTED = Permuted(jnp.eye(H), jnp.arange(H)[::-1])

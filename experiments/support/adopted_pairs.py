"""One layer of each framework with its own RNN and with ours, for `adopted`: the same module and weights.

    nnx          nnx.RNN                       flax_nnx.RNN
    linen        linen.RNN                     flax_linen.RNN
    scanned_rnn  purejaxrl's ScannedRNN        flax_linen.ScannedRNN       a GRU with as many inputs as units
    equinox      lax.scan of a vmapped cell    equinox.unroll
    haiku        hk.dynamic_unroll             haiku.dynamic_unroll
    keras        keras.layers.LSTM, GRU        keras.LSTM, keras.GRU

Of the LSTMs of Flax the faster is taken, OptimizedLSTMCell. Sequences are batch-major where the framework has
them so by default.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from experiments.support.benchmark_programs import Task

Size = tuple[int, ...]  # T, B, I, H


class Pair(NamedTuple):
    """A layer, by them and by us.

    Attributes:
      weights: of both.
      theirs, ours: weights, xs -> all outputs.
      batch_major: whether xs and outputs are [B, T, ...], and not [T, B, ...].
    """

    weights: Any
    theirs: Callable[[Any, Array], Array]
    ours: Callable[[Any, Array], Array]
    batch_major: bool


def tasks(framework: str, cell: str, size: Size) -> tuple[Task, Task] | None:
    """Value and gradient by the weights of the squared error of all outputs, by them and by us.

    Args:
      framework: a key of `PAIRS`.
      cell: "lstm" or "gru".
      size: T, B, I, H.

    Returns:
      (theirs, ours); None where the framework has no such layer.
    """
    pair = PAIRS[framework](cell, size)
    if pair is None:
        return None
    steps, rows, inputs, hidden = size
    axes = (rows, steps) if pair.batch_major else (steps, rows)
    of_xs, of_targets = jax.random.split(jax.random.key(0))
    xs, targets = jax.random.normal(of_xs, (*axes, inputs)), jax.random.normal(of_targets, (*axes, hidden))

    def task(layer: Callable[[Any, Array], Array]) -> Task:
        def error(weights: Any, xs: Array, targets: Array) -> Array:
            return jnp.sum((targets - layer(weights, xs)) ** 2)

        run = jax.jit(jax.value_and_grad(error))
        return Task(run, (pair.weights, xs, targets), lambda out: jax.tree.leaves(out[1]))

    return task(pair.theirs), task(pair.ours)


def nnx(cell: str, size: Size) -> Pair:
    """flax.nnx."""
    from flax import nnx

    from jax_bptt.adapters import flax_nnx

    _, _, inputs, hidden = size
    kind = {"lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell}[cell]

    def split(rnn: Any) -> Any:
        return nnx.split(rnn(kind(inputs, hidden, rngs=nnx.Rngs(0))), nnx.Param, ...)

    def layer(rnn: Any) -> Callable[[Any, Array], Array]:
        graph, _, keys = split(rnn)
        return lambda weights, xs: nnx.merge(graph, weights, jax.tree.map(lambda a: a, keys))(xs)

    return Pair(split(nnx.RNN)[1], layer(nnx.RNN), layer(flax_nnx.RNN), True)


def linen(cell: str, size: Size) -> Pair:
    """flax.linen."""
    from flax import linen

    from jax_bptt.adapters import flax_linen

    _, rows, inputs, hidden = size
    kind = {"lstm": linen.OptimizedLSTMCell, "gru": linen.GRUCell}[cell]
    theirs = linen.RNN(kind(hidden))
    weights = theirs.init(jax.random.key(0), jnp.zeros((rows, 2, inputs)))
    return Pair(weights, theirs.apply, flax_linen.RNN(kind(hidden)).apply, True)


def scanned_rnn(cell: str, size: Size) -> Pair | None:
    """ScannedRNN, with a reset in one of a hundred steps."""
    from experiments.support.ppo_in_flax import ScannedRNN
    from jax_bptt.adapters import flax_linen

    steps, rows, inputs, hidden = size
    if cell != "gru" or inputs != hidden:
        return None
    resets = jax.random.bernoulli(jax.random.key(1), 0.01, (steps, rows))
    carry = ScannedRNN.initialize_carry(rows, hidden)
    weights = ScannedRNN().init(jax.random.key(0), carry, (jnp.zeros((2, rows, inputs)), resets[:2]))

    def layer(module: Any) -> Callable[[Any, Array], Array]:
        return lambda weights, xs: module.apply(weights, carry, (xs, resets))[1]

    return Pair(weights, layer(ScannedRNN()), layer(flax_linen.ScannedRNN()), False)


def equinox(cell: str, size: Size) -> Pair:
    """Equinox, which has cells and leaves the loop to its users."""
    import equinox as eqx

    from jax_bptt.adapters import equinox as ours

    _, rows, inputs, hidden = size
    kind = {"lstm": eqx.nn.LSTMCell, "gru": eqx.nn.GRUCell}[cell]
    zeros = jnp.zeros((rows, hidden))

    def theirs(module: Any, xs: Array) -> Array:
        def body(s: Any, x: Array) -> Any:
            s = jax.vmap(module)(x, s)
            return s, jax.tree.leaves(s)[0]

        return jax.lax.scan(body, (zeros, zeros) if cell == "lstm" else zeros, xs)[1]

    module = kind(inputs, hidden, key=jax.random.key(0))
    return Pair(module, theirs, lambda module, xs: ours.unroll(module, xs)[1], False)


def haiku(cell: str, size: Size) -> Pair:
    """Haiku."""
    import haiku as hk

    from jax_bptt.adapters import haiku as ours

    _, rows, inputs, hidden = size

    def layer(unroll: Any) -> Any:
        def run(xs: Array) -> Array:
            core = {"lstm": hk.LSTM, "gru": hk.GRU}[cell](hidden)
            return unroll(core, xs, core.initial_state(rows))[0]

        return hk.without_apply_rng(hk.transform(run))

    theirs = layer(hk.dynamic_unroll)
    weights = theirs.init(jax.random.key(0), jnp.zeros((2, rows, inputs)))
    return Pair(weights, theirs.apply, layer(ours.dynamic_unroll).apply, False)


def keras(cell: str, size: Size) -> Pair:
    """Keras on JAX."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    from jax_bptt.adapters import keras as ours

    steps, rows, inputs, hidden = size
    name = cell.upper()

    def layer(kind: Any) -> Any:
        made = kind(hidden, return_sequences=True)
        made.build((rows, steps, inputs))
        return made

    def run(layer: Any) -> Callable[[Any, Array], Array]:
        return lambda weights, xs: layer.stateless_call(weights, layer.non_trainable_variables, xs)[0]

    theirs = layer(getattr(keras.layers, name))
    weights = [jnp.asarray(v.value) for v in theirs.trainable_variables]
    return Pair(weights, run(theirs), run(layer(getattr(ours, name))), True)


PAIRS: dict[str, Callable[[str, Size], Pair | None]] = {
    "nnx": nnx,
    "linen": linen,
    "scanned_rnn": scanned_rnn,
    "equinox": equinox,
    "haiku": haiku,
    "keras": keras,
}

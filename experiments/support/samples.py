"""Text that a language model writes, one symbol a step, each drawn from what it predicts and read by it next.

p(symbol) = softmax(logits / temperature)
"""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import jax_bptt as jb
from experiments.support.corpora import Vocabulary


def write_text(
    net: jb.Network,
    params: jb.NetworkParams,
    vocabulary: Vocabulary,
    prompt: str,
    length: int,
    temperature: float,
    key: Array,
) -> str:
    """A text of `length` symbols that goes on from a prompt, with the prompt."""
    codes = vocabulary.encode(prompt)
    written = _write(net, params, jnp.asarray(codes), jnp.asarray(temperature), length, key)
    return vocabulary.decode([*codes, *np.asarray(written)])


@functools.partial(jax.jit, static_argnums=(0, 4))
def _write(
    net: jb.Network, params: jb.NetworkParams, prompt: Array, temperature: Array, length: int, key: Array
) -> Array:
    """The codes of `length` symbols after the prompt, each drawn with a key of its own."""

    def step(state: tuple[chex.ArrayTree, Array], key: Array) -> tuple[tuple[chex.ArrayTree, Array], Array]:
        carry, logits = state
        code = jax.random.categorical(key, logits / temperature.astype(logits.dtype)).astype(prompt.dtype)
        return net.step(params, carry, code), code

    carry, logits = net.apply(params, net.initial_carry(params, ()), prompt)
    return jax.lax.scan(step, (carry, logits[-1]), jax.random.split(key, length))[1]

"""The agents of `recurrent_ppo`: a network with an encoder and a head for actions and values.

The encoder reads a `Percept`, the head says a `Said`, and between them is a GRU, or a layer without memory.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

import jax_bptt as jb
from experiments.support import ppo
from experiments.support.ppo import Agent, Said, Target
from experiments.support.t_maze import ACTIONS, NONE, SEEN, Percept


class EncoderParams(NamedTuple):
    """W of what is seen [SEEN, E], a vector for each action before [4, E], one for the reward [E], b [E]."""

    seen: Array
    action: Array
    reward: Array
    b: Array


class HeadParams(NamedTuple):
    """W and b of the logits, [H, 3] and [3], and of the value, [H] and []."""

    logits: Array
    b_logits: Array
    value: Array
    b_value: Array


def encode(params: EncoderParams, percept: Percept) -> Array:
    """What the layer reads, [E]."""
    seen = percept.seen @ params.seen
    return jax.nn.relu(seen + params.action[percept.action] + percept.reward * params.reward + params.b)


def speak(params: HeadParams, h: Array) -> Said:
    """The logits of the actions, and the value."""
    return Said(h @ params.logits + params.b_logits, h @ params.value + params.b_value)


def init_encoder(size: int, key: Array) -> EncoderParams:
    """Rows of a length near 1."""
    w = jax.random.normal(key, (SEEN + NONE + 2, size)) / jnp.sqrt(size)
    return EncoderParams(w[:SEEN], w[SEEN:-1], w[-1], jnp.zeros(size))


def init_head(size: int, key: Array) -> HeadParams:
    """Logits and values near 0."""
    w = 0.1 * jax.random.normal(key, (size, ACTIONS + 1)) / jnp.sqrt(size)
    return HeadParams(w[:, :-1], jnp.zeros(ACTIONS), w[:, -1], jnp.zeros(()))


@functools.cache
def network(layer: str, hidden: int) -> jb.Network:
    """The network of an agent; its layer is a "gru", or a "dense" one, which has no memory."""
    cell: Any = jb.gru(hidden, hidden) if layer == "gru" else jb.dense(hidden, hidden, activation="tanh")
    encoder = jb.encoder(encode, functools.partial(init_encoder, hidden))
    return jb.network([cell], jb.head(speak, functools.partial(init_head, hidden)), encoder)


loss = jb.mean_over_steps(ppo.error)


def agent(net: jb.Network) -> Agent:
    """Act one step at a time; learn from T steps by the gradient through time."""
    value_and_grad = jb.value_and_grad(net, loss)

    def act(params: jb.NetworkParams, carry: Any, percept: Percept, begins: Array) -> tuple[Any, Said]:
        return net.step(params, carry, percept, reset=begins)

    def learn(
        params: jb.NetworkParams, carry: Any, percepts: Percept, targets: Target, begins: Array
    ) -> tuple[Array, jb.NetworkParams]:
        (error, _), grads = value_and_grad(params, carry, percepts, targets, reset=begins)
        return error, grads

    return Agent(net.init, lambda params, rows: net.initial_carry(params, (rows,)), act, learn)

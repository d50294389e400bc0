"""Calls that are right, for a type checker alone: it must find nothing wrong here. Nobody runs this file."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import jax_bptt as jb


class Two(NamedTuple):
    h: jax.Array
    c: jax.Array


def own_step(units: dict[str, jax.Array], s: Two, u: tuple[jax.Array, ...], v: tuple[jax.Array, ...]) -> Two:
    c = jax.nn.sigmoid(u[0] + v[0]) * s.c + u[1] + v[1]
    return Two(jnp.tanh(c), c)


def any_step(params: jax.Array, s: jb.Carry, x: jax.Array) -> jb.Carry:
    return jb.Carry(jnp.tanh(x @ params + s.h))


key = jax.random.key(0)
xs, targets, mask = jnp.ones((7, 2, 3)), jnp.ones((7, 2, 4)), jnp.ones((7, 2), bool)
weight = jnp.ones((7, 2))

elman = jb.elman(3, 5, activation="relu", recurrent=jb.identity())
lstm, gru = jb.lstm(3, 5), jb.gru(3, 5)
own = jb.make_cell(3, 5, own_step, gates=("forget", "input"), carry_type=Two)
general = jb.step_cell(5, 5, any_step, lambda key: jax.random.normal(key, (5, 5)))
params = lstm.init(key)
carry, hs = jb.unroll(lstm, params, None, xs, gradient=jb.truncated(3), mask=mask)
again, hs = jb.unroll(lstm, params, carry, xs)
next_cell_state: jax.Array = jb.step(lstm, params, again, xs[0])[0].c
cell_state: jax.Array = again.c
of_all, states = jb.unroll_states(
    lstm, params, None, xs, reset=mask, starts=lstm.initial_carry(params, (7, 2))
)
every_cell_state: jax.Array = states.c
total, sums = jb.scan(lambda c, x: (c + x, c), jnp.zeros((2, 3)), xs, gradient=jb.truncated(3), cut=mask)
last_total: jax.Array = total
reset_weights: jax.Array = gru.init(key).b_h
own_state: jax.Array = jb.unroll(own, own.init(key), None, xs)[0].c
peephole: jax.Array = jb.lstm(3, 5, peephole=True).init(key).p_o
projection: jax.Array = jb.lstm(3, 5, projection=2).init(key).w_p
bias_of_heads: jax.Array = jb.gru(3, 4, heads=2).init(key).b_h
before: jax.Array = jb.gru(3, 5, reset_after=False).init(key).b
learned = jb.learn_carry(jb.lstm(3, 5))
learned_state: jax.Array = jb.unroll(learned, learned.init(key), None, xs, reverse=True)[0].c

net = jb.network([lstm, jb.layer(jb.gru(5, 5), residual=True)], jb.readout(5, 4))
tied: jb.Network = jb.network([lstm], jb.last(jb.tied_readout(9)), jb.embedding(9, 5))
value_and_grad = jb.value_and_grad(net, jb.squared_error)
(loss, state_of_layers), grads = value_and_grad(
    net.init(key), None, xs, targets, gradient=jb.full(), mask=mask, weight=weight, reset=mask, starts=None
)
error: jax.Array = jb.squared_error(targets, targets, weight=weight)
w_y: jax.Array = grads.readout.w_y
optimizer = optax.adam(1e-3)
state = jb.init_train_state(key, net, optimizer, (2,))
state, metrics = jb.make_train_step(net, jb.squared_error, optimizer)(
    state, jb.Batch(xs, targets, weight=weight)
)
terms = jb.credit(net, jb.squared_error, net.init(key), None, xs, targets, lags=3, weight=weight).of_all.share
report = jb.check_gradient(net, gradient=jb.checkpointed(slots=4)).ok

ids = jnp.zeros((7, 2), int)
words = jb.network([jb.gru(5, 6), jb.dense(6, 5)], jb.tied_readout(9), jb.embedding(9, 5))
of_words = jb.value_and_grad(words, jb.mean_over_steps(lambda y, target: -jax.nn.log_softmax(y)[target]))
(loss, state_of_layers), grads = of_words(words.init(key), None, ids, ids)
w_e: jax.Array = grads.encoder.w_e
encoder = jb.encoder(lambda params, x: x["seen"] @ params, lambda key: jnp.ones((3, 5)))
head = jb.last(jb.head(lambda params, h: {"value": h @ params, "features": h}, lambda key: jnp.ones(6)))
agent = jb.network([jb.gru(5, 6)], head, encoder)
state_of_layers, y = agent.apply(agent.init(key), None, {"seen": xs}, reset=mask)
quantiles: jax.Array = jb.quantile_error([0.1, 0.9])(targets, xs[..., :2])

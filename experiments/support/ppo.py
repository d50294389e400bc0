"""Proximal policy optimisation (PPO) of an agent with memory, in many mazes at once.

    act         T steps, one at a time, from the stored carry; a new episode resets the carry
    advantage   δ_t = r_t + γ V_{t+1} − V_t
                A_t = δ_t + γ λ A_{t+1}               V_{t+1} and A_{t+1} are 0 where the episode ended at t
    learn       E = mean of −min(ρ A, clip(ρ, 1 ± ε) A) + c_V ½ (V − A_t − V_t)² − c_H H(p)
                ρ = p(a) / p_old(a)

Each epoch reads the rows in a new order, some rows at a time. Every row is read from the carry that was
stored where its T steps begin, so the gradient goes through these T steps and no further. A is not divided by
its deviation: when all is solved, that would turn noise into large updates.

References: Schulman et al. 2017, Proximal policy optimization algorithms; Schulman et al. 2016,
High-dimensional continuous control using generalized advantage estimation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from experiments.support import t_maze
from experiments.support.t_maze import Lengths, Maze, Outcome, Percept

DISCOUNT, TRACE = 0.99, 0.95  # γ, λ
CLIP = 0.2  # ε
VALUE_COST, ENTROPY_GAIN = 0.5, 0.01  # c_V, c_H


class Said(NamedTuple):
    """What an agent says at a step: logits of the actions [3], and the value V."""

    logits: Array
    value: Array


class Target(NamedTuple):
    """What is learnt from a step: action a, log p_old(a), A, and A + V."""

    action: Array
    log_p: Array
    advantage: Array
    gain: Array


class Agent(NamedTuple):
    """An agent of any library.

    Attributes:
      init: key -> params.
      begin: params, number of rows -> the carry of rows that begin without memory.
      act: params, carry, `Percept` of rows, where episodes begin [B] -> the next carry, `Said` of rows.
      learn: params, carry, `Percept` [T, B], `Target` [T, B], where episodes begin [T, B] -> E, its gradient.
    """

    init: Callable[[Array], Any]
    begin: Callable[[Any, int], Any]
    act: Callable[[Any, Any, Percept, Array], tuple[Any, Said]]
    learn: Callable[[Any, Any, Percept, Target, Array], tuple[Array, Any]]


class Training(NamedTuple):
    """How an agent is trained; every field is a plain value.

    Attributes:
      rows: mazes at once.
      steps: T.
      epochs: how often each step is read.
      parts: updates of an epoch; each reads rows / parts rows.
      learning_rate, clip: of Adam, after the norm of the gradient is clipped.
      lengths: of the corridors.
    """

    rows: int
    steps: int
    epochs: int
    parts: int
    learning_rate: float
    clip: float
    lengths: Lengths

    def optimizer(self) -> optax.GradientTransformation:
        """Adam."""
        return optax.chain(optax.clip_by_global_norm(self.clip), optax.adam(self.learning_rate, eps=1e-5))


class State(NamedTuple):
    """An agent in the middle of its training; begins says which mazes are at their entrance."""

    params: Any
    opt_state: optax.OptState
    carry: Any
    maze: Maze
    percept: Percept
    begins: Array
    key: Array  # as data, so that it can be saved


class Steps(NamedTuple):
    """What happened in T steps, [T, B]."""

    percept: Percept
    begins: Array
    action: Array
    log_p: Array
    value: Array
    outcome: Outcome


class Report(NamedTuple):
    """Of an iteration: E of its last update, episodes that ended, and those that ended at the right arm."""

    loss: Array
    episodes: Array
    right: Array


def share_right(reports: Report) -> float:
    """The share of the episodes that ended at the right arm; 0 if none has ended."""
    return float(np.sum(reports.right) / max(np.sum(reports.episodes), 1))


def begin(agent: Agent, training: Training, seed: int) -> State:
    """A new agent; agents of one seed begin in the same mazes."""
    of_params, of_mazes, of_steps = jax.random.split(jax.random.key(seed), 3)
    params = agent.init(of_params)
    keys = jax.random.split(of_mazes, training.rows)
    maze = jax.vmap(functools.partial(t_maze.begin, lengths=training.lengths))(keys)
    return State(
        params,
        training.optimizer().init(params),
        agent.begin(params, training.rows),
        maze,
        jax.vmap(t_maze.first_percept)(maze),
        jnp.ones(training.rows, bool),
        jax.random.key_data(of_steps),
    )


def iterate(agent: Agent, training: Training, state: State) -> tuple[State, Report]:
    """T steps in every maze, then the updates that they give."""
    key, of_acting, of_order = jax.random.split(jax.random.wrap_key_data(state.key), 3)
    acted, steps = act(agent, training, state, of_acting)
    _, said = agent.act(acted.params, acted.carry, acted.percept, acted.begins)
    advantage = advantages(steps.outcome.reward, steps.value, said.value, steps.outcome.ended)
    target = Target(steps.action, steps.log_p, advantage, advantage + steps.value)

    def update(learnt: tuple[Any, Any], rows: Array) -> tuple[tuple[Any, Any], Array]:
        params, opt_state = learnt
        some = jax.tree.map(lambda a: a[:, rows], (steps.percept, target, steps.begins))
        carry = jax.tree.map(lambda a: a[rows], state.carry)
        loss, grads = agent.learn(params, carry, *some)
        changes, opt_state = training.optimizer().update(grads, opt_state, params)
        return (optax.apply_updates(params, changes), opt_state), loss

    orders = jax.vmap(lambda k: jax.random.permutation(k, training.rows))(
        jax.random.split(of_order, training.epochs)
    )
    parts = orders.reshape(training.epochs * training.parts, -1)
    (params, opt_state), losses = jax.lax.scan(update, (state.params, state.opt_state), parts)
    now = acted._replace(params=params, opt_state=opt_state, key=jax.random.key_data(key))
    return now, Report(losses[-1], steps.outcome.ended.sum(), steps.outcome.right.sum())


def act(agent: Agent, training: Training, state: State, key: Array) -> tuple[State, Steps]:
    """T steps, one at a time."""
    walk = jax.vmap(functools.partial(t_maze.step, lengths=training.lengths))

    def step(state: State, key: Array) -> tuple[State, Steps]:
        of_action, of_mazes = jax.random.split(key)
        carry, said = agent.act(state.params, state.carry, state.percept, state.begins)
        action = jax.random.categorical(of_action, said.logits).astype(state.percept.action.dtype)
        maze, percept, outcome = walk(state.maze, action, jax.random.split(of_mazes, training.rows))
        log_p = log_probability(said.logits, action)
        now = state._replace(carry=carry, maze=maze, percept=percept, begins=outcome.ended)
        return now, Steps(state.percept, state.begins, action, log_p, said.value, outcome)

    return jax.lax.scan(step, state, jax.random.split(key, training.steps))


def advantages(rewards: Array, values: Array, next_value: Array, ended: Array) -> Array:
    """A of every step.

    Args:
      rewards, values: r and V, [T, B].
      next_value: V of the step after the last, [B].
      ended: whether the episode ended at the step, [T, B].

    Returns:
      [T, B].
    """

    def back(later: tuple[Array, Array], now: tuple[Array, Array, Array]) -> tuple[Any, Array]:
        (later_advantage, later_value), (reward, value, end) = later, now
        goes_on = DISCOUNT * (1 - end)
        error = reward + goes_on * later_value - value
        advantage = error + goes_on * TRACE * later_advantage
        return (advantage, value), advantage

    begin = jnp.zeros_like(next_value), next_value
    return jax.lax.scan(back, begin, (rewards, values, ended.astype(values.dtype)), reverse=True)[1]


def error(said: Said, target: Target) -> Array:
    """What PPO minimises, of one step and row."""
    log_p = jax.nn.log_softmax(said.logits)
    ratio = jnp.exp(log_p[target.action] - target.log_p)
    clipped = jnp.clip(ratio, 1 - CLIP, 1 + CLIP)
    gain = jnp.minimum(ratio * target.advantage, clipped * target.advantage)
    entropy = -jnp.sum(jnp.exp(log_p) * log_p)
    return -gain + VALUE_COST * 0.5 * jnp.square(said.value - target.gain) - ENTROPY_GAIN * entropy


def log_probability(logits: Array, action: Array) -> Array:
    """log p(a), of rows."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], 1)[:, 0]


def compiled(agent: Agent, training: Training, iterations: int) -> Callable[[State], tuple[State, Report]]:
    """Some iterations as one program, which is compiled here; it returns the `Report` of each iteration."""

    def run(state: State) -> tuple[State, Report]:
        return jax.lax.scan(lambda now, _: iterate(agent, training, now), state, None, iterations)

    return jax.jit(run, donate_argnums=0).lower(begin(agent, training, 0)).compile()

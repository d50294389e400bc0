"""A T-maze: a cue at the entrance says at which arm, many steps later, the reward is.

    entrance, corridor of L steps, junction          L is drawn anew for each episode

The cue, left or right, is seen at the entrance alone. In the corridor a step forward leads on; another
action leads nowhere and costs 0.1. At the junction the arm of the cue gives the reward 1, the other arm 0;
either ends the episode. A step forward leads nowhere and costs 0.1. An episode that takes too long ends, too.

What is seen at the junction, the last action (forward) and the last reward do not depend on the cue. So an
agent without memory is right in half of the episodes at most.

Reference: Bakker 2001, Reinforcement learning with Long Short-Term Memory.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

FORWARD, LEFT, RIGHT = range(3)
ACTIONS = 3
NONE = ACTIONS  # stands for the last action at the beginning of an episode
SEEN = 4  # cue left, cue right, corridor, junction
COST = 0.1
PATIENCE = 3  # an episode may take so many times the steps that it needs


class Lengths(NamedTuple):
    """The corridors have these lengths, both included."""

    shortest: int
    longest: int


class Maze(NamedTuple):
    """The state of one maze; each is an integer array of no axis.

    Attributes:
      cue: LEFT or RIGHT.
      length: L.
      place: 0 at the entrance, L at the junction.
      steps: that were taken in this episode.
    """

    cue: Array
    length: Array
    place: Array
    steps: Array


class Percept(NamedTuple):
    """What an agent reads at one step.

    Attributes:
      seen: [SEEN], 1 where it is seen.
      action: the one before, NONE at the beginning.
      reward: of that action.
    """

    seen: Array
    action: Array
    reward: Array


class Outcome(NamedTuple):
    """What an action led to: the reward, whether the episode ended, and whether it ended at the right arm."""

    reward: Array
    ended: Array
    right: Array


def begin(key: Array, lengths: Lengths) -> Maze:
    """A new maze, at its entrance."""
    of_cue, of_length = jax.random.split(key)
    cue = jax.random.choice(of_cue, jnp.array([LEFT, RIGHT]))
    length = jax.random.randint(of_length, (), lengths.shortest, lengths.longest + 1)
    return Maze(cue, length, jnp.zeros_like(length), jnp.zeros_like(length))


def first_percept(maze: Maze) -> Percept:
    """What is read at the entrance."""
    return Percept(look(maze), jnp.asarray(NONE, maze.cue.dtype), jnp.zeros(()))


def look(maze: Maze) -> Array:
    """What is seen from here."""
    entrance, junction = maze.place == 0, maze.place == maze.length
    cues = [entrance & (maze.cue == LEFT), entrance & (maze.cue == RIGHT)]
    return jnp.stack([*cues, ~entrance & ~junction, junction]).astype(float)


def act(maze: Maze, action: Array) -> tuple[Maze, Outcome]:
    """Where the action leads."""
    junction, forward = maze.place == maze.length, action == FORWARD
    chosen, right = junction & ~forward, junction & (action == maze.cue)
    moved, steps = ~junction & forward, maze.steps + 1
    reward = jnp.where(chosen, right.astype(float), jnp.where(moved, 0.0, -COST))
    ended = chosen | (steps >= PATIENCE * (maze.length + 1))
    place = jnp.where(moved, maze.place + 1, maze.place)
    return maze._replace(place=place, steps=steps), Outcome(reward, ended, right)


def step(maze: Maze, action: Array, key: Array, lengths: Lengths) -> tuple[Maze, Percept, Outcome]:
    """Act, and begin anew where the episode ends: then the percept is that of the new one."""
    moved, outcome = act(maze, action)
    new = begin(key, lengths)
    old, fresh = (moved, Percept(look(moved), action, outcome.reward)), (new, first_percept(new))
    now, percept = jax.tree.map(lambda a, b: jnp.where(outcome.ended, a, b), fresh, old)
    return now, percept, outcome

"""What a cell is run over: the inputs, and at which steps of which rows something else happens.

    s̃_{t−1} = start              where reset_t
              s_{t−1}, a number   where cut_t: the gradient ends there
              s_{t−1}             elsewhere
    s_t     = step(s̃_{t−1}, x_t)  where mask_t
              s̃_{t−1}             elsewhere: the carry is held

Reset and cut come first, so they act where mask is False too. None stands for an array that is the
same everywhere (mask True, reset and cut False) and costs nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_bptt.base.checks import size
from jax_bptt.base.errors import bad, describe, named, naming
from jax_bptt.base.trees import select
from jax_bptt.base.types import Mark, Shape


class Marks(NamedTuple):
    """Where something else than a plain step happens, at every step or at one; None: nowhere.

    Attributes:
      mask: bool [T, ...] or None; False holds the carry.
      reset: bool [T, ...] or None; True begins the step at the initial carry.
      cut: bool [T, ...] or None; True ends the gradient before the step.
    """

    mask: Mark
    reset: Mark
    cut: Mark


class Sequence(NamedTuple):
    """Inputs of T steps, time first, with their marks.

    Attributes:
      xs: [T, ..., I].
      mask: bool [T, ...] or None; False holds the carry.
      reset: bool [T, ...] or None; True begins the step at the initial carry.
      cut: bool [T, ...] or None; True ends the gradient before the step.
    """

    xs: Array
    mask: Mark = None
    reset: Mark = None
    cut: Mark = None

    @property
    def rows(self) -> Shape:
        """The batch axes, such as (32,), or () for none."""
        return self.xs.shape[1:-1]

    @property
    def marks(self) -> Marks:
        """The marks alone."""
        return Marks(self.mask, self.reset, self.cut)


def ends_of(sequence: Sequence) -> Sequence:
    """The marks for a cell that reads from the last step to the first.

    A sequence that begins at step t, for a reader from the left, begins at step t − 1 for one from the
    right: resets and cuts move by one step, and there is none before the last step.
    """

    def moved(mark: Mark) -> Mark:
        return None if mark is None else jnp.concatenate([mark[1:], jnp.zeros_like(mark[:1])])

    return sequence._replace(reset=moved(sequence.reset), cut=moved(sequence.cut))


def without_padding(sequence: Sequence) -> Sequence:
    """Some valid x in the place of every x where mask is False.

    What stands there, a NaN, then reaches no product. It is a valid one, and not zero, because a step
    may be singular at zero (x/‖x‖), and a zero cotangent times an infinite derivative is no number. In a
    chunk of a sequence without any valid step it is a vector that is neither zero nor constant.
    """
    if sequence.mask is None:
        return sequence
    rows = sequence.xs.reshape(-1, sequence.xs.shape[-1])
    valid = jax.lax.stop_gradient(rows[jnp.argmax(sequence.mask)])  # the first, in time and row
    valid = jnp.where(sequence.mask.any(), valid, jnp.sin(jnp.arange(1, 1 + valid.size, dtype=valid.dtype)))
    everywhere = jnp.broadcast_to(valid, sequence.xs.shape)
    return sequence._replace(xs=select(sequence.mask, sequence.xs, everywhere))


@named()
def mask_of_lengths(lengths: Array, steps: int) -> Array:
    """The mask of sequences that all begin at the first step: True for the first `lengths` steps.

    mask[t, ...] = t < lengths[...]

    Args:
      lengths: integers from 0 to T, [...]; a row of length zero keeps its initial carry.
      steps: T.

    Returns:
      bool [T, ...].

    Raises:
      ValueError: lengths that are not integers, or not from 0 to T (where their values are known: not
        inside jit).

    >>> mask_of_lengths(jnp.array([2, 0, 3]), 3).astype(int).tolist()
    [[1, 0, 1], [1, 0, 1], [0, 0, 1]]
    """
    steps = size("steps", steps)
    with naming("lengths", "integers"):
        lengths = lengths if isinstance(lengths, jax.Array) else jnp.asarray(np.asarray(lengths))
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise bad("lengths", "integers", lengths, "count the steps of each row")
    came = describe(lengths)
    lengths = lengths.astype(jnp.result_type(int))  # T may exceed what 8 or 16 bits say
    if not isinstance(lengths, jax.core.Tracer) and not bool(((lengths >= 0) & (lengths <= steps)).all()):
        came = f"{came} from {lengths.min()} to {lengths.max()}"
        raise bad("lengths", f"integers from 0 to {steps}", came, "pad to the longest row by more steps")
    t = jnp.arange(steps, dtype=lengths.dtype).reshape((steps,) + (1,) * lengths.ndim)
    return t < lengths[None]

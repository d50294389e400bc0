"""A sequence is the inputs of a cell, with marks where the carry is held, reset or cut.

    s̃_{t−1} = start              where reset_t; with `starts` it is start_t, that of this step
              s_{t−1}, constant   where cut_t: the gradient ends there
              s_{t−1}             elsewhere
    s_t     = step(s̃_{t−1}, x_t)  where mask_t
              s̃_{t−1}             elsewhere: the carry is held

Reset and cut come before the mask, so they act where mask is False, too. None means mask True, reset False
or cut False at every step, and costs nothing. A gradient method can also multiply the derivative of
s_{t−1} by a factor, while its value stays as it is (`artbp`).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_bptt.base.checks import check_arrays, is_known, size
from jax_bptt.base.errors import bad, describe, named, naming
from jax_bptt.base.trees import select
from jax_bptt.base.types import ArrayTree, Mark, Shape, Tree


class Marks(NamedTuple):
    """Marks say where the carry is held, reset or cut, at every step or at one step.

    Attributes:
      mask: bool [T, ...] or None; False holds the carry.
      reset: bool [T, ...] or None; True starts the step from the initial carry.
      cut: bool [T, ...] or None; True stops the gradient before the step.
      factor: [T, ...] or None; the derivative of the carry before the step is multiplied by it.
      starts: a carry with leaves [T, ..., H], or None; where reset is True the step starts from it, and not
        from the initial carry.
    """

    mask: Mark
    reset: Mark
    cut: Mark
    factor: Array | None = None
    starts: Any = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Unencoded:
    """These are the inputs of a network before its encoder has read them.

    Attributes:
      tree: a pytree of arrays [T, *batch, ...]; the axes after those of the batch are of one row.
      batch_axes: the number of batch axes.
    """

    tree: ArrayTree
    batch_axes: int = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> Shape:
        """This is [T, *batch, 1], as of an array whose last axis is one input."""
        first: Array = jax.tree.leaves(self.tree)[0]
        return (*first.shape[: 1 + self.batch_axes], 1)


class Sequence(NamedTuple):
    """A sequence is the inputs of T steps, time first, with their marks.

    Attributes:
      xs: [T, ..., I]; `Unencoded` before an encoder; for the body of a scan a tuple of arrays [T, ...].
      mask: bool [T, ...] or None; False holds the carry.
      reset: bool [T, ...] or None; True starts the step from the initial carry.
      cut: bool [T, ...] or None; True stops the gradient before the step.
      factor: [T, ...] or None; the derivative of the carry before the step is multiplied by it.
      starts: a carry with leaves [T, ..., H], or None; where reset is True the step starts from it, and not
        from the initial carry. For a network it is a carry of all layers.
    """

    xs: Any
    mask: Mark = None
    reset: Mark = None
    cut: Mark = None
    factor: Array | None = None
    starts: Any = None

    @property
    def steps(self) -> int:
        """This is T, the number of steps; in jax.export it may be a symbol, for which len does not work."""
        first: Array = jax.tree.leaves(self.xs)[0]
        return first.shape[0]

    @property
    def rows(self) -> Shape:
        """These are the batch axes of xs, such as (32,), or () for none; the body of a scan has none."""
        shape: Shape = getattr(self.xs, "shape", ())
        return shape[1:-1]

    @property
    def leading(self) -> Shape:
        """This is (T, *batch), the shape of a mark."""
        return (self.steps, *self.rows)

    @property
    def marks(self) -> Marks:
        """These are the marks without the inputs."""
        return Marks(self.mask, self.reset, self.cut, self.factor, self.starts)


def ends_of(sequence: Sequence) -> Sequence:
    """Resets and cuts are moved for a cell that reads from the last step to the first.

    A reset at step t separates the steps t − 1 and t. A cell that reads backwards comes to t − 1 after t, so
    its reset is at t − 1. Resets, cuts and starts move by one step, and the last step has none.
    """

    def moved(mark: Tree) -> Tree:
        return jax.tree.map(lambda z: jnp.concatenate([z[1:], jnp.zeros_like(z[:1])]), mark)

    return sequence._replace(
        reset=moved(sequence.reset), cut=moved(sequence.cut), starts=moved(sequence.starts)
    )


def without_padding(sequence: Sequence) -> Sequence:
    """Where mask is False, x is replaced by an x of a step where mask is True.

    Padding, even a NaN, then enters no product. The replacement is not zero, because a step may be singular
    at zero (x/‖x‖), and a zero cotangent times an infinite derivative is NaN. If mask is False everywhere,
    the replacement is a vector that is neither zero nor constant.
    """
    mask = sequence.mask
    if mask is None or not mask.size:
        return sequence

    def filled(xs: Array) -> Array:
        if xs.shape[: mask.ndim] != mask.shape or not xs.size:
            return xs  # the rows share this input of a scan, so it cannot be padding of some of them
        at_a_step = xs.reshape(-1, *xs.shape[mask.ndim :])
        valid = jax.lax.stop_gradient(at_a_step[jnp.argmax(mask)])  # the first step and row with mask True
        if jnp.issubdtype(xs.dtype, jnp.inexact):
            numbers = jnp.sin(jnp.arange(1, 1 + valid.size, dtype=valid.dtype)).reshape(valid.shape)
            valid = jnp.where(mask.any(), valid, numbers)
        return select(mask, xs, jnp.broadcast_to(valid, xs.shape))

    return sequence._replace(xs=jax.tree.map(filled, sequence.xs))


@named()
def mask_of_lengths(lengths: Array, steps: int) -> Array:
    """`mask_of_lengths` makes the mask of padded sequences: True for the first `lengths` steps of a row.

    mask[t, ...] = t < lengths[...]

    Args:
      lengths: integers from 0 to T, [...]; a row of length zero keeps its initial carry.
      steps: T, the length of the padded arrays.

    Returns:
      bool [T, ...].

    Raises:
      ValueError: lengths that are not integers, or not from 0 to T. Inside jit the values are unknown and
        are not checked.

    >>> mask_of_lengths(jnp.array([2, 0, 3]), 3).astype(int).tolist()
    [[1, 0, 1], [1, 0, 1], [0, 0, 1]]
    """
    steps = size("steps", steps) if is_known(steps) else steps
    if isinstance(lengths, np.ndarray):
        check_arrays("lengths", lengths)
    with naming("lengths", "integers"):
        lengths = lengths if isinstance(lengths, jax.Array) else jnp.asarray(np.asarray(lengths))
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise bad("lengths", "integers", lengths, "pass the number of steps of each row")
    came = describe(lengths)
    lengths = lengths.astype(jnp.result_type(int))  # T may be too large for 8 or 16 bits
    if is_known(steps) and lengths.size and not isinstance(lengths, jax.core.Tracer):
        with jax.ensure_compile_time_eval():  # constants have values inside jit, too
            least, most = int(lengths.min()), int(lengths.max())
        if least < 0 or most > steps:
            came = f"{came} from {least} to {most}"
            raise bad("lengths", f"integers from 0 to {steps}", came, "pad to the longest row or increase T")
    t = jnp.arange(steps, dtype=lengths.dtype).reshape((steps,) + (1,) * lengths.ndim)
    return t < lengths[None]

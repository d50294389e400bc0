"""nn.RNN and nnx.RNN arrange their sequences alike: the axis of time, lengths and the order of steps.

Steps behind the length of a row are masked. Its outputs there are zero, and its last carry is that at its
length, for length 0 the initial carry. Flax computes on there; all other numbers are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.adapters.adopted import zero_where_masked
from jax_bptt.base.errors import bad, naming, shown
from jax_bptt.base.trees import trailing
from jax_bptt.base.types import ArrayTree, Foreign, Mark, Shape
from jax_bptt.engine.sequence import mask_of_lengths

Runner: TypeAlias = Callable[[ArrayTree, Array, Mark, bool], tuple[ArrayTree, ArrayTree]]


def time_axis_of(inputs: Array, feature_axes: int, time_major: bool) -> int:
    """Which axis of the inputs is time? It is the first one, or the one before the features."""
    return 0 if time_major else inputs.ndim - feature_axes - 1


def without_time(inputs: Array, time_axis: int) -> Shape:
    """The shape of the inputs of one step."""
    return inputs.shape[:time_axis] + inputs.shape[time_axis + 1 :]


class Arrangement(NamedTuple):
    """How a sequence is arranged; see `over_sequence`."""

    time_axis: int
    batch_axes: int
    reverse: bool
    keep_order: bool


def asked(rnn: Foreign, name: str, value: bool | None) -> bool:
    """What a call of an RNN asks for, and if it is None, what the RNN was made for."""
    found: bool = getattr(rnn, name) if value is None else value
    return found


def arrangement(
    rnn: Foreign, inputs: Array, *, time_major: bool | None, reverse: bool | None, keep_order: bool | None
) -> Arrangement:
    """How the inputs of a call of an RNN are arranged."""
    feature_axes = rnn.cell.num_feature_axes
    return Arrangement(
        time_axis_of(inputs, feature_axes, asked(rnn, "time_major", time_major)),
        inputs.ndim - feature_axes - 1,
        asked(rnn, "reverse", reverse),
        asked(rnn, "keep_order", keep_order),
    )


def over_sequence(
    runner: Runner,
    carry: ArrayTree,
    inputs: Array,
    lengths: Foreign,
    *,
    time_axis: int,
    batch_axes: int,
    reverse: bool,
    keep_order: bool,
) -> tuple[ArrayTree, ArrayTree]:
    """A cell runs over a sequence as flax arranges it.

    Args:
      runner: (carry, xs, mask, reverse) -> (carry, ys), with time first.
      carry: the initial carry.
      inputs: one axis of time, batch axes and features.
      lengths: integers, one for each row, or None.
      time_axis: which axis of the inputs is time.
      batch_axes: how many axes of the inputs are rows.
      reverse: whether each row runs from its last step to its first.
      keep_order: whether the outputs of a reversed run stay at their steps. Otherwise the first output is the
        one that was computed first.

    Returns:
      (carry, outputs), with the axis of time where the inputs have it.
    """
    xs = jnp.moveaxis(inputs, time_axis, 0)
    mask = _mask(lengths, xs.shape[: 1 + batch_axes])
    carry, ys = runner(carry, xs, mask, reverse)
    ys = jax.tree.map(lambda y: zero_where_masked(mask, y), ys)
    if reverse and not keep_order:
        ys = jax.tree.map(lambda y: _turned(mask, y), ys)
    return carry, jax.tree.map(lambda y: jnp.moveaxis(y, 0, time_axis), ys)


def _mask(lengths: Foreign, steps_and_rows: Shape) -> Mark:
    if lengths is None:
        return None
    steps, *rows = steps_and_rows
    with naming("seq_lengths", f"integers [{shown(rows)}]"):
        mask = mask_of_lengths(lengths, steps)
    if mask.shape != steps_and_rows:
        fix = "pass one length for each row of the batch"
        raise bad("seq_lengths", f"integers [{shown(rows)}]", lengths, fix)
    return mask


def _turned(mask: Mark, y: Array) -> Array:
    """Each row from its last step to its first; padding stays at the end."""
    if mask is None:
        return jnp.flip(y, 0)
    lengths = mask.sum(0)
    t = jnp.arange(len(mask), dtype=lengths.dtype).reshape(-1, *[1] * lengths.ndim)
    source: Any = jnp.where(mask, lengths[None] - 1 - t, t)
    return jnp.take_along_axis(y, trailing(source, y), axis=0)

"""What outputs are compared with, and how much each output counts.

The weight of a step and row is 1 unless one is given, and 0 where the mask is False. Both leave an error out
of the loss, but in different ways. Where the mask is False the step is not read, so nothing of it counts,
whatever it is. Where the weight is 0 the step is read: its input moves the carry, and only its error is not
scored. So a NaN in its output is a sign that something went wrong, and it makes the loss NaN. A target that
is not finite, or is no class, does not matter there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.checks import as_arrays, is_array
from jax_bptt.base.errors import bad, shown
from jax_bptt.base.trees import common_dtype, select, wide, zeros_like
from jax_bptt.base.types import ArrayTree, DType, Foreign, Mark, Shape, Targets, Tree, Weight

Counted: TypeAlias = Array | None  # N, what a mean is over; None for a sum


class Judged(NamedTuple):
    """The outputs are compared with these targets.

    Attributes:
      targets: whatever the loss takes.
      mask: bool [T, ...], or [...] with `last`; None if all outputs count.
      weight: floating, shaped like mask, how much an output counts; None if each counts 1.
      n: `count` of all steps and rows; the targets may be only a part of these.
    """

    targets: Targets
    mask: Mark = None
    weight: Weight = None
    n: Counted = None


def total_weight(judged: Judged, leading: Shape) -> Array:
    """N of a mean is the sum of the weights: the number of outputs that count, if there are none.

    Args:
      judged: the mask and the weight.
      leading: the axes of steps and rows, (T, ...), or (...) with `last`.

    Returns:
      N, a scalar.
    """
    mask, weight = as_arrays("mask", judged.mask), as_arrays("weight", judged.weight)
    if weight is not None:
        return select(mask, widened(weight), zeros_like(widened(weight))).sum()
    return jnp.asarray(math.prod(leading)) if mask is None else mask.sum()


def check_weight(weight: Foreign, shape: Shape, dtype: DType) -> Weight:
    """A weight must be an array of this shape and dtype, one number for each output, or None."""
    if weight is None:
        return None
    weight = as_arrays("weight", weight)
    if not is_array(weight) or weight.shape != shape or weight.dtype != dtype:
        fix = (
            f"pass one number for each output: cast it by weight.astype({str(dtype)!r}), or repeat weights "
            "of steps for all rows by jnp.broadcast_to(weight[:, None], (T, batch))"
        )
        raise bad("weight", f"{dtype}[{shown(shape)}]", weight, fix)
    found: Array = weight
    return found


class Scored(NamedTuple):
    """These are ys and targets without what does not count, in float32 at least.

    Attributes:
      ys, targets: zero where they do not count.
      weight: zero where it does not count; None if each counts 1.
      counts: which steps and rows count; None if all do.
      nothing: like ys, what stands in for a value or slope that does not count: zero, or NaN where the step
        was read and ys is NaN.
    """

    ys: ArrayTree
    targets: Targets
    weight: Weight
    counts: Mark
    nothing: ArrayTree


def scored(
    is_finite: Callable[[ArrayTree, Targets], Array],
    ys: ArrayTree,
    targets: Targets,
    judged: Judged,
    leading: Shape,
) -> Scored:
    """What does not count is replaced: ys, targets and the weight by zero where mask is False.

    Where the weight is 0 and the error of ys and targets is not finite, they are replaced as well: 0 times
    infinity is NaN. A NaN in ys stays, since the step was read and something went wrong in it.
    """
    mask = as_arrays("mask", judged.mask)
    if mask is not None and not (is_array(mask) and mask.shape == leading and mask.dtype == bool):
        raise bad("mask", f"bool{list(leading)}", mask, "pass one bool for each step and row")
    weight = check_weight(judged.weight, leading, common_dtype(ys))
    ys, targets = widened((ys, targets))
    ys, targets = select(mask, (ys, targets), zeros_like((ys, targets)))
    if weight is None:
        return Scored(ys, targets, None, mask, zeros_like(ys))
    weight = select(mask, widened(weight), zeros_like(widened(weight)))
    counts = (weight != 0) | is_finite(ys, targets)  # also 0 times a finite error, for dE/dw
    counts = counts if mask is None else counts & mask
    only_nan = jax.tree.map(lambda z: jnp.where(jnp.isnan(z), z, jnp.zeros_like(z)), ys)
    zeros = only_nan, zeros_like(targets), zeros_like(weight)
    return Scored(*select(counts, (ys, targets, weight), zeros), counts, only_nan)


def widened(tree: Tree) -> Tree:
    """Floats are cast to float32 at least: 16 bits hold neither N nor the sum of many terms."""
    return jax.tree.map(
        lambda z: z.astype(wide(z.dtype)) if jnp.issubdtype(z.dtype, jnp.floating) else z, tree
    )

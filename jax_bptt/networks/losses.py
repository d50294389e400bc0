"""Losses E(Y, d) have a derivative by the outputs, dE/dY_t, from which the backward pass begins.

    squared error (the article's)     E = Σ_t Σ (d_t − Y_t)²                                  (D1)
                                      dE/dY_t = −2 (d_t − Y_t)                                (D2)

    softmax cross-entropy of N steps  E = −1/N Σ log p[d],   p = softmax(Y)                   (D3)
                                      dE/dY = (p − onehot(d)) / N                             (D4)

Both are sums over steps, so Y can be computed, used and freed one chunk of steps at a time; N is counted
before. Any other loss is a function (ys, targets) -> scalar of all Y, and jax.vjp computes its dE/dY. That
derivative ends at Y_t, so it does not go through time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jax_bptt.base.checks import as_arrays, is_array, is_floating, is_function
from jax_bptt.base.errors import bad, named, naming, running
from jax_bptt.base.trees import select, wide, zeros_like
from jax_bptt.base.types import Foreign, Mark, Targets

Loss: TypeAlias = Callable[..., Array]  # (ys, targets) -> E, or (ys, targets, mask=mask) -> E
Counted: TypeAlias = Array | None  # N, what a mean is over; None for a sum


@named()
def squared_error(ys: Array, targets: Array, mask: Mark = None) -> Array:
    """The article's squared error is a SUM over all steps, rows and outputs, not a mean.

    E = Σ_t Σ (d_t − Y_t)²   (D1)

    The sum grows with the number of steps and rows, and so does its gradient; choose the learning rate
    accordingly.

    Args:
      ys: Y, [T, ..., O].
      targets: d, same shape and dtype.
      mask: bool [T, ...], or None. Only steps where it is True count; ys and targets elsewhere are ignored.

    Returns:
      E, a scalar in the dtype of ys, but in float32 at least.

    Raises:
      ValueError: ys is not a floating array, or targets or mask have another shape or dtype than they
        should; nothing is broadcast.

    >>> float(squared_error(jnp.array([[1.0], [2.0]]), jnp.array([[1.0], [4.0]])))
    4.0
    """
    return _squares(ys, targets, mask, None)


def _squares(ys: Array, targets: Array, mask: Mark, n: Counted) -> Array:
    ys, targets = _real(ys, targets, mask)
    return optax.squared_error(_wide(ys), _wide(targets)).sum()  # (D1)


def _squares_by_ys(ys: Array, targets: Array, mask: Mark, n: Counted) -> Array:
    ys, targets = _real(ys, targets, mask)
    return -2 * (targets - ys)  # (D2)


@named()
def softmax_cross_entropy(ys: Array, targets: Array, mask: Mark = None) -> Array:
    """The softmax cross-entropy is a MEAN over all steps and rows that count, not a sum; in nats.

    E = −1/N Σ log softmax(Y)[d]   (D3)

    Args:
      ys: logits Y, [T, ..., O].
      targets: classes d, integers in 0..O−1, [T, ...].
      mask: bool [T, ...], or None. Only steps where it is True count; ys and targets elsewhere are ignored.

    Returns:
      E in nats, a scalar in the dtype of ys, but in float32 at least: the mean over the N pairs of step and
      row that count. E and its derivative are NaN if a class is out of range or if nothing counts.

    Raises:
      ValueError: ys is not a floating array, targets are not integers, or targets or mask do not have the
        shape of ys without its last axis.

    >>> round(float(softmax_cross_entropy(jnp.zeros((7, 2, 4)), jnp.ones((7, 2), int))), 4)
    1.3863
    """
    _classes(ys, targets, mask)
    return _nats(ys, targets, mask, _steps_that_count(targets, mask))


def _nats(ys: Array, targets: Array, mask: Mark, n: Counted) -> Array:
    ys, targets, counts = _classes(ys, targets, mask)
    assert n is not None  # `_steps_that_count` counts
    nats = optax.softmax_cross_entropy_with_integer_labels(_wide(ys), targets)
    return (nats * counts).sum() / n.astype(nats.dtype)  # (D3)


def _nats_by_ys(ys: Array, targets: Array, mask: Mark, n: Counted) -> Array:
    ys, targets, counts = _classes(ys, targets, mask)
    assert n is not None  # `_steps_that_count` counts
    p = jax.nn.softmax(_wide(ys))
    p_minus_d = p - jax.nn.one_hot(targets, ys.shape[-1], dtype=p.dtype)
    return (p_minus_d * (counts / n.astype(p.dtype))[..., None]).astype(ys.dtype)  # (D4)


def _steps_that_count(targets: Array, mask: Mark) -> Array:
    return jnp.asarray(targets.size) if mask is None else mask.sum()


class _Additive(NamedTuple):
    """An additive loss is a sum over steps; value and slope take some steps: (ys, targets, mask, N)."""

    value: Callable[[Array, Targets, Mark, Counted], Array]
    slope: Callable[[Array, Targets, Mark, Counted], Array]
    counted: Callable[[Targets, Mark], Counted]  # N of all steps, before any is used


_ADDITIVE = {
    squared_error: _Additive(_squares, _squares_by_ys, lambda targets, mask: None),
    softmax_cross_entropy: _Additive(_nats, _nats_by_ys, _steps_that_count),
}


def is_additive(loss: Loss) -> bool:
    """This tells whether a loss is known to be a sum over steps."""
    return loss in _ADDITIVE


def count(loss: Loss, targets: Targets, mask: Mark) -> Counted:
    """This is N of these steps; None for a loss that does not divide by it."""
    return _ADDITIVE[loss].counted(targets, mask) if is_additive(loss) else None


def value_and_slope_of_steps(
    loss: Loss, ys: Array, targets: Targets, mask: Mark, n: Counted
) -> tuple[Array, Array]:
    """Some steps of an additive loss give a part of E and its derivative dE/dY.

    Args:
      loss: `squared_error` or `softmax_cross_entropy`.
      ys: Y of these steps, [K, ..., O].
      targets, mask: the targets and the mask of these steps.
      n: `count` of all steps.

    Returns:
      Their part of E, a scalar, and dE/dY, like ys.

    Raises:
      ValueError: ys, targets or mask do not fit together.
    """
    return _ADDITIVE[loss].value(ys, targets, mask, n), _ADDITIVE[loss].slope(ys, targets, mask, n)


def value_and_slope(
    loss: Loss, ys: Array, targets: Targets, mask: Mark, n: Counted = None
) -> tuple[Array, Array]:
    """Any loss gives E and its derivative by the outputs, dE/dY.

    Args:
      loss: one of the above, or any function (ys, targets) -> scalar. If there is a mask, it is called with
        mask=mask, and its dE/dY is zero where mask is False.
      ys: Y, [T, ..., O].
      targets: whatever the loss takes.
      mask: bool [T, ...], or None.
      n: `count` of all steps, if ys holds only some of them; E is then a part. None counts the steps of ys.

    Returns:
      E, a scalar, and dE/dY, like ys.

    Raises:
      ValueError: the loss does not return a floating scalar, or there is a mask and it takes none.
    """
    given = {} if mask is None else {"mask": mask}
    if is_additive(loss):
        check_targets(loss, ys, targets, mask)
        n = count(loss, targets, mask) if n is None else n
        return value_and_slope_of_steps(loss, ys, targets, mask, n)
    if mask is not None and not _takes_mask(loss):
        fix = "give it a third argument mask, and count only the steps where mask is True"
        raise bad("loss", "a function that takes the mask", loss, fix)
    with running("loss"):
        error = jax.eval_shape(lambda ys: loss(ys, targets, **given), ys)
    if getattr(error, "shape", None) != () or not jnp.issubdtype(error.dtype, jnp.floating):
        raise bad("loss", "a floating scalar", error, "sum or average over time, rows and outputs")
    error, pullback = jax.vjp(lambda ys: jnp.asarray(loss(ys, targets, **given)), ys)
    d_ys = pullback(jnp.ones_like(error))[0]
    return error, select(mask, d_ys, zeros_like(d_ys))


def check_targets(loss: Loss, ys: object, targets: Targets, mask: Mark) -> None:
    """This raises a ValueError unless targets fit an additive loss of ys; a shape is enough for ys."""
    given = {"targets": targets, "mask": mask}
    arrays = {name: z for name, z in given.items() if is_array(z)}
    shapes = jax.tree.map(lambda z: jax.ShapeDtypeStruct(z.shape, z.dtype), {"ys": ys, **arrays})
    jax.eval_shape(lambda shapes: loss(**given | shapes), shapes)


def check_loss(loss: object) -> None:
    """This raises a ValueError unless loss is a hashable function."""
    if not is_function(loss):
        raise bad("loss", "a function (ys, targets) -> scalar", loss, "pass jb.squared_error or your own")


def _takes_mask(loss: Loss) -> bool:
    with naming("loss", "a function with a signature"):  # some built-in functions have none
        parameters = inspect.signature(loss).parameters.values()
    return any(p.name == "mask" or p.kind is p.VAR_KEYWORD for p in parameters)


def _real(ys: object, targets: Targets, mask: Mark) -> tuple[Array, Array]:
    """ys and targets are checked and returned, both zero where they do not count."""
    ys, targets, mask = _outputs(ys), as_arrays("targets", targets), as_arrays("mask", mask)
    if not is_array(targets) or targets.shape != ys.shape or targets.dtype != ys.dtype:
        raise bad("targets", f"an array like ys, {ys.dtype}{list(ys.shape)}", targets, "reshape or cast it")
    _check_mask(mask, ys)
    return select(mask, (ys, targets), zeros_like((ys, targets)))


def _classes(ys: object, targets: Targets, mask: Mark) -> tuple[Array, Array, Array]:
    """ys and targets are checked and returned, zero where they do not count, with 1 where a step counts."""
    ys, targets, mask = _outputs(ys), as_arrays("targets", targets), as_arrays("mask", mask)
    shape = targets.shape if is_array(targets) else None
    if shape != ys.shape[:-1] or not jnp.issubdtype(targets.dtype, jnp.integer):
        fix = "pass class indices, one for each row of ys, not one-hot rows"
        raise bad("targets", f"integer classes {list(ys.shape[:-1])}", targets, fix)
    targets = targets.astype(jnp.int32) if targets.dtype.itemsize < 4 else targets  # O may exceed 8 bits
    _check_mask(mask, ys)
    ys, targets = select(mask, (ys, targets), zeros_like((ys, targets)))
    one = _one_in_range(ys, targets)
    return ys, targets, one if mask is None else one * mask.astype(one.dtype)


def _check_mask(mask: Foreign, ys: Array) -> None:
    if mask is not None and not (is_array(mask) and mask.shape == ys.shape[:-1] and mask.dtype == bool):
        raise bad("mask", f"bool{list(ys.shape[:-1])}", mask, "pass one bool for each step and row")


def _outputs(ys: Foreign) -> Array:
    ys = as_arrays("ys", ys)
    if not is_floating(ys) or not ys.ndim:
        raise bad("ys", "a floating array [T, ..., O]", ys, "pass the ys that net.apply returns")
    found: Array = ys
    return found


def _one_in_range(ys: Array, targets: Array) -> Array:
    """This is 1 where a class is in range and NaN elsewhere, so that a wrong label makes the loss NaN."""
    in_range = (targets >= 0) & (targets < ys.shape[-1])
    return jnp.where(in_range, jnp.ones((), wide(ys.dtype)), jnp.nan)


def _wide(ys: Array) -> Array:
    """The outputs are cast to float32 at least: 16 bits hold neither N nor the sum of many terms."""
    return ys.astype(wide(ys.dtype))

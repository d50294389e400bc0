"""Losses E(Y, d) have a derivative by the outputs, dE/dY_t, from which the backward pass begins.

    article                  E = Σ_t Σ (d_t − Y_t)²

    squared error            E = Σ_t w_t Σ (d_t − Y_t)²                                       (D1)
                             dE/dY_t = −2 w_t (d_t − Y_t)                                     (D2)

    softmax cross-entropy    E = −1/N Σ w log p[d],   p = softmax(Y),   N = Σ w               (D3)
                             dE/dY = w (p − onehot(d)) / N                                    (D4)

The weight w of a step and row is 1 unless one is given, and 0 where the mask is False; see `judged`. Here are
the error of one step and row and its slope; `step_errors` weighs them, adds them up and divides by N.

Any other loss is a function (ys, targets) -> scalar of all Y, and jax.vjp computes its dE/dY. That derivative
ends at Y_t, so it does not go through time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jax_bptt.base.checks import is_array, is_floating, is_function
from jax_bptt.base.errors import bad, named, naming, running
from jax_bptt.base.trees import select, zeros_like
from jax_bptt.base.types import ArrayTree, Mark, Shape, Weight
from jax_bptt.networks import step_errors
from jax_bptt.networks.judged import Counted, Judged, total_weight
from jax_bptt.networks.step_errors import Loss as Loss
from jax_bptt.networks.step_errors import StepLoss, face_of, step_loss_of


def check_real(ys: object, targets: object) -> None:
    """This raises a ValueError unless targets are numbers of the shape and dtype of ys."""
    ys = outputs(ys)
    if not isinstance(targets, Array) or targets.shape != ys.shape or targets.dtype != ys.dtype:
        raise bad("targets", f"an array like ys, {ys.dtype}{list(ys.shape)}", targets, "reshape or cast it")


def _squares(y: Array, target: Array) -> Array:
    return optax.squared_error(y, target).sum()  # (D1)


def _squares_slope(y: Array, target: Array) -> Array:
    return -2 * (target - y)  # (D2)


_SQUARED = StepLoss(_squares, is_mean=False, slope=_squares_slope, check=check_real)


@face_of(_SQUARED)
@named()
def squared_error(ys: Array, targets: Array, mask: Mark = None, weight: Weight = None) -> Array:
    """The article's squared error is a SUM over all steps, rows and outputs, not a mean.

    E = Σ_t w_t Σ (d_t − Y_t)²   (D1)

    The sum grows with the number of steps and rows, and so does its gradient; choose the learning rate
    accordingly.

    Args:
      ys: Y, [T, ..., O].
      targets: d, same shape and dtype.
      mask: bool [T, ...], or None. Only steps where it is True count; ys and targets elsewhere are ignored.
      weight: w, [T, ...] in the dtype of ys, of any sign; None for 1. Where it is exactly 0, an error that
        is not finite, as of a target NaN, counts as 0. A NaN in ys is not ignored there.

    Returns:
      E, a scalar in the dtype of ys, but in float32 at least.

    Raises:
      ValueError: ys is not a floating array, or targets, mask or weight have another shape or dtype than
        they should; nothing is broadcast.

    >>> float(squared_error(jnp.array([[1.0], [2.0]]), jnp.array([[1.0], [4.0]])))
    4.0
    """
    return _SQUARED(ys, targets, mask, weight)


def _check_classes(ys: object, targets: object) -> None:
    leading = outputs(ys).shape[:-1]
    if isinstance(targets, Array) and targets.shape == leading and jnp.issubdtype(targets.dtype, jnp.integer):
        return
    fix = "pass class indices, one for each row of ys, not one-hot rows"
    raise bad("targets", f"integer classes {list(leading)}", targets, fix)


def _nats(y: Array, target: Array) -> Array:
    nats: Array = optax.softmax_cross_entropy_with_integer_labels(y, _index(target))  # (D3)
    return nats * _one_in_range(y, target)


def _nats_slope(y: Array, target: Array) -> Array:
    p = jax.nn.softmax(y)
    return (p - jax.nn.one_hot(_index(target), y.size, dtype=p.dtype)) * _one_in_range(y, target)  # (D4)


def _index(target: Array) -> Array:
    """O may exceed what 8 bits hold."""
    return target.astype(jnp.int32) if target.dtype.itemsize < 4 else target


def _one_in_range(y: Array, target: Array) -> Array:
    """This is 1 where a class is in range and NaN elsewhere, so that a wrong label makes the loss NaN."""
    in_range = (_index(target) >= 0) & (_index(target) < y.size)
    return jnp.where(in_range, jnp.ones((), y.dtype), jnp.nan)


_SOFTMAX = StepLoss(_nats, is_mean=True, slope=_nats_slope, check=_check_classes)


@face_of(_SOFTMAX)
@named()
def softmax_cross_entropy(ys: Array, targets: Array, mask: Mark = None, weight: Weight = None) -> Array:
    """The softmax cross-entropy is a MEAN over all steps and rows that count, not a sum; in nats.

    E = −1/N Σ w log softmax(Y)[d],   N = Σ w   (D3)

    Args:
      ys: logits Y, [T, ..., O].
      targets: classes d, integers in 0..O−1, [T, ...].
      mask: bool [T, ...], or None. Only steps where it is True count; ys and targets elsewhere are ignored.
      weight: w, [T, ...] in the dtype of ys, of any sign; None for 1. Where it is exactly 0, the class may
        be out of range, such as −1: an error that is not finite counts as 0 there. A NaN in ys is not
        ignored.

    Returns:
      E in nats, a scalar in the dtype of ys, but in float32 at least: the weighted mean over the pairs of
      step and row that count. E and its derivative are NaN if a class is out of range or if nothing counts,
      as where all weights are 0.

    Raises:
      ValueError: ys is not a floating array, targets are not integers, or targets, mask or weight do not
        have the shape of ys without its last axis.

    >>> round(float(softmax_cross_entropy(jnp.zeros((7, 2, 4)), jnp.ones((7, 2), int))), 4)
    1.3863
    """
    return _SOFTMAX(ys, targets, mask, weight)


def outputs(ys: object) -> Array:
    """ys are returned if they are one floating array."""
    if not isinstance(ys, Array) or not is_floating(ys) or not ys.ndim:
        raise bad("ys", "a floating array [T, ..., O]", ys, "pass the ys that net.apply returns")
    return ys


def is_additive(loss: Loss) -> bool:
    """This tells whether a loss is known to be a sum over steps."""
    return step_loss_of(loss) is not None


def count(loss: Loss, judged: Judged, leading: Shape) -> Counted:
    """This is N of these steps, whose axes are (T, ...), or (...) with `last`; None for a sum."""
    of_steps = step_loss_of(loss)
    return total_weight(judged, leading) if of_steps is not None and of_steps.is_mean else None


def value_and_slope_of_steps(
    loss: Loss, ys: ArrayTree, judged: Judged, leading: Shape | None = None
) -> tuple[Array, ArrayTree]:
    """Some steps of an additive loss give a part of E and its derivative dE/dY.

    Args:
      loss: one that is made from the error of one step, such as `squared_error`.
      ys: Y of these steps, a tree with leaves [K, ..., O].
      judged: the targets, mask and weight of these steps, and N of all steps; without it these are all.
      leading: the axes of steps and rows, (K, ...); None if only the last axis of ys is none of them.

    Returns:
      Their part of E, a scalar, and dE/dY, like ys.

    Raises:
      ValueError: ys, targets, mask or weight do not fit together.
    """
    of_steps = step_loss_of(loss)
    assert of_steps is not None  # `is_additive` tells
    return step_errors.value_and_slope(of_steps, ys, judged, leading)


def value_and_slope(
    loss: Loss, ys: ArrayTree, judged: Judged, leading: Shape | None = None
) -> tuple[Array, ArrayTree]:
    """Any loss gives E and its derivative by the outputs, dE/dY.

    Args:
      loss: one that is made from the error of one step, or any function (ys, targets) -> scalar. If there is
        a mask, it is called with mask=mask, and its dE/dY is zero where mask is False. If there is a weight,
        it is called with weight=weight.
      ys: Y, a tree with leaves [T, ..., O].
      judged: the targets, mask and weight. If N is given, ys holds only some of all steps, and E is a part.
      leading: as for `value_and_slope_of_steps`.

    Returns:
      E, a scalar, and dE/dY, like ys.

    Raises:
      ValueError: the loss does not return a floating scalar, or there is a mask or weight and it takes none.
    """
    if is_additive(loss):
        return value_and_slope_of_steps(loss, ys, judged, leading)
    assert not isinstance(loss, StepLoss)  # it is additive
    given = _taken(loss, judged)
    with running("loss"):
        error = jax.eval_shape(lambda ys: loss(ys, judged.targets, **given), ys)
    if getattr(error, "shape", None) != () or not jnp.issubdtype(error.dtype, jnp.floating):
        raise bad("loss", "a floating scalar", error, "sum or average over time, rows and outputs")
    error, pullback = jax.vjp(lambda ys: jnp.asarray(loss(ys, judged.targets, **given)), ys)
    d_ys = pullback(jnp.ones_like(error))[0]
    return error, select(judged.mask, d_ys, zeros_like(d_ys))


def _taken(loss: Callable[..., Array], judged: Judged) -> dict[str, Array]:
    """The mask and the weight, as far as there are any, for a loss that must take them."""
    fixes = {
        "mask": "give it a third argument mask, and count only the steps where mask is True",
        "weight": "give it an argument weight, and multiply the error of each step and row by its weight",
    }
    given = {name: z for name, z in judged._asdict().items() if name in fixes and z is not None}
    for name in given:
        if not _takes(loss, name):
            raise bad("loss", f"a function that takes the {name}", loss, fixes[name])
    return given


def _takes(loss: Callable[..., Array], argument: str) -> bool:
    with naming("loss", "a function with a signature"):  # some built-in functions have none
        parameters = inspect.signature(loss).parameters.values()
    return any(p.name == argument or p.kind is p.VAR_KEYWORD for p in parameters)


def check_targets(loss: Loss, ys: ArrayTree, judged: Judged, leading: Shape) -> None:
    """This raises a ValueError unless targets fit an additive loss of ys; shapes are enough for ys."""
    leaves, structure = jax.tree.flatten((ys, judged.targets, judged.mask, judged.weight))
    shapes = {
        number: jax.ShapeDtypeStruct(z.shape, z.dtype)
        for number, z in enumerate(leaves)
        if is_array(z) or isinstance(z, jax.ShapeDtypeStruct)
    }

    def run(arrays: dict[int, Array]) -> tuple[Array, ArrayTree]:
        here = [arrays.get(number, z) for number, z in enumerate(leaves)]
        ys, *others = jax.tree.unflatten(structure, here)
        return value_and_slope_of_steps(loss, ys, Judged(*others), leading)

    jax.eval_shape(run, shapes)


def check_loss(loss: object) -> None:
    """This raises a ValueError unless loss is a hashable function."""
    if not (isinstance(loss, StepLoss) or is_function(loss)):
        raise bad("loss", "a function (ys, targets) -> scalar", loss, "pass jb.squared_error or your own")

"""Losses E(Y, d) have a derivative by the outputs, dE/dY_t, from which the backward pass begins.

    article                  E = Σ_t Σ (d_t − Y_t)²

    squared error            E = Σ_t w_t Σ (d_t − Y_t)²                                       (D1)
                             dE/dY_t = −2 w_t (d_t − Y_t)                                     (D2)

    softmax cross-entropy    E = −1/N Σ w log p[d],   p = softmax(Y),   N = Σ w               (D3)
                             dE/dY = w (p − onehot(d)) / N                                    (D4)

The weight w of a step and row is 1 unless one is given, and 0 where the mask is False; see `judged`.

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
from jax_bptt.base.trees import select, times_rows, wide, zeros_like
from jax_bptt.base.types import Foreign, Mark, Weight
from jax_bptt.networks.judged import Counted, Judged, Scored, scored, total_weight, widened

Loss: TypeAlias = Callable[..., Array]  # (ys, targets) -> E, also of mask=mask and weight=weight if given


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
    return _squares(ys, Judged(targets, mask, weight))


def _squares(ys: Array, judged: Judged) -> Array:
    ys, targets, weight = _real(ys, judged)
    squares = optax.squared_error(widened(ys), widened(targets))
    return (squares if weight is None else times_rows(weight, squares)).sum()  # (D1)


def _squares_by_ys(ys: Array, judged: Judged) -> Array:
    ys, targets, weight = _real(ys, judged)
    slope = -2 * (targets - ys)
    return slope if weight is None else times_rows(weight, widened(slope)).astype(ys.dtype)  # (D2)


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
    judged = Judged(targets, mask, weight)
    _classes(ys, judged)
    return _nats(ys, judged._replace(n=total_weight(judged)))


def _nats(ys: Array, judged: Judged) -> Array:
    ys, targets, weight = _classes(ys, judged)
    assert judged.n is not None  # `total_weight` counts
    nats = _nats_of_each(ys, targets)
    return (nats * weight).sum() / judged.n.astype(nats.dtype)  # (D3)


def _nats_by_ys(ys: Array, judged: Judged) -> Array:
    ys, targets, weight = _classes(ys, judged)
    assert judged.n is not None  # `total_weight` counts
    p = jax.nn.softmax(widened(ys))
    p_minus_d = p - jax.nn.one_hot(targets, ys.shape[-1], dtype=p.dtype)
    return (p_minus_d * (weight / judged.n.astype(p.dtype))[..., None]).astype(ys.dtype)  # (D4)


def _nats_of_each(ys: Array, targets: Array) -> Array:
    nats: Array = optax.softmax_cross_entropy_with_integer_labels(widened(ys), targets)
    return nats


class _Additive(NamedTuple):
    """An additive loss is a sum over steps; value and slope take the outputs of some steps."""

    value: Callable[[Array, Judged], Array]
    slope: Callable[[Array, Judged], Array]
    counted: Callable[[Judged], Counted]  # N of all steps, before any is used


_ADDITIVE = {
    squared_error: _Additive(_squares, _squares_by_ys, lambda judged: None),
    softmax_cross_entropy: _Additive(_nats, _nats_by_ys, total_weight),
}


def is_additive(loss: Loss) -> bool:
    """This tells whether a loss is known to be a sum over steps."""
    return loss in _ADDITIVE


def count(loss: Loss, judged: Judged) -> Counted:
    """This is N of these steps; None for a loss that does not divide by it."""
    return _ADDITIVE[loss].counted(judged) if is_additive(loss) else None


def value_and_slope_of_steps(loss: Loss, ys: Array, judged: Judged) -> tuple[Array, Array]:
    """Some steps of an additive loss give a part of E and its derivative dE/dY.

    Args:
      loss: `squared_error` or `softmax_cross_entropy`.
      ys: Y of these steps, [K, ..., O].
      judged: the targets, mask and weight of these steps, and N of all steps.

    Returns:
      Their part of E, a scalar, and dE/dY, like ys.

    Raises:
      ValueError: ys, targets, mask or weight do not fit together.
    """
    return _ADDITIVE[loss].value(ys, judged), _ADDITIVE[loss].slope(ys, judged)


def value_and_slope(loss: Loss, ys: Array, judged: Judged) -> tuple[Array, Array]:
    """Any loss gives E and its derivative by the outputs, dE/dY.

    Args:
      loss: one of the above, or any function (ys, targets) -> scalar. If there is a mask, it is called with
        mask=mask, and its dE/dY is zero where mask is False. If there is a weight, it is called with
        weight=weight.
      ys: Y, [T, ..., O].
      judged: the targets, mask and weight. If N is given, ys holds only some of all steps, and E is a part.

    Returns:
      E, a scalar, and dE/dY, like ys.

    Raises:
      ValueError: the loss does not return a floating scalar, or there is a mask or weight and it takes none.
    """
    if is_additive(loss):
        check_targets(loss, ys, judged)
        n = count(loss, judged) if judged.n is None else judged.n
        return value_and_slope_of_steps(loss, ys, judged._replace(n=n))
    given = _taken(loss, judged)
    with running("loss"):
        error = jax.eval_shape(lambda ys: loss(ys, judged.targets, **given), ys)
    if getattr(error, "shape", None) != () or not jnp.issubdtype(error.dtype, jnp.floating):
        raise bad("loss", "a floating scalar", error, "sum or average over time, rows and outputs")
    error, pullback = jax.vjp(lambda ys: jnp.asarray(loss(ys, judged.targets, **given)), ys)
    d_ys = pullback(jnp.ones_like(error))[0]
    return error, select(judged.mask, d_ys, zeros_like(d_ys))


def _taken(loss: Loss, judged: Judged) -> dict[str, Array]:
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


def _takes(loss: Loss, argument: str) -> bool:
    with naming("loss", "a function with a signature"):  # some built-in functions have none
        parameters = inspect.signature(loss).parameters.values()
    return any(p.name == argument or p.kind is p.VAR_KEYWORD for p in parameters)


def check_targets(loss: Loss, ys: object, judged: Judged) -> None:
    """This raises a ValueError unless targets fit an additive loss of ys; a shape is enough for ys."""
    given = {"targets": judged.targets, "mask": judged.mask, "weight": judged.weight}
    arrays = {name: z for name, z in given.items() if is_array(z)}
    shapes = jax.tree.map(lambda z: jax.ShapeDtypeStruct(z.shape, z.dtype), {"ys": ys, **arrays})
    jax.eval_shape(lambda shapes: loss(**given | shapes), shapes)


def check_loss(loss: object) -> None:
    """This raises a ValueError unless loss is a hashable function."""
    if not is_function(loss):
        raise bad("loss", "a function (ys, targets) -> scalar", loss, "pass jb.squared_error or your own")


def _real(ys: object, judged: Judged) -> Scored:
    """ys and targets are checked and returned, both zero where they do not count."""
    ys, targets = _outputs(ys), as_arrays("targets", judged.targets)
    if not is_array(targets) or targets.shape != ys.shape or targets.dtype != ys.dtype:
        raise bad("targets", f"an array like ys, {ys.dtype}{list(ys.shape)}", targets, "reshape or cast it")

    def error(ys: Array, targets: Array) -> Array:
        return optax.squared_error(widened(ys), widened(targets)).sum(-1)

    return scored(error, ys, targets, judged)


def _classes(ys: object, judged: Judged) -> tuple[Array, Array, Array]:
    """ys and targets are checked and returned, zero where they do not count, with the weight of each."""
    ys, targets = _outputs(ys), as_arrays("targets", judged.targets)
    shape = targets.shape if is_array(targets) else None
    if shape != ys.shape[:-1] or not jnp.issubdtype(targets.dtype, jnp.integer):
        fix = "pass class indices, one for each row of ys, not one-hot rows"
        raise bad("targets", f"integer classes {list(ys.shape[:-1])}", targets, fix)
    targets = targets.astype(jnp.int32) if targets.dtype.itemsize < 4 else targets  # O may exceed 8 bits

    def error(ys: Array, targets: Array) -> Array:
        return _nats_of_each(ys, targets) * _one_in_range(ys, targets)

    ys, targets, weight = scored(error, ys, targets, judged)
    one, mask = _one_in_range(ys, targets), as_arrays("mask", judged.mask)
    if weight is None:
        weight = None if mask is None else mask.astype(one.dtype)
    return ys, targets, one if weight is None else one * weight


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

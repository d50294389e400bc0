"""Losses E(Y, d) and their derivative by the outputs, dE/dY_t, where the way back begins.

    squared error (the article's)     E = Σ_t Σ (d_t − Y_t)²                                  (E1)
                                      dE/dY_t = −2 (d_t − Y_t)                                (E2)

    softmax cross-entropy, N rows     E = −1/N Σ log p[d],   p = softmax(Y)                   (E3)
                                      dE/dY = (p − onehot(d)) / N                             (E4)

Any other loss is a callable (ys, targets) -> scalar; its dE/dY is taken by jax.vjp, which involves
no time: Y_t is where it stops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jax_bptt.errors import bad

Loss = Callable[[Array, Any], Array]


def squared_error(ys: Array, targets: Array) -> Array:
    """The article's error: the sum of squares over time, rows and outputs.

    E = Σ_t Σ (d_t − Y_t)²   (E1)

    Args:
      ys: Y, [T, ..., O].
      targets: d, same shape and dtype.

    Returns:
      E, a scalar; a sum, not a mean.

    Raises:
      ValueError: targets of another shape or dtype (nothing is broadcast).

    >>> float(squared_error(jnp.array([[1.0], [2.0]]), jnp.array([[1.0], [4.0]])))
    4.0
    """
    _check_real_targets(ys, targets)
    return optax.squared_error(ys, targets).sum()  # (E1)


def _squared_error_by_ys(ys: Array, targets: Array) -> Array:
    return -2 * (targets - ys)  # (E2)


def softmax_cross_entropy(ys: Array, targets: Array) -> Array:
    """The mean cross-entropy of integer classes, in nats per step and row.

    E = −1/N Σ log softmax(Y)[d]   (E3)

    Args:
      ys: logits Y, [T, ..., O].
      targets: classes d, integers in 0..O−1, [T, ...].

    Returns:
      E in nats, a scalar; NaN where a class is out of range.

    Raises:
      ValueError: targets that are not integers, or not of the shape of ys without its last axis.

    >>> round(float(softmax_cross_entropy(jnp.zeros((7, 2, 4)), jnp.ones((7, 2), int))), 4)
    1.3863
    """
    _check_classes(ys, targets)
    nats = optax.softmax_cross_entropy_with_integer_labels(ys, targets)
    return jnp.where(_in_range(ys, targets), nats, jnp.nan).mean()  # (E3)


def _softmax_cross_entropy_by_ys(ys: Array, targets: Array) -> Array:
    p_minus_d = jax.nn.softmax(ys) - jax.nn.one_hot(targets, ys.shape[-1], dtype=ys.dtype)
    return jnp.where(_in_range(ys, targets)[..., None], p_minus_d, jnp.nan) / targets.size  # (E4)


_BY_YS = {squared_error: _squared_error_by_ys, softmax_cross_entropy: _softmax_cross_entropy_by_ys}


def value_and_slope(loss: Loss, ys: Array, targets: Any) -> tuple[Array, Array]:
    """E and dE/dY.

    Args:
      loss: one of the above, or any (ys, targets) -> scalar.
      ys: Y, [T, ..., O].
      targets: whatever the loss takes.

    Returns:
      E, a scalar, and dE/dY, like ys.

    Raises:
      ValueError: a loss that is not a scalar of the dtype of ys.
    """
    if not callable(loss):
        raise bad("loss", "a function (ys, targets) -> scalar", loss, "pass jb.squared_error or your own")
    if loss in _BY_YS:
        return loss(ys, targets), _BY_YS[loss](ys, targets)
    error, pullback = jax.vjp(lambda ys: loss(ys, targets), ys)
    if jnp.shape(error) != () or error.dtype != ys.dtype:
        raise bad("loss", f"a scalar {ys.dtype}", error, "sum or average over time, rows and outputs")
    return error, pullback(jnp.ones_like(error))[0]


def _check_real_targets(ys: Array, targets: Any) -> None:
    if getattr(targets, "shape", None) != ys.shape or targets.dtype != ys.dtype:
        raise bad("targets", f"an array like ys, {ys.dtype}{list(ys.shape)}", targets, "reshape or cast it")


def _check_classes(ys: Array, targets: Any) -> None:
    shape = getattr(targets, "shape", None)
    if shape != ys.shape[:-1] or not jnp.issubdtype(targets.dtype, jnp.integer):
        raise bad(
            "targets",
            f"integer classes {list(ys.shape[:-1])}",
            targets,
            "pass class indices, not one-hot rows",
        )


def _in_range(ys: Array, targets: Array) -> Array:
    return (targets >= 0) & (targets < ys.shape[-1])

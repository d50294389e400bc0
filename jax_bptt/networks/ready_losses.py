"""Losses that are made from the error e of one step and row; each is a MEAN over steps and rows.

    Gaussian     e = Σ ½ z² + s + ½ log 2π,   z = (d − μ) exp(−s),   Y = [μ, s]               (D8)
                 de/dμ = −z exp(−s),   de/ds = 1 − z²                                         (D9)

    quantile     e = Σ u c,   u = d − y,   c = τ − ½ + ½ sign u                               (D10)
                 that is τ u where u > 0, and (τ − 1) u where u < 0
                 de/dy = −c,   at the kink u = 0 the mean ½ − τ of both sides                 (D11)

Σ goes over the outputs. The errors of Huber and of binary cross-entropy are those of optax.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import optax
from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import number, positive
from jax_bptt.base.errors import bad, named, shown
from jax_bptt.base.types import Foreign, Mark, Weight
from jax_bptt.networks.losses import check_real, outputs
from jax_bptt.networks.step_errors import StepLoss, face_of


def _check_gaussian(ys: object, targets: object) -> None:
    fix = "ys must have 2D numbers for D targets: means first, then log standard deviations"
    _check_sizes(outputs(ys), targets, 2, fix)


def _check_sizes(ys: Array, targets: object, times: int, fix: str) -> None:
    """ys must have so many numbers for each number of targets, and be like them in all else."""
    if ys.shape[-1] % times:
        raise bad("ys", f"a last axis of {times} numbers for each target", ys, fix)
    right = (*ys.shape[:-1], ys.shape[-1] // times)
    if not isinstance(targets, Array) or targets.shape != right or targets.dtype != ys.dtype:
        raise bad("targets", f"{ys.dtype}[{shown(right)}] for these ys", targets, fix)


def _gaussian(y: Array, target: Array) -> Array:
    mean, log_deviation = jnp.split(y, 2)
    z = (target - mean) * jnp.exp(-log_deviation)
    return (0.5 * z**2 + log_deviation + 0.5 * math.log(2 * math.pi)).sum()  # (D8)


def _gaussian_slope(y: Array, target: Array) -> Array:
    mean, log_deviation = jnp.split(y, 2)
    z = (target - mean) * jnp.exp(-log_deviation)
    return jnp.concatenate([-z * jnp.exp(-log_deviation), 1 - z**2])  # (D9)


_GAUSSIAN = StepLoss(_gaussian, is_mean=True, slope=_gaussian_slope, check=_check_gaussian)


@face_of(_GAUSSIAN)
@named()
def gaussian_nll(ys: Array, targets: Array, mask: Mark = None, weight: Weight = None) -> Array:
    """The negative log-likelihood of normal distributions is a MEAN over steps and rows; in nats.

    E = 1/N Σ w Σ (½ z² + s + ½ log 2π),   z = (d − μ) exp(−s)   (D6, D8)

    Args:
      ys: Y, [T, ..., 2D]: the D means μ first, then the D log standard deviations s.
      targets: d, [T, ..., D], in the dtype of ys.
      mask: bool [T, ...], or None. Only steps where it is True count; others are not read.
      weight: w, [T, ...] in the dtype of ys, as for `squared_error`; None for 1.

    Returns:
      E in nats, a scalar in the dtype of ys, but in float32 at least: the weighted mean over steps and rows
      of the sum over D. It may be negative. It is NaN where nothing counts.

    Raises:
      ValueError: ys is not a floating array, or targets, mask or weight do not fit it.

    Reference: Bishop 1994 (mixture density networks), with one component.

    >>> round(float(gaussian_nll(jnp.zeros((7, 2, 6)), jnp.ones((7, 2, 3)))), 4)
    4.2568
    """
    return _GAUSSIAN(ys, targets, mask, weight)


def _levels(argument: str, value: Foreign) -> tuple[float, ...]:
    expected = "levels between 0 and 1"
    fix = "pass a list such as [0.1, 0.5, 0.9]"
    if not isinstance(value, (list, tuple)):
        raise bad(argument, expected, value, fix)
    found = tuple(number(argument, expected, one) for one in value)
    if not found or not all(0 < one < 1 for one in found):
        raise bad(argument, expected, value, fix)
    return found


@cached(levels=_levels)
def quantile_error(levels: Sequence[float]) -> StepLoss:
    """The quantile (pinball) loss is a MEAN over steps and rows; its least value is at the quantiles.

    E = 1/N Σ w Σ u (τ − ½ + ½ sign u),   u = d − y   (D6, D10)

    It is τ u where the target lies above the output, and (1 − τ) |u| where it lies below. Where they are
    equal the derivative is the mean of both sides, ½ − τ, so that of a median is zero.

    Args:
      levels: τ, the Q levels between 0 and 1, such as [0.1, 0.5, 0.9].

    Returns:
      The loss, a function (ys, targets, mask=None, weight=None) -> E; the same object for the same levels.
      ys is [T, ..., D Q], the Q quantiles of the first target first; targets is [T, ..., D], in the dtype
      of ys. E is the weighted mean over steps and rows of the sum over D and Q. See `mean_over_steps`.

    Raises:
      ValueError: a level is not between 0 and 1, or there is none.

    Reference: Koenker & Bassett 1978.

    >>> loss = quantile_error([0.25, 0.5, 0.75])
    >>> float(loss(jnp.zeros((7, 2, 3)), jnp.ones((7, 2, 1))))
    1.5
    """
    checked = tuple(levels)

    def check(ys: object, targets: object) -> None:
        fix = f"ys must have {len(checked)} numbers for each target, one for each of levels"
        _check_sizes(outputs(ys), targets, len(checked), fix)

    error, slope = (functools.partial(f, checked) for f in (_pinball, _pinball_slope))
    return StepLoss(error, is_mean=True, slope=slope, check=check)


def _pinball(levels: tuple[float, ...], y: Array, target: Array) -> Array:
    u, c = _above(levels, y, target)
    return (u * c).sum()  # (D10)


def _pinball_slope(levels: tuple[float, ...], y: Array, target: Array) -> Array:
    return -_above(levels, y, target)[1].ravel()  # (D11)


def _above(levels: tuple[float, ...], y: Array, target: Array) -> tuple[Array, Array]:
    """u and c, both [D, Q]."""
    u = target[:, None] - y.reshape(target.size, len(levels))
    tau = jnp.broadcast_to(jnp.asarray(levels, y.dtype), u.shape)
    return u, tau - 0.5 + 0.5 * jnp.sign(u)


def _delta(argument: str, value: Foreign) -> float:
    return positive(argument, "a number above 0", value, "pass the error from which the loss is linear")


@cached(delta=_delta)
def huber_error(delta: float = 1.0) -> StepLoss:
    """The Huber loss is a MEAN over steps and rows: squares of small errors, and large ones are linear.

    E = 1/N Σ w Σ h(d − y),   h(u) = ½ u² where |u| ≤ δ, else δ (|u| − ½ δ)   (D6)

    Args:
      delta: δ, above 0, in the unit of the targets.

    Returns:
      The loss, a function (ys, targets, mask=None, weight=None) -> E; the same object for the same delta.
      ys and targets are [T, ..., D] in one dtype. E is the weighted mean over steps and rows of the sum over
      D of optax.huber_loss. See `mean_over_steps`.

    Raises:
      ValueError: delta is not a number above 0.

    Reference: Huber 1964.

    >>> float(huber_error(2.0)(jnp.zeros((7, 2, 1)), jnp.full((7, 2, 1), 3.0)))
    4.0
    """
    return StepLoss(functools.partial(_huber, delta), is_mean=True, check=check_real)


def _huber(delta: float, y: Array, target: Array) -> Array:
    return optax.huber_loss(y, target, delta=delta).sum()


def _binary(y: Array, target: Array) -> Array:
    nats: Array = optax.sigmoid_binary_cross_entropy(y, target)
    # a wrong label, such as -1, makes the loss NaN
    is_share = (target >= 0) & (target <= 1)
    return (nats * jnp.where(is_share, jnp.ones((), y.dtype), jnp.nan)).sum()


_BINARY = StepLoss(_binary, is_mean=True, check=check_real)


@face_of(_BINARY)
@named()
def binary_cross_entropy(ys: Array, targets: Array, mask: Mark = None, weight: Weight = None) -> Array:
    """The cross-entropy of yes-or-no outputs is a MEAN over steps and rows; in nats.

    E = −1/N Σ w Σ (d log σ(Y) + (1 − d) log σ(−Y))   (D6)

    Args:
      ys: logits Y, [T, ..., D]; each output is a question of its own.
      targets: d from 0 to 1, same shape and dtype.
      mask: bool [T, ...], or None. Only steps where it is True count; others are not read.
      weight: w, [T, ...] in the dtype of ys, as for `squared_error`; None for 1.

    Returns:
      E in nats, a scalar in the dtype of ys, but in float32 at least: the weighted mean over steps and rows
      of the sum over D of optax.sigmoid_binary_cross_entropy. It is NaN where a target that counts is not
      from 0 to 1, and where nothing counts.

    Raises:
      ValueError: ys is not a floating array, or targets, mask or weight have another shape or dtype than
        they should.

    >>> round(float(binary_cross_entropy(jnp.zeros((7, 2, 3)), jnp.ones((7, 2, 3)))), 4)
    2.0794
    """
    return _BINARY(ys, targets, mask, weight)

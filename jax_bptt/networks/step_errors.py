"""A loss that adds up the errors of steps is a value; it is made from the error of ONE step and ONE row.

    sum      E = Σ w e(Y, d)                                                                  (D5)
    mean     E = 1/N Σ w e(Y, d),   N = Σ w                                                   (D6)
             dE/dY = w e′(Y, d),   divided by N for a mean                                    (D7)

Σ goes over steps and rows. The weight w of a step and row is 1 unless one is given, and 0 where the mask is
False; see `judged`. The slope e′ = de/dY is derived by hand for some of the library's losses, and by jax.vjp
of the error of one row for all others. It ends at Y_t, so it does not go through time.

Because E is a sum over steps, Y can be computed, used and freed one chunk of steps at a time; N is counted
before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import as_arrays, is_array, is_floating, is_function
from jax_bptt.base.errors import adding, bad, named, running, shown
from jax_bptt.base.made import Call, made
from jax_bptt.base.trees import common_dtype, select, times_rows, vmap_leading, wide
from jax_bptt.base.types import ArrayTree, DType, Foreign, Mark, Shape, Targets, Weight
from jax_bptt.networks.judged import Judged, Scored, scored, total_weight, widened

Error: TypeAlias = Callable[..., Array]  # (y, target) -> e, of one step and one row
_F = TypeVar("_F", bound=Callable[..., Array])


@made()
class StepLoss(NamedTuple):
    """A loss that adds up one error for each step and row; `sum_over_steps` or `mean_over_steps` makes it.

    Attributes:
      error: e, a function (y, target) -> scalar of one step and one row.
      is_mean: whether the sum is divided by N.
      slope: e′, a function (y, target) -> de/dy, derived by hand; None for jax.vjp of the error.
      check: a function that raises the ValueError of ys and targets that the error cannot read.
      made_by: the call that made it, by which it is printed, copied and pickled.
    """

    error: Error
    is_mean: bool
    slope: Callable[..., ArrayTree] | None = None
    check: Callable[[object, object], None] | None = None
    made_by: Call | None = None

    @named("loss")
    def __call__(self, ys: ArrayTree, targets: Targets, mask: Mark = None, weight: Weight = None) -> Array:
        """This is E of all steps and rows.

        Args:
          ys: Y, a tree with leaves [T, ..., O].
          targets: d, a tree with leaves [T, ...], or None.
          mask: bool [T, ...], or None. Only steps where it is True count; others are not read.
          weight: w, [T, ...] in the dtype of ys; None for 1.

        Returns:
          E, a scalar in the dtype of ys, but in float32 at least.

        Raises:
          ValueError: the arguments do not fit together, or the error returns no floating scalar.
        """
        judged = Judged(targets, mask, weight)
        rows = _read(self, ys, judged, None)
        return _value(self, rows, total_weight(judged, rows.leading) if self.is_mean else None)


# (ys, targets) -> E, also of mask=mask and weight=weight if given; mypy sees no function in a NamedTuple
Loss: TypeAlias = Callable[..., Array] | StepLoss


def _error(argument: str, value: Foreign) -> Error:
    if not (is_function(value) or isinstance(value, StepLoss)):
        fix = "pass a function of one step and one row that is defined once"
        raise bad(argument, "a function (y, target) -> scalar", value, fix)
    found: Error = value
    return found


@cached(error=_error)
def sum_over_steps(error: Error) -> StepLoss:
    """A loss is the SUM of the errors of all steps and rows.

    E = Σ w e(Y, d)   (D5)

    Args:
      error: e, a function (y, target) -> floating scalar of ONE step and ONE row. y is what the readout or
        head makes of them: an array [O], or a tree of arrays. target is the same step and row of targets:
        an array, a tree of arrays, or None. It is vectorised over steps and rows by jax.vmap and
        differentiated by jax.vjp. Define it once, not anew for every call, so that nothing is compiled anew.

    Returns:
      The loss, a function (ys, targets, mask=None, weight=None) -> E for `value_and_grad` and training
      steps; the same object for the same error. Only steps where mask is True count; others are not read.
      weight is as in `squared_error`. The gradient methods that go by chunks read it by chunks. Outside
      value_and_grad a mask or a weight says which axes are steps and rows; without them all but the last
      axis of ys are. So pass one where a head returns single numbers, as for a mean over ys [T, B].

    Raises:
      ValueError: error is not a function.

    >>> def absolute(y, target):
    ...     return jnp.abs(y - target).sum()
    >>> loss = sum_over_steps(absolute)
    >>> loss
    sum_over_steps(absolute)
    >>> float(loss(jnp.zeros((7, 2, 3)), jnp.ones((7, 2, 3))))
    42.0
    """
    return StepLoss(error, is_mean=False)


@cached(error=_error)
def mean_over_steps(error: Error) -> StepLoss:
    """A loss is the MEAN of the errors of all steps and rows that count.

    E = 1/N Σ w e(Y, d),   N = Σ w   (D6)

    Args:
      error: e, as for `sum_over_steps`. It is not divided by the number of outputs.

    Returns:
      The loss, as `sum_over_steps` returns it. It is NaN where nothing counts.

    Raises:
      ValueError: error is not a function.

    >>> def absolute(y, target):
    ...     return jnp.abs(y - target).sum()
    >>> mask = jb.mask_of_lengths(jnp.array([7, 3]), 7)
    >>> float(mean_over_steps(absolute)(jnp.zeros((7, 2, 3)), jnp.ones((7, 2, 3)), mask))
    3.0
    """
    return StepLoss(error, is_mean=True)


FACES: dict[Loss, StepLoss] = {}  # the library's losses that are documented functions


def face_of(loss: StepLoss) -> Callable[[_F], _F]:
    """Decorator of a documented function that is called as this loss and stands for it everywhere."""

    def decorator(function: _F) -> _F:
        FACES[function] = loss
        return function

    return decorator


def step_loss_of(loss: Loss) -> StepLoss | None:
    """The loss as a value; None if it is not known to be a sum over steps."""
    return loss if isinstance(loss, StepLoss) else FACES.get(loss)


class _Rows(NamedTuple):
    """The rows of some steps, as the error reads them."""

    scored: Scored
    leading: Shape  # (K, ...)
    dtype: DType  # of E
    dtypes: ArrayTree  # of ys, and so of dE/dY


def value_and_slope(
    loss: StepLoss, ys: ArrayTree, judged: Judged, leading: Shape | None
) -> tuple[Array, ArrayTree]:
    """Some steps of a loss give a part of E and its derivative dE/dY.

    Args:
      loss: from `sum_over_steps` or `mean_over_steps`.
      ys: Y of these steps, leaves [K, ..., O].
      judged: the targets, mask and weight of these steps, and N of all steps, None if these are all.
      leading: the axes of steps and rows, (K, ...); None if only the last axis of ys is none of them.

    Returns:
      Their part of E, a scalar, and dE/dY, like ys.

    Raises:
      ValueError: ys, targets, mask or weight do not fit together.
    """
    rows = _read(loss, ys, judged, leading)
    n = total_weight(judged, rows.leading) if loss.is_mean and judged.n is None else judged.n
    return _value(loss, rows, n), _slope(loss, rows, n)


def _value(loss: StepLoss, rows: _Rows, n: Array | None) -> Array:
    ys, targets, weight, counts, nothing = rows.scored
    axes = len(rows.leading)

    def error(y: ArrayTree, target: Targets) -> Array:
        return jnp.asarray(loss.error(y, target)).astype(rows.dtype)

    def spoiled(nothing: ArrayTree) -> Array:  # NaN, and so is its derivative, if there is a NaN
        zeros = [(0 * jnp.square(z)).sum().astype(rows.dtype) for z in jax.tree.leaves(nothing)]
        return functools.reduce(jnp.add, zeros)

    errors = vmap_leading(axes, error)(ys, targets)
    errors = select(counts, errors, vmap_leading(axes, spoiled)(nothing))
    total = (errors if weight is None else times_rows(weight, errors)).sum()  # (D5)
    return total if n is None else total / n.astype(rows.dtype)  # (D6)


def _slope(loss: StepLoss, rows: _Rows, n: Array | None) -> ArrayTree:
    ys, targets, weight, counts, nothing = rows.scored
    slope = loss.slope or jax.grad(loss.error)
    slopes = vmap_leading(len(rows.leading), slope)(ys, targets)
    slopes = select(counts, slopes, jax.tree.map(lambda z: 0 * z, nothing))
    factor = weight
    if n is not None:
        count = counts if weight is None else weight
        one = jnp.ones((), rows.dtype) if count is None else count.astype(rows.dtype)
        factor = one / n.astype(rows.dtype)
    slopes = slopes if factor is None else times_rows(factor, slopes)  # (D7)
    return jax.tree.map(lambda z, dtype: z.astype(dtype), slopes, rows.dtypes)


def _read(loss: StepLoss, ys: ArrayTree, judged: Judged, leading: Shape | None) -> _Rows:
    """ys and targets are checked, and what does not count in them is replaced."""
    ys, targets = as_arrays("ys", ys), as_arrays("targets", judged.targets)
    if loss.check is not None:
        loss.check(ys, targets)
    leading = _leading(ys, judged) if leading is None else leading
    _check_leaves("ys", ys, leading, is_floating, "a floating array")
    _check_leaves("targets", targets, leading, is_array, "an array")
    _check_error(loss, ys, targets, len(leading))
    of_row = loss.error if loss.slope is not None else jax.value_and_grad(loss.error)

    def is_finite(y: ArrayTree, target: Targets) -> Array:
        parts = [jnp.isfinite(z).all() for z in jax.tree.leaves(of_row(y, target))]
        return functools.reduce(jnp.logical_and, parts)

    found = scored(vmap_leading(len(leading), is_finite), ys, targets, judged, leading)
    dtypes = jax.tree.map(lambda z: z.dtype, ys)
    return _Rows(found, leading, wide(common_dtype(ys)), dtypes)


def _leading(ys: ArrayTree, judged: Judged) -> Shape:
    """The axes of steps and rows, where nothing but ys, the mask and the weight says which those are."""
    shapes: list[Shape] = [z.shape[:-1] for z in jax.tree.leaves(ys) if is_array(z) and z.ndim]
    marks: tuple[Foreign, ...] = judged.mask, judged.weight
    given: list[Shape] = [mark.shape for mark in marks if is_array(mark)]
    if given and all(is_array(z) and z.shape[: len(given[0])] == given[0] for z in jax.tree.leaves(ys)):
        return given[0]
    if len(set(map(len, shapes))) == 1:
        return shapes[0]
    fix = "or pass a mask or a weight, whose axes are those of steps and rows"
    raise bad("ys", "floating arrays [T, ..., O] with the same number of axes", ys, fix)


def _check_leaves(
    argument: str, tree: object, leading: Shape, is_right: Callable[[Foreign], bool], expected: str
) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not is_right(leaf) or leaf.shape[: len(leading)] != leading:
            fix = "its first axes are those of steps and rows; nothing is broadcast"
            raise bad(argument + jax.tree_util.keystr(path), f"{expected} [{shown(leading)},...]", leaf, fix)


def _check_error(loss: StepLoss, ys: ArrayTree, targets: Targets, axes: int) -> None:
    """A ValueError says so unless the error of one row is a floating scalar."""
    of_row = jax.tree.map(lambda z: jax.ShapeDtypeStruct(z.shape[axes:], z.dtype), widened((ys, targets)))
    hint = "error is a function of one step and one row"
    with adding(hint), running("error", hint):
        found = jax.eval_shape(lambda y, target: loss.error(y, target), *of_row)
    if getattr(found, "shape", None) != () or not jnp.issubdtype(found.dtype, jnp.floating):
        fix = "return one number for one step and row: sum over the outputs"
        raise bad("error", "a function that returns a floating scalar", found, fix)

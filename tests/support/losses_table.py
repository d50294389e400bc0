"""The arguments of every loss, and of what makes one, each with a right value and, for some, the formula."""

import jax.numpy as jnp

import jax_bptt as jb
import support.argument_kinds as k
from support import reference_calls as calls
from support.reference_calls import classes, mask, targets, weight, xs

_counts = {"mask": (k.MARK, mask), "weight": (k.MARK, weight)}


def _judged_by(make):
    """The loss of two outputs and two targets."""
    return lambda **given: make(**given)(jnp.asarray([[[0.3, 0.8]]]), jnp.asarray([[[0.5, 0.6]]]))


def _absolute(y, target):
    return jnp.abs(y - target).sum()


LOSSES = {
    "squared_error": (
        jb.squared_error,
        {
            "ys": (k.ARRAY, xs),
            "targets": (k.ARRAY, 2 * xs),
        }
        | _counts,
        calls.squares,
    ),
    "softmax_cross_entropy": (
        jb.softmax_cross_entropy,
        {
            "ys": (k.FLOATS, targets),
            "targets": (k.CLASSES, classes),
        }
        | _counts,
        calls.nats,
    ),
    "gaussian_nll": (
        jb.gaussian_nll,
        {
            "ys": (k.ARRAY, xs[..., :2]),
            "targets": (k.ARRAY, xs[..., 2:]),
        }
        | _counts,
        calls.mean_of(calls.gaussians),
    ),
    "binary_cross_entropy": (
        jb.binary_cross_entropy,
        {
            "ys": (k.ARRAY, xs),
            "targets": (k.ARRAY, jnp.abs(jnp.sin(xs))),
        }
        | _counts,
        calls.mean_of(calls.bits),
    ),
    "quantile_error": (
        lambda levels: jb.quantile_error(levels)(xs[..., :2], xs[..., 2:]),
        {"levels": (k.LEVELS, [0.1, 0.5])},
    ),
    "huber_error": (_judged_by(jb.huber_error), {"delta": (k.number(lambda delta: delta > 0), 0.5)}),
    "sum_over_steps": (_judged_by(jb.sum_over_steps), {"error": (k.FUNCTION, _absolute)}),
    "mean_over_steps": (_judged_by(jb.mean_over_steps), {"error": (k.FUNCTION, _absolute)}),
}

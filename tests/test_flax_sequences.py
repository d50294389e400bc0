"""How Flax arranges a sequence, by explicit loops; Flax itself is not needed."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from jax_bptt.adapters.flax_sequences import over_sequence, time_axis_of

XS = np.random.default_rng(0).normal(size=(3, 4, 2))  # rows, time, features
LENGTHS = np.array([4, 0, 2])


def _sums(carry, xs, mask, reverse):
    return jb.scan(lambda c, x: (c + x, c + x), carry, xs, mask=mask, reverse=reverse)


def _by_loops(lengths, reverse, keep_order):
    """Sums along each row; carry and outputs, [rows, time, features]."""
    carry, ys = np.ones((3, 2)), np.zeros_like(XS)
    for row, length in enumerate(lengths):
        order = range(length)[::-1] if reverse else range(length)
        for nth, t in enumerate(order):
            carry[row] += XS[row, t]
            ys[row, t if keep_order else nth] = carry[row]
    return carry, ys


@pytest.mark.parametrize(
    ("time_axis", "has_lengths", "reverse", "keep_order"), [*itertools.product([0, 1], *[[False, True]] * 3)]
)
def test_orders_of_a_sequence(time_axis, has_lengths, reverse, keep_order):
    inputs = jnp.asarray(np.moveaxis(XS, 1, time_axis))
    assert time_axis_of(inputs, 1, time_major=time_axis == 0) == time_axis
    options = {"time_axis": time_axis, "batch_axes": 1, "reverse": reverse, "keep_order": keep_order}
    lengths = LENGTHS if has_lengths else None
    carry, ys = over_sequence(_sums, jnp.ones((3, 2)), inputs, lengths, **options)
    wanted = _by_loops(LENGTHS if has_lengths else [4] * 3, reverse, keep_order or not reverse)
    np.testing.assert_allclose(carry, wanted[0], 1e-12)
    np.testing.assert_allclose(np.moveaxis(ys, time_axis, 1), wanted[1], 1e-12, 1e-12)


def test_lengths_of_another_shape_are_refused():
    options = {"time_axis": 1, "batch_axes": 1, "reverse": False, "keep_order": False}
    with pytest.raises(ValueError, match=r"seq_lengths: expected integers \[3\], got int64\[2\]; pass one"):
        over_sequence(_sums, jnp.ones((3, 2)), jnp.asarray(XS), jnp.array([1, 2]), **options)
    with pytest.raises(ValueError, match=r"seq_lengths: expected integers \[3\], got .* from 1 to 5"):
        over_sequence(_sums, jnp.ones((3, 2)), jnp.asarray(XS), jnp.array([1, 2, 5]), **options)

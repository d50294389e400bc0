"""Readout and loss together: from the features of the last layer to E, dE/dW_y and G.

forward   Y_t = g₂(h_t W_y + b_y)                 `readout`                               (N2)
          E, dE/dY_t                              `loss`                                  (N3)
back      dE/dW_y, G_t = dE/dh_t                  `readout`, by hand                      (N4)

W_y feeds no state, so each step is read on its own. Where the loss is a sum over steps, Y_t is made,
judged and forgotten a few steps at a time: Y of all steps, [T, B, O], never exists.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jax import Array

from jax_bptt import chunks
from jax_bptt.loss import Loss, count, is_additive, value_and_slope, value_and_slope_of_steps
from jax_bptt.readout import Readout, ReadoutParams
from jax_bptt.sequence import zeros_like
from jax_bptt.sweep import plus

AT_ONCE = 2**20  # numbers of Y that exist together: they and their slopes then stay near the caches


def read(
    readout: Readout, loss: Loss, params: ReadoutParams, hs: Array, targets: Any, mask: Array | None
) -> tuple[Array, ReadoutParams, Array]:
    """E, dE/dparams and G.

    Args:
      readout: from `readout`, or `last` of it.
      loss: as for `value_and_grad`.
      params: of the readout.
      hs: [T, ..., H], or [..., H] of `last`.
      targets: whatever the loss takes.
      mask: bool like hs without its last axis, or None.

    Returns:
      E, a scalar; dE/dparams; G = dE/dhs, like hs.
    """
    if is_additive(loss) and not readout.of_last:
        return read_steps(readout, loss, params, hs, targets, mask, count(loss, targets, mask))
    zs, ys = readout.forward(params, hs)  # (N2)
    error, d_ys = value_and_slope(loss, ys, targets, mask)  # (N3)
    return error, *readout.backward(params, hs, zs, ys, d_ys)  # (N4)


def read_steps(
    readout: Readout, loss: Loss, params: ReadoutParams, hs: Array, targets: Any, mask: Array | None, n: Any
) -> tuple[Array, ReadoutParams, Array]:
    """`read` of some steps, where `loss.count` of all steps gave n."""
    outputs = math.prod(hs.shape[1:-1]) * readout.output_size
    chunk = max(1, min(len(hs), AT_ONCE // outputs))

    def of_chunk(sums: Any, first: Any, here: Any) -> tuple[Any, Array]:
        hs, targets, mask = here
        zs, ys = readout.forward(params, hs)  # (N2)
        error, d_ys = value_and_slope_of_steps(loss, ys, targets, mask, n)  # (N3)
        d_params, d_hs = readout.backward(params, hs, zs, ys, d_ys)  # (N4)
        return plus(sums, (error, d_params)), d_hs

    nothing = jnp.zeros((), hs.dtype), zeros_like(params)
    (error, d_params), d_hs = chunks.scan(of_chunk, nothing, (hs, targets, mask), chunk)
    return error, d_params, d_hs

"""Readout and loss together: from the features of the last layer to E, dE/dW_y and G.

forward   Y_t = g₂(h_t W_y + b_y)                 `readout`                               (E1)
          E, dE/dY_t                              `loss`                                  (E2)
back      dE/dW_y, G_t = dE/dh_t                  `readout`, by hand                      (E3)

W_y feeds no state, so each step is read on its own. Where the loss is a sum over steps, Y_t is made,
judged and forgotten a few steps at a time: Y of all steps, [T, B, O], never exists.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jax import Array

from jax_bptt.engine import chunks
from jax_bptt.engine.devices import ALL, Rows, as_own, on_devices, shared_by, total
from jax_bptt.networks.losses import Loss, is_additive, value_and_slope, value_and_slope_of_steps
from jax_bptt.networks.readout import Readout, ReadoutParams, outputs_lie

AT_ONCE = 2**20  # numbers of Y that exist together: they and their slopes then stay near the caches


def read(
    readout: Readout,
    loss: Loss,
    params: ReadoutParams,
    hs: Array,
    targets: Any,
    mask: Array | None,
    n: Any,
    rows: Rows | None = None,
) -> tuple[Array, ReadoutParams, Array]:
    """E, dE/dparams and G.

    Args:
      readout: from `readout`, or `last` of it.
      loss: as for `value_and_grad`.
      params: of the readout.
      hs: [T, ..., H], or [..., H] of `last`.
      targets: whatever the loss takes.
      mask: bool like hs without its last axis, or None.
      n: `loss.count` of all steps and rows, of which these may be a part.
      rows: how rows lie on devices, where the loss is given those of all.

    Returns:
      E, a scalar; dE/dparams; G = dE/dhs, like hs.
    """
    if is_additive(loss) and not readout.of_last:
        return read_steps(readout, loss, params, hs, targets, mask, n)
    lie = outputs_lie(readout)
    zs, ys = on_devices(readout.forward, rows, (ALL, lie), (lie, lie))(params, hs)  # (E1)
    error, d_ys = value_and_slope(loss, ys, targets, mask, n)  # (E2)

    def backward(params: ReadoutParams, hs: Array, *at: Array) -> tuple[ReadoutParams, Array]:
        d_params, d_hs = readout.backward(as_own(params, hs), hs, *at)  # (E3)
        return total(d_params, shared_by(hs, params)), d_hs

    back = on_devices(backward, rows, (ALL, lie, lie, lie, lie), (ALL, lie))
    return error, *back(params, hs, zs, ys, d_ys)


def read_steps(
    readout: Readout, loss: Loss, params: ReadoutParams, hs: Array, targets: Any, mask: Array | None, n: Any
) -> tuple[Array, ReadoutParams, Array]:
    """`read` of some steps."""
    outputs = math.prod(hs.shape[1:-1]) * readout.output_size
    chunk = max(1, min(len(hs), AT_ONCE // outputs))

    def of_chunk(sums: Any, first: Any, here: Any) -> tuple[Any, Array]:
        hs, targets, mask = here
        zs, ys = readout.forward(params, hs)  # (E1)
        error, d_ys = value_and_slope_of_steps(loss, ys, targets, mask, n)  # (E2)
        d_params, d_hs = readout.backward(params, hs, zs, ys, d_ys)  # (E3)
        return chunks.add_to(sums, (error, d_params)), d_hs

    like = jnp.zeros((), hs.dtype), params
    sums, d_hs = chunks.scan(of_chunk, chunks.zero_sums(like), (hs, targets, mask), chunk)
    return *chunks.sums_as(sums, like), d_hs

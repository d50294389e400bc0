"""Readout and loss together map the features of the last layer to E, dE/dW_y and G.

forward   Y_t = g₂(h_t W_y (+ b_y))               `readout`                               (E1)
          E, dE/dY_t                              `losses`                                (E2)
back      dE/dW_y, G_t = dE/dh_t                  `readout`, by hand                      (E3)

W_y feeds no state, so each step can be read on its own. If the loss is a sum over steps, Y_t is computed,
compared with its target and freed a few steps at a time; Y of all steps, [T, B, O], never exists.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.trees import common_dtype, num_parameters, wide
from jax_bptt.base.types import ArrayTree
from jax_bptt.engine import chunks
from jax_bptt.engine.devices import ALL, Rows, on_devices, reduce_axes, sum_over_devices, to_local
from jax_bptt.networks.judged import Judged
from jax_bptt.networks.losses import Loss, is_additive, value_and_slope, value_and_slope_of_steps
from jax_bptt.networks.readout import AnyReadout, outputs_lie

AT_ONCE = 2**20  # so many numbers of Y exist together: with their slopes they nearly fit into the caches


class ReadoutGradient(NamedTuple):
    """These are the results of the readout and the loss.

    Attributes:
      error: E, a scalar.
      params: dE/dparams of the readout.
      hs: G = dE/dhs.
    """

    error: Array
    params: Any
    hs: Array


def loss_and_grad(
    readout: AnyReadout,
    loss: Loss,
    params: ArrayTree,
    hs: Array,
    judged: Judged,
    rows: Rows | None = None,
) -> ReadoutGradient:
    """The features of the last layer give E, dE/dparams of the readout and G.

    Args:
      readout: from `readout` or `head`, perhaps in `last`.
      loss: as for `value_and_grad`.
      params: the parameters of the readout.
      hs: [T, ..., H], or [..., H] with `last`.
      judged: the targets, how much each output counts, and N.
      rows: how the rows are split over devices, if the loss needs those of all devices; else None.

    Returns:
      E, a scalar; dE/dparams; G = dE/dhs, like hs.

    Raises:
      ValueError: the loss and the targets do not fit.
    """
    if is_additive(loss) and not readout.of_last:
        return loss_and_grad_of_steps(readout, loss, params, hs, judged)
    lie = outputs_lie(readout)
    kept, ys = on_devices(readout.forward, rows, (ALL, lie), (lie, lie))(params, hs)  # (E1)
    error, d_ys = value_and_slope(loss, ys, judged, hs.shape[:-1])  # (E2)

    def backward(params: ArrayTree, hs: Array, *at: ArrayTree) -> tuple[Any, Array]:
        d_params, d_hs = readout.backward(to_local(params, hs), hs, *at)  # (E3)
        return sum_over_devices(d_params, reduce_axes(hs, params)), d_hs

    back = on_devices(backward, rows, (ALL, lie, lie, lie, lie), (ALL, lie))
    return ReadoutGradient(error, *back(params, hs, kept, ys, d_ys))


def loss_and_grad_of_steps(
    readout: AnyReadout, loss: Loss, params: ArrayTree, hs: Array, judged: Judged, begin: chunks.First = 0
) -> ReadoutGradient:
    """This is `loss_and_grad` for an additive loss, a few steps at a time.

    hs may be only some of the steps that are judged, from the step `begin` on.
    """
    ys_of_a_row = jax.eval_shape(readout.forward, params, jax.ShapeDtypeStruct(hs.shape[-1:], hs.dtype))[1]
    outputs = num_parameters(ys_of_a_row)
    chunk = chunks.steps_at_once(AT_ONCE, outputs, hs.shape[1:-1], hs.shape[0])
    Sums = tuple[Array, Any]

    def read_chunk(sums: Sums, first: chunks.First, hs: Array) -> tuple[Sums, Array]:
        kept, ys = readout.forward(params, hs)  # (E1)
        # only now are steps taken out of the targets: a copy of more of them may be as large as all of Y
        judged_here = chunks.take_steps(judged._replace(n=None), begin + first, hs.shape[0])._replace(
            n=judged.n
        )
        error, d_ys = value_and_slope_of_steps(loss, ys, judged_here, hs.shape[:-1])  # (E2)
        d_params, d_hs = readout.backward(params, hs, kept, ys, d_ys)  # (E3)
        return chunks.add_to(sums, (error, d_params)), d_hs

    like = jnp.zeros((), wide(common_dtype(ys_of_a_row))), params
    sums, d_hs = chunks.scan(read_chunk, chunks.zero_sums(like), hs, chunk)
    return ReadoutGradient(*chunks.sums_as(sums, like), d_hs)

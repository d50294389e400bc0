"""All losses go back side by side, one lag at a time, and so make the article's sum term by term.

Let λᵗ_k = dE_t/ds_k be the derivative of the loss at step t by the state at step k = t − l, where l is the
lag. For all t at once:

    lag 0      λᵗ_t = G_t                                                                     (X1)
    each lag   term (t, k) = (∂s_k/∂W)ᵀ λᵗ_k        s̃_{k−1} held fixed                        (X2)
               λᵗ_{k−1} = (ds_k/ds̃_{k−1})ᵀ λᵗ_k     one step back, (S2, S3) of `loops`        (X3)

At each lag λᵗ_k is stored at index k. So x_k, s̃_{k−1} and a_k stay in place and only λ moves: [T, ..., H]
numbers, whatever the number of lags. The layers of a network go back together: at every lag dE/dx_k of a
layer is added to λ_k of the layer below, because through it a loss reaches that layer.            (X4)

The terms of the first K lags add up to the gradient in which every loss sees K steps; those of all lags add
up to dE/dW.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.trees import add_to_h, sum_over_first_axis, zeros_like
from jax_bptt.base.types import State
from jax_bptt.engine.loops import StepBack
from jax_bptt.flow.record import LayerRecord, Record, contracted, every_step_back

_Result = TypeVar("_Result")


class AtLag(NamedTuple):
    """These are the values of one layer at one lag.

    Attributes:
      lam: λ of loss step k + l at index k, leaves [T, ..., H]; zero where step k was masked.
      d_params: the terms summed over t, like the params.
      d_start: λ into the initial carry, leaves [T, ..., H]; None without resets.
    """

    lam: State
    d_params: Any
    d_start: State | None


def scan_lags(
    record: Record,
    lags: int,
    begin: _Result,
    at_lag: Callable[[_Result, Array, tuple[AtLag, ...]], tuple[_Result, Any]],
) -> tuple[_Result, Any]:
    """A loop goes through the lags of a network, the shortest first, and calls a function at each.

    Args:
      record: the record of the network.
      lags: the number of lags, from lag 0 on.
      begin: the first state of at_lag.
      at_lag: (its state, l, the `AtLag` of each layer) -> (its next state, outputs).

    Returns:
      The last state of at_lag, and its outputs at every lag, leaves [lags, ...].
    """

    def one_lag(
        state: tuple[tuple[State, ...], _Result], lag: Array
    ) -> tuple[tuple[tuple[State, ...], _Result], Any]:
        lams, result = state
        d_outputs = jnp.where(lag == 0, record.d_outputs, jnp.zeros_like(record.d_outputs))  # (X1)
        after: list[State] = []
        found: list[AtLag] = []
        # from the top layer down, since dE/dx of a layer is needed by the layer below
        for layer, lam in reversed(list(zip(record.layers, lams, strict=True))):
            d_hs, d_skipped = layer.pullback(d_outputs)
            back = shift_lag(layer, add_to_h(lam, d_hs))  # (X3)
            d_params, d_xs = contracted(layer, back.lam, sum_over_first_axis(back.start))  # (X2)
            d_outputs = d_xs + d_skipped  # (X4)
            after.insert(0, back.carry)
            found.insert(0, AtLag(back.lam, d_params, back.start))
        result, out = at_lag(result, lag, tuple(found))
        return (tuple(after), result), out

    lams = tuple(zeros_like(layer.states) for layer in record.layers)
    (_, result), out = jax.lax.scan(one_lag, (lams, begin), jnp.arange(lags))
    return result, out


def shift_lag(layer: LayerRecord, lam: State) -> StepBack:
    """This is `every_step_back`, and moves λ of every loss to the index of the step that it has reached."""
    back = every_step_back(layer, layer.run.params, lam)
    moved = jax.tree.map(lambda z: jnp.concatenate([z[1:], jnp.zeros_like(z[:1])]), back.carry)
    return back._replace(carry=moved)

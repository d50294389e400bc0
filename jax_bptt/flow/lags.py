"""All losses go back side by side, one lag at a time: the article's sum, term by term.

With λᵗ_k = dE_t/ds_k, what the loss at step t says of the state at step k = t − l, for all t at once

    lag 0      λᵗ_t = G_t                                                                     (X1)
    each lag   term (t, k) = (∂s_k/∂W)ᵀ λᵗ_k        s̃_{k−1} held fixed                        (X2)
               λᵗ_{k−1} = (ds_k/ds̃_{k−1})ᵀ λᵗ_k     one step back, (S2, S3) of `loops`        (X3)

λ of a lag lies where it is now, at index k, so that x_k, s̃_{k−1} and a_k stay in place and only λ moves:
[T, ..., H] numbers, whatever the number of lags. The layers of a network go back together: at every lag
dE/dx_k of a layer joins λ_k of the one below it, which is how a loss reaches it at that lag.      (X4)

The sum of the first K lags is the gradient in which every loss sees K steps; that of all, dE/dW.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.engine.sequence import zeros_like
from jax_bptt.flow.record import LayerRecord, Record, contracted, steps_back


def scan_lags(
    record: Record, lags: int, begin: Any, at_lag: Callable[[Any, Array, Any], tuple[Any, Any]]
) -> tuple[Any, Any]:
    """Every lag of a network, the shortest first.

    Args:
      record: what the network did.
      lags: how many, from lag 0 on.
      begin: what at_lag is given first.
      at_lag: (what it gave last, l, for each layer (λ, its sum of terms, begun)) -> (what it gives next,
        outputs): λ, leaves [T, ..., H], that of loss step k + l at index k, zero where k was masked; the
        terms summed over t, like the params; begun, λ into the initial carry, or None without resets.

    Returns:
      What at_lag gave last, and its outputs of every lag, leaves [lags, ...].
    """

    def one_lag(state: Any, lag: Array) -> tuple[Any, Any]:
        lams, given = state
        d_outputs = jnp.where(lag == 0, record.d_outputs, jnp.zeros_like(record.d_outputs))  # (X1)
        after: list[Any] = []
        found: list[Any] = []
        for layer, lam in reversed(list(zip(record.layers, lams, strict=True))):
            d_hs, d_skipped = layer.pullback(d_outputs)
            lam_prev, begun, lam = back_one_lag(layer, lam._replace(h=lam.h + d_hs))  # (X3)
            begun_at_all = jax.tree.map(lambda z: z.sum(0), begun)
            d_params, d_xs = contracted(layer, lam, begun_at_all)  # (X2)
            d_outputs = d_xs + d_skipped  # (X4)
            after.insert(0, lam_prev)
            found.insert(0, (lam, d_params, begun))
        given, out = at_lag(given, lag, tuple(found))
        return (tuple(after), given), out

    lams = tuple(zeros_like(layer.states) for layer in record.layers)
    (_, given), out = jax.lax.scan(one_lag, (lams, begin), jnp.arange(lags))
    return given, out


def back_one_lag(layer: LayerRecord, lam: Any) -> tuple[Any, Any, Any]:
    """λ of every loss one step back, at the index of that step; begun; and λ of the steps taken."""
    lam_prev, begun, lam = steps_back(layer, layer.params, lam)
    moved = jax.tree.map(lambda z: jnp.concatenate([z[1:], jnp.zeros_like(z[:1])]), lam_prev)
    return moved, begun, lam

"""Recurrent dropout leaves out some units of h_{t−1} in W_h, the same ones at every step and in every row.

    W̃_h = diag(m / (1 − p)) W_h,   m one with probability 1 − p for each unit                 (RD1)
    v_t = h̃_{t−1} W̃_h              so it is h̃_{t−1} m / (1 − p) that W_h multiplies

    dE/dW_h = diag(m / (1 − p)) dE/dW̃_h                                                       (RD2)

m is drawn once for a call, from its key, the number of the layer and the direction. It does not depend on t,
so the product is taken before the loop and (RD2) after it, and every gradient method runs as without. Where
p = 1 nothing is kept. The initial carry and the output h_t are not dropped.

Reference: Gal & Ghahramani 2016, A theoretically grounded application of dropout in recurrent neural
networks; Merity, Keskar & Socher 2018, Regularizing and optimizing LSTM language models.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
from jax import Array

from jax_bptt.base.trees import with_fields
from jax_bptt.base.types import ArrayTree, PRNGKey
from jax_bptt.networks.layers import Directions, Layer, of_threefry

Kept: TypeAlias = tuple[Any, ...]  # m / (1 − p) of the cells of each layer; None where nothing is dropped

AFTER_EVERY_STEP = 2**32 - 1  # the keys of `dropout_keys` are made from smaller numbers


def kept_units(layers: tuple[Layer, ...], cells: tuple[Any, ...], key: PRNGKey | None) -> Kept:
    """This draws m / (1 − p) for the cells of each layer: [H, 1], or [n, H/n, 1] where W_h has n blocks.

    Args:
      layers: those of the network.
      cells: their params.
      key: the key of the call; None turns dropout off.

    Returns:
      One entry for each layer; None where nothing is dropped.
    """
    if key is None:
        return (None,) * len(layers)
    key = jax.random.fold_in(of_threefry(key), AFTER_EVERY_STEP)
    keys = [jax.random.fold_in(key, number) for number in range(len(layers))]
    return tuple(_of_layer(*one) for one in zip(layers, cells, keys, strict=True))


def _of_layer(layer: Layer, params: ArrayTree, key: PRNGKey) -> Any:
    if not layer.recurrent_dropout:
        return None
    keep_rate = 1 - layer.recurrent_dropout

    def of_cell(_: object, params: Any, key: PRNGKey) -> Array:
        kept = jax.random.bernoulli(key, keep_rate, (*params.w_h.shape[:-1], 1))
        return kept.astype(params.w_h.dtype) / (keep_rate or 1.0)

    return layer.each(of_cell, params, key if layer.backward is None else Directions(*jax.random.split(key)))


def thinned(cells: tuple[Any, ...], kept: Kept) -> tuple[Any, ...]:
    """From the params of each layer come those with W̃_h, and from dE/dW̃_h comes dE/dW_h."""
    return tuple(thinned_layer(*one) for one in zip(cells, kept, strict=True))


def thinned_layer(params: Any, kept: Any) -> Any:
    """This is `thinned` for one layer."""
    if kept is None:
        return params
    if isinstance(kept, Directions):
        return Directions(*map(thinned_layer, params, kept))
    return with_fields(params, w_h=kept * params.w_h)  # (RD1, RD2)

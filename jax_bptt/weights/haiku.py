"""Haiku has a layout for each cell, other gate orders, and a GRU with the reset before the product.

    RNN   linear = W_x, b;  linear_1 = W_h, b_h                                          (WL6)
    LSTM  linear = the rows (W_x, W_h), b, gates i, g, f, o; b_f − 1, as it adds 1 itself (WL7)
    GRU   gates −z, r, n, reset before: h' = (1 − z) h + z n there, 1 − σ(z) = σ(−z)     (WL8)

hk.VanillaRNN equals `elman` with activation="relu". All these cells have biases, which are zeros for a cell
of ours without.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jax_bptt.base.errors import named
from jax_bptt.base.types import ArrayTree, Foreign
from jax_bptt.cell.cell import Params
from jax_bptt.cells.gru import GRUParams
from jax_bptt.weights.layout import (
    BEFORE,
    ELMAN,
    LSTM,
    AnyArray,
    GateOrders,
    bias,
    has,
    leaf,
    or_zeros,
    to_our_order,
    to_their_order,
)

GATES: GateOrders = {ELMAN: [""], LSTM: [*"igfo"], BEFORE: [*"zrn"]}


@named("convert.to_haiku")
def to_haiku(params: Params | GRUParams) -> dict[str, ArrayTree]:
    """Params become those of hk.VanillaRNN, hk.LSTM or hk.GRU, without the module's name in front.

    With the module's name they are {"lstm/linear": to_haiku(params)["linear"]} for an LSTM. A GRU has no
    inner module, so they are {"gru": to_haiku(params)}.

    Args:
      params: those of `elman`, `lstm` or `gru(reset_after=False)`.

    Returns:
      For an RNN linear and linear_1, for an LSTM linear, each a dict with w, [., GH], and b, [GH]. For a GRU
      `w_i` [I, GH], `w_h` [H, GH] and b [GH].

    Raises:
      ValueError: the params are those of another cell.

    >>> list(to_haiku(jb.elman(3, 5).init(jax.random.key(0))))
    ['linear', 'linear_1']
    """
    cell = to_their_order(GATES, params, "haiku")
    w_x, w_h, b = cell.w_x, cell.w_h, cell.b
    if cell.kind == ELMAN:
        return {"linear": {"w": w_x, "b": b}, "linear_1": {"w": w_h, "b": cell.b_h}}  # (WL6)
    if cell.kind == LSTM:
        return {"linear": {"w": np.concatenate([w_x, w_h]), "b": b - _per_gate((0, 0, 1, 0), b)}}  # (WL7)
    return {name: a * _per_gate((-1, 1, 1), a) for name, a in (("w_i", w_x), ("w_h", w_h), ("b", b))}  # (WL8)


@named("convert.from_haiku")
def from_haiku(weights: Mapping[str, Foreign]) -> Params | GRUParams:
    """The params of hk.VanillaRNN, hk.LSTM or hk.GRU become params of our cell.

    Args:
      weights: names and arrays as in `to_haiku`, without the module's name in front.

    Returns:
      The params of `elman`, `lstm` or `gru(reset_after=False)`, arrays of the kind that came.

    Raises:
      ValueError: a name is missing, or the shapes are not those of such a cell.

    >>> params = jb.gru(3, 5, reset_after=False).init(jax.random.key(0))
    >>> bool((from_haiku(to_haiku(params)).w_h == params.w_h).all())
    True
    """
    if has(weights, "w_i"):
        w_x, w_h = leaf(weights, "w_i"), leaf(weights, "w_h")
        params = to_our_order({BEFORE: GATES[BEFORE]}, w_x, w_h, bias(weights, "b", beside=w_h))
        return type(params)(*(a * _per_gate((1, -1, 1), a) for a in params))  # (WL8)
    w = leaf(weights, "linear", "w")
    b = bias(weights, "linear", "b", beside=w)
    if "linear_1" in weights:
        w_h = leaf(weights, "linear_1", "w")
        b_h = bias(weights, "linear_1", "b", beside=w_h)
        return to_our_order({ELMAN: GATES[ELMAN]}, w, w_h, b, b_h)  # (WL6)
    inputs = max(0, len(w) - w.shape[1] // 4)  # I of the I + H rows, as w has 4 H columns
    params = to_our_order({LSTM: GATES[LSTM]}, w[:inputs], w[inputs:], or_zeros(b, w))  # (WL7)
    return params._replace(b=params.b + _per_gate((0, 1, 0, 0), params.b))  # (WL7)


def _per_gate(values: tuple[int, ...], like: AnyArray) -> np.ndarray:
    """The value of each gate is repeated for each of its units, to match the last axis of an array."""
    row = np.repeat(np.array(values, like.dtype), like.shape[-1] // len(values))
    return row.reshape((1,) * (like.ndim - 1) + row.shape)

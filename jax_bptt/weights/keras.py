"""Keras stores a list of arrays, with the gates of a GRU in another order.

    [W_x, W_h, b] with the gates z, r, n; the rows (b, b_h) with the reset after         (WL5)

Only the shape of its bias tells whether the reset of a GRU comes before or after the product. A layer with
use_bias=False has no b; of a GRU without one the caller must say it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jax_bptt.base.checks import flag, or_none
from jax_bptt.base.errors import bad, named, naming
from jax_bptt.base.types import Foreign
from jax_bptt.cell.cell import Params
from jax_bptt.cells.gru import GRUParams
from jax_bptt.weights.layout import (
    AFTER,
    BEFORE,
    ELMAN,
    LSTM,
    AnyArray,
    GateOrders,
    bias,
    has,
    leaf,
    to_our_order,
    to_their_order,
)

GATES: GateOrders = {ELMAN: [""], LSTM: [*"ifgo"], AFTER: [*"zrn"], BEFORE: [*"zrn"]}


@named("convert.to_keras")
def to_keras(params: Params | GRUParams) -> list[np.ndarray]:
    """Params become the weights of keras.layers.SimpleRNN, LSTM or GRU, for layer.set_weights.

    Args:
      params: those of `elman`, `lstm` or `gru`, with the reset after or before the product.

    Returns:
      A list of W_x [I, GH], W_h [H, GH] and b [GH]; b is [2, GH] for a GRU with the reset after the product.
      There is no b for a cell with bias=False.

    Raises:
      ValueError: the params are those of another cell.

    >>> [w.shape for w in to_keras(jb.gru(3, 5).init(jax.random.key(0)))]
    [(3, 15), (5, 15), (2, 15)]
    """
    cell = to_their_order(GATES, params, "keras.layers")
    biases = np.stack([cell.b, cell.b_h]) if cell.kind == AFTER else cell.b
    return [cell.w_x, cell.w_h, *([biases] if cell.has_bias else [])]  # (WL5)


@named("convert.from_keras")
def from_keras(weights: Sequence[Foreign], reset_after: bool | None = None) -> Params | GRUParams:
    """The weights of keras.layers.SimpleRNN, LSTM or GRU become params.

    Args:
      weights: layer.get_weights(), arrays as in `to_keras`.
      reset_after: layer.reset_after of a GRU with use_bias=False, which has no bias to tell it by. None for
        every other layer.

    Returns:
      The params of `elman`, `lstm` or `gru`, arrays of the kind that came. Without biases they are
      those of a cell with bias=False.

    Raises:
      ValueError: there are not two or three arrays, the shapes are not those of such a layer, or
        reset_after is missing or does not fit them.

    >>> params = jb.gru(3, 5).init(jax.random.key(0))
    >>> bool((from_keras(to_keras(params)).w_h == params.w_h).all())
    True
    """
    or_none(flag)("reset_after", reset_after)
    if not isinstance(weights, Sequence) or len(weights) not in (2, 3):
        raise bad("weights", "[W_x, W_h, b]", weights, "pass layer.get_weights()")
    named = dict(zip(("W_x", "W_h", "b"), weights, strict=False))
    w_x, w_h = leaf(named, "W_x"), leaf(named, "W_h")
    if not has(named, "b"):
        return to_our_order(_of_unbiased(w_x, w_h, reset_after), w_x, w_h, None)
    with naming("weights b", "an array"):
        is_after = np.shape(named["b"])[:-1] == (2,)
    if reset_after not in (None, is_after):
        raise bad("reset_after", f"{is_after} for this bias", reset_after, "leave it out: the bias tells it")
    if is_after:
        b, b_h = leaf(named, "b")  # (WL5)
        return to_our_order({AFTER: GATES[AFTER]}, w_x, w_h, b, b_h)
    orders = {kind: GATES[kind] for kind in (ELMAN, LSTM, BEFORE)}
    return to_our_order(orders, w_x, w_h, bias(named, "b", beside=w_h))  # (WL5)


def _of_unbiased(w_x: AnyArray, w_h: AnyArray, reset_after: bool | None) -> GateOrders:
    """These kinds of cell are possible without a bias to tell them by."""
    is_gru = w_x.shape[1] == 3 * len(w_h)
    if is_gru and reset_after is None:
        expected = "True or False beside the weights of a GRU without biases"
        raise bad("reset_after", expected, reset_after, "pass reset_after=layer.reset_after")
    if not is_gru and reset_after is not None:
        raise bad("reset_after", "None for a layer that is no GRU", reset_after, "leave it out")
    return {kind: GATES[kind] for kind in (ELMAN, LSTM, AFTER if reset_after else BEFORE)}

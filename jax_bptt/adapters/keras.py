"""Keras stores a list of arrays, with the gates of a GRU in another order.

    [W_x, W_h, b] with the gates z, r, n; the rows (b, b_h) with the reset after         (WL5)

Only the shape of its bias tells whether the reset of a GRU comes before or after the product.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jax_bptt.adapters.weights import (
    AFTER,
    BEFORE,
    ELMAN,
    LSTM,
    GateOrders,
    bias,
    has,
    leaf,
    to_our_order,
    to_their_order,
)
from jax_bptt.base.errors import bad, named, naming
from jax_bptt.base.types import Foreign
from jax_bptt.cell.cell import Params
from jax_bptt.cells.gru import GRUParams

GATES: GateOrders = {ELMAN: [""], LSTM: [*"ifgo"], AFTER: [*"zrn"], BEFORE: [*"zrn"]}


@named("convert.to_keras")
def to_keras(params: Params | GRUParams) -> list[np.ndarray]:
    """Params become the weights of keras.layers.SimpleRNN, LSTM or GRU, for layer.set_weights.

    Args:
      params: those of `elman`, `lstm` or `gru`, with the reset after or before the product.

    Returns:
      A list of W_x [I, GH], W_h [H, GH] and b [GH]; b is [2, GH] for a GRU with the reset after the product.

    Raises:
      ValueError: the params are those of another cell.

    >>> [w.shape for w in to_keras(jb.gru(3, 5).init(jax.random.key(0)))]
    [(3, 15), (5, 15), (2, 15)]
    """
    cell = to_their_order(GATES, params, "keras.layers")
    return [cell.w_x, cell.w_h, np.stack([cell.b, cell.b_h]) if cell.kind == AFTER else cell.b]  # (WL5)


@named("convert.from_keras")
def from_keras(weights: Sequence[Foreign]) -> Params | GRUParams:
    """The weights of keras.layers.SimpleRNN, LSTM or GRU become params.

    Args:
      weights: layer.get_weights(), arrays as in `to_keras`. A layer without a bias has only two; a GRU must
        have one, as its shape tells whether the reset comes before or after the product.

    Returns:
      The params of `elman`, `lstm` or `gru`, as NumPy arrays.

    Raises:
      ValueError: there are not two or three arrays, or the shapes are not those of such a layer.

    >>> params = jb.gru(3, 5).init(jax.random.key(0))
    >>> bool((from_keras(to_keras(params)).w_h == params.w_h).all())
    True
    """
    if not isinstance(weights, Sequence) or len(weights) not in (2, 3):
        raise bad("weights", "[W_x, W_h, b]", weights, "pass layer.get_weights()")
    named = dict(zip(("W_x", "W_h", "b"), weights, strict=False))
    w_x, w_h = leaf(named, "W_x"), leaf(named, "W_h")
    with naming("weights b", "an array"):
        is_after = np.shape(named.get("b", ()))[:-1] == (2,)
    if is_after:
        b, b_h = leaf(named, "b")  # (WL5)
        return to_our_order({AFTER: GATES[AFTER]}, w_x, w_h, b, b_h)
    kinds = (ELMAN, LSTM, BEFORE) if has(named, "b") else (ELMAN, LSTM)
    orders = {kind: GATES[kind] for kind in kinds}
    return to_our_order(orders, w_x, w_h, bias(named, "b", beside=w_h))  # (WL5)

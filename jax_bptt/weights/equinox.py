"""Equinox stores the transposed matrices and one bias, with the gates in our order.

    weight_ih = W_xᵀ,  weight_hh = W_hᵀ,  bias = b̄,  bias_n = b_n                        (WL9)

`layout` defines b̄ and b_n.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jax_bptt.base.errors import named
from jax_bptt.base.types import Foreign
from jax_bptt.cell.cell import Params
from jax_bptt.cells.gru import GRUParams
from jax_bptt.weights.layout import (
    AFTER,
    LSTM,
    GateOrders,
    bias,
    folded,
    leaf,
    namespace,
    to_our_order,
    to_their_order,
)

GATES: GateOrders = {LSTM: [*"ifgo"], AFTER: [*"rzn"]}


@named("convert.to_equinox")
def to_equinox(params: Params | GRUParams) -> dict[str, np.ndarray]:
    """Params become the arrays of equinox.nn.LSTMCell or GRUCell, named by attribute.

    Load them, w, by equinox.tree_at(lambda c: [getattr(c, name) for name in w], cell, [*w.values()]).

    Args:
      params: those of `lstm` or `gru`.

    Returns:
      weight_ih [GH, I], weight_hh [GH, H], bias [GH], and for a GRU bias_n [H]; no biases for a cell with
      bias=False, as for use_bias=False in Equinox.

    Raises:
      ValueError: the params are those of another cell.

    >>> list(to_equinox(jb.lstm(3, 5).init(jax.random.key(0))))
    ['weight_ih', 'weight_hh', 'bias']
    """
    cell = to_their_order(GATES, params, "equinox.nn")
    b, b_n = folded(cell)
    biases = {"bias": b} | ({"bias_n": b_n} if cell.kind == AFTER else {})  # (WL9)
    return {"weight_ih": cell.w_x.T, "weight_hh": cell.w_h.T} | (biases if cell.has_bias else {})  # (WL9)


@named("convert.from_equinox")
def from_equinox(weights: Mapping[str, Foreign]) -> Params | GRUParams:
    """The attributes of equinox.nn.LSTMCell or GRUCell become params.

    Args:
      weights: vars(cell), with arrays as in `to_equinox`; a bias may be None.

    Returns:
      The params of `lstm` or `gru`, arrays of the kind that came; b_h of a GRU is (0, 0, b_n). Without
      biases they are those of a cell with bias=False.

    Raises:
      ValueError: a name is missing, or the shapes are not those of such a cell.

    >>> params = jb.gru(3, 5).init(jax.random.key(0))
    >>> bool((from_equinox(to_equinox(params)).w_h == params.w_h).all())
    True
    """
    w_x, w_h = leaf(weights, "weight_ih").T, leaf(weights, "weight_hh").T  # (WL9)
    b_n = bias(weights, "bias_n", beside=w_h[:, : len(w_h)])
    b_h = None if b_n is None else namespace(b_n).pad(b_n, (w_h.shape[1] - len(b_n), 0))  # (WL9)
    return to_our_order(GATES, w_x, w_h, bias(weights, "bias", beside=w_h), b_h)  # (WL9)

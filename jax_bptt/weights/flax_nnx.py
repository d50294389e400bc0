"""Flax's nnx stores the gates of linen side by side in two dense layers.

    dense_i, dense_h: linen's gates side by side, no b_n; LSTMCell as linen, if_ for if   (WL4)

All these cells have biases, which are zeros for a cell of ours without.
SimpleCell(residual=True) adds h_{t−1}; it equals `elman` with 1 added to the diagonal of W_h.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jax_bptt.base.checks import flag
from jax_bptt.base.errors import bad, named
from jax_bptt.base.types import Foreign
from jax_bptt.cell.cell import Params
from jax_bptt.cells.gru import GRUParams
from jax_bptt.weights.flax_linen import GATES, from_linen, to_linen
from jax_bptt.weights.layout import LSTM, bias, folded, has, leaf, to_our_order, to_their_order


@named("convert.to_nnx")
def to_nnx(params: Params | GRUParams, optimized: bool = True) -> dict[str, dict[str, np.ndarray]]:
    """Params become the state of flax.nnx.SimpleCell, OptimizedLSTMCell, LSTMCell or GRUCell, a pure dict.

    Load it by nnx.replace_by_pure_dict(state, to_nnx(params)), where graphdef, state = nnx.split(cell).

    Args:
      params: those of `elman`, `lstm` or `gru`.
      optimized: for an LSTM, True makes the state of nnx.OptimizedLSTMCell, False that of nnx.LSTMCell.

    Returns:
      dense_i and dense_h, each a dict with kernel, [I, GH] or [H, GH]; one of them has a bias, [GH]. For
      nnx.LSTMCell see `to_linen`.

    Raises:
      ValueError: the params are those of another cell, or of a GRU whose b_h is not zero for gate n, as
        nnx.GRUCell has no such bias.

    >>> list(to_nnx(jb.lstm(3, 5).init(jax.random.key(0))))
    ['dense_i', 'dense_h']
    """
    flag("optimized", optimized)
    cell = to_their_order(GATES, params, "flax.nnx")
    if cell.kind == LSTM and not optimized:
        return {"if_" if name == "if" else name: part for name, part in to_linen(params).items()}  # (WL4)
    b, b_n = folded(cell)
    if b_n.any():
        expected = "zeros for n, as nnx.GRUCell has no such bias"
        raise bad("params.b_h", expected, cell.b_h, "use flax.linen's GRUCell")
    tree = {"dense_i": {"kernel": cell.w_x}, "dense_h": {"kernel": cell.w_h}}  # (WL4)
    tree["dense_h" if cell.kind == LSTM else "dense_i"]["bias"] = b  # (WL4)
    return tree


@named("convert.from_nnx")
def from_nnx(weights: Mapping[str, Mapping[str, Foreign]]) -> Params | GRUParams:
    """The state of a cell of flax.nnx becomes params.

    Args:
      weights: nnx.to_pure_dict(nnx.state(cell, nnx.Param)), see `to_nnx`.

    Returns:
      The params of `elman`, `lstm` or `gru`, arrays of the kind that came; b_h of a GRU is 0.

    Raises:
      ValueError: a name is missing, or the shapes are not those of such a cell.

    >>> params = jb.lstm(3, 5).init(jax.random.key(0))
    >>> bool((from_nnx(to_nnx(params)).w_h == params.w_h).all())
    True
    """
    if has(weights, "if_"):
        return from_linen({"if" if name == "if_" else name: part for name, part in weights.items()})  # (WL4)
    w_x, w_h = (leaf(weights, side, "kernel") for side in ("dense_i", "dense_h"))  # (WL4)
    b, b_h = (bias(weights, side, "bias", beside=w_h) for side in ("dense_i", "dense_h"))  # (WL4)
    return to_our_order(GATES, w_x, w_h, b, b_h)

"""Flax's linen stores an array for each gate, under the gate's name.

    i<g>/kernel = W_x^g,  h<g>/kernel = W_h^g,  i<g>/bias = b̄^g (LSTM: h<g>),  hn/bias = b_n (WL3)

`layout` defines b̄ and b_n. All these cells have biases, which are zeros for a cell of ours without.
SimpleCell(residual=True) adds h_{t−1}; it equals `elman` with 1 added to the diagonal of W_h.
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
    ELMAN,
    LSTM,
    AnyArray,
    GateOrders,
    bias,
    folded,
    has,
    leaf,
    namespace,
    or_zeros,
    to_our_order,
    to_their_order,
)

GATES: GateOrders = {ELMAN: [""], LSTM: [*"ifgo"], AFTER: [*"rzn"]}


@named("convert.to_linen")
def to_linen(params: Params | GRUParams) -> dict[str, dict[str, np.ndarray]]:
    """Params become the "params" of flax.linen.SimpleCell, LSTMCell, OptimizedLSTMCell or GRUCell.

    Args:
      params: those of `elman`, `lstm` or `gru`.

    Returns:
      A dict with two entries for each gate: i and h followed by its name, such as `if` and `hf` (i and h
      alone for a cell with one gate). Each is a dict with kernel, [I, H] or [H, H], and perhaps bias, [H].

    Raises:
      ValueError: the params are those of another cell.

    >>> list(to_linen(jb.elman(3, 5).init(jax.random.key(0))))
    ['i', 'h']
    """
    cell = to_their_order(GATES, params, "flax.linen")
    gates = GATES[cell.kind]
    b, b_n = folded(cell)
    tree: dict[str, dict[str, np.ndarray]] = {}
    blocks = (np.split(a, len(gates), axis=-1) for a in (cell.w_x, cell.w_h, b))
    for g, w_x_g, w_h_g, b_g in zip(gates, *blocks, strict=True):
        tree[f"i{g}"], tree[f"h{g}"] = {"kernel": w_x_g}, {"kernel": w_h_g}  # (WL3)
        tree[f"h{g}" if cell.kind == LSTM else f"i{g}"]["bias"] = b_g  # (WL3)
    if cell.kind == AFTER:
        tree["hn"]["bias"] = b_n  # (WL3)
    return tree


@named("convert.from_linen")
def from_linen(weights: Mapping[str, Mapping[str, Foreign]]) -> Params | GRUParams:
    """The "params" of a cell of flax.linen become params of our cell.

    Args:
      weights: names and arrays as in `to_linen`.

    Returns:
      The params of `elman`, `lstm` or `gru`, arrays of the kind that came; b_h of a GRU is (0, 0, b_n).

    Raises:
      ValueError: a name is missing, or the shapes are not those of such a cell.

    >>> params = jb.gru(3, 5).init(jax.random.key(0))
    >>> bool((from_linen(to_linen(params)).w_h == params.w_h).all())
    True
    """
    kind = next((kind for kind, gates in GATES.items() if has(weights, f"i{gates[0]}")), ELMAN)
    gates = GATES[kind]
    i, h = (leaf(weights, side + gates[0], "kernel") for side in "ih")
    w_x = namespace(i).concatenate([leaf(weights, f"i{g}", "kernel", like=i) for g in gates], axis=1)  # (WL3)
    w_h = namespace(h).concatenate([leaf(weights, f"h{g}", "kernel", like=h) for g in gates], axis=1)  # (WL3)
    b, b_h = (_of_gates([bias(weights, s + g, "bias", beside=h) for g in gates], h) for s in "ih")  # (WL3)
    return to_our_order({kind: gates}, w_x, w_h, b, b_h)


def _of_gates(biases: list[AnyArray | None], beside: AnyArray) -> AnyArray | None:
    """The biases of all gates are joined, with zeros where one is missing; None if all are."""
    if all(b_g is None for b_g in biases):
        return None
    return namespace(beside).concatenate([or_zeros(b_g, beside) for b_g in biases])

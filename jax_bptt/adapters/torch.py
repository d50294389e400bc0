"""PyTorch stores the transposed matrices and both biases, with the gates in our order.

    weight_ih = W_xᵀ,  weight_hh = W_hᵀ,  bias_ih = b,  bias_hh = b_h                    (WL2)

The names end with the layer and the direction, as in `weight_ih_l1_reverse`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jax_bptt.adapters.weights import AFTER, ELMAN, LSTM, GateOrders, bias, leaf, to_our_order, to_their_order
from jax_bptt.base.checks import flag, integer
from jax_bptt.base.errors import named
from jax_bptt.base.types import Foreign
from jax_bptt.cell.cell import Params
from jax_bptt.cells.gru import GRUParams

GATES: GateOrders = {ELMAN: [""], LSTM: [*"ifgo"], AFTER: [*"rzn"]}


@named("convert.to_torch")
def to_torch(params: Params | GRUParams, layer: int = 0, reverse: bool = False) -> dict[str, np.ndarray]:
    """Params become the weights of one layer and direction of torch.nn.RNN, LSTM or GRU.

    Args:
      params: those of `elman`, `lstm` or `gru`.
      layer: the number of the PyTorch layer, from 0.
      reverse: whether the weights are for its backward direction.

    Returns:
      weight_ih_l0 [GH, I], weight_hh_l0 [GH, H], bias_ih_l0 and bias_hh_l0 [GH], named for the layer; no
      biases for a cell with bias=False, as for bias=False in PyTorch. Pass
      {name: torch.tensor(w) for name, w in to_torch(params).items()} to load_state_dict; of params in
      bfloat16 pass torch.tensor(w.astype("float32")), as PyTorch does not read NumPy's arrays of it.

    Raises:
      ValueError: the params are those of another cell, or layer or reverse is wrong.

    >>> list(to_torch(jb.lstm(3, 5).init(jax.random.key(0)), layer=1, reverse=True))[:2]
    ['weight_ih_l1_reverse', 'weight_hh_l1_reverse']
    """
    cell = to_their_order(GATES, params, "torch.nn")
    matrices = {"weight_ih": cell.w_x.T, "weight_hh": cell.w_h.T}  # (WL2)
    biases = {"bias_ih": cell.b, "bias_hh": cell.b_h} if cell.has_bias else {}  # (WL2)
    return {name + _at(layer, reverse): w for name, w in (matrices | biases).items()}


@named("convert.from_torch")
def from_torch(weights: Mapping[str, Foreign], layer: int = 0, reverse: bool = False) -> Params | GRUParams:
    """The state_dict of torch.nn.RNN, LSTM or GRU becomes the params of one layer and direction.

    Args:
      weights: tensors or arrays as in `to_torch`; other names are ignored.
      layer: the number of the PyTorch layer, from 0.
      reverse: whether its backward direction is read.

    Returns:
      The params of `elman`, `lstm` or `gru`, as NumPy arrays. b is the sum of both biases, except in a GRU,
      which has both. Without biases they are those of a cell with bias=False.

    Raises:
      ValueError: a name is missing, or the shapes are not those of such a cell.

    >>> params = jb.gru(3, 5).init(jax.random.key(0))
    >>> bool((from_torch(to_torch(params)).w_h == params.w_h).all())
    True
    """
    at = _at(layer, reverse)
    w_x, w_h = (leaf(weights, f"weight_{side}{at}").T for side in ("ih", "hh"))  # (WL2)
    b, b_h = (bias(weights, f"bias_{side}{at}", beside=w_h) for side in ("ih", "hh"))  # (WL2)
    return to_our_order(GATES, w_x, w_h, b, b_h)


def _at(layer: int, reverse: bool) -> str:
    flag("reverse", reverse)
    return f"_l{integer('layer', layer, 0, 10**6)}" + "_reverse" * reverse

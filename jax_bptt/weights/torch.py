"""PyTorch stores the transposed matrices and both biases, with the gates in our order.

    weight_ih = W_xᵀ,  weight_hh = W_hᵀ,  bias_ih = b,  bias_hh = b_h                    (WL2)
    weight_hr = W_pᵀ                                                of lstm(projection=P)  (WL10)

The names end with the layer and the direction, as in `weight_ih_l1_reverse`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jax_bptt.base.checks import check_arrays, flag, integer, is_floating
from jax_bptt.base.errors import bad, named
from jax_bptt.base.types import Foreign
from jax_bptt.base.variants import root_of
from jax_bptt.cell.cell import Params, without_biases
from jax_bptt.cells.gru import GRUParams
from jax_bptt.cells.lstm_projected import ProjectedParams
from jax_bptt.weights.layout import (
    AFTER,
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

GATES: GateOrders = {ELMAN: [""], LSTM: [*"ifgo"], AFTER: [*"rzn"]}


@named("convert.to_torch")
def to_torch(
    params: Params | GRUParams | ProjectedParams, layer: int = 0, reverse: bool = False
) -> dict[str, np.ndarray]:
    """Params become the weights of one layer and direction of torch.nn.RNN, LSTM or GRU.

    Args:
      params: those of `elman`, `lstm` or `gru`.
      layer: the number of the PyTorch layer, from 0.
      reverse: whether the weights are for its backward direction.

    Returns:
      weight_ih_l0 [GH, I], weight_hh_l0 [GH, H], bias_ih_l0 and bias_hh_l0 [GH], named for the layer; no
      biases for a cell with bias=False, as for bias=False in PyTorch. Those of lstm(projection=P), which is
      proj_size=P, have weight_hh_l0 [4H, P] and weight_hr_l0 [P, H]. Pass
      {name: torch.tensor(w) for name, w in to_torch(params).items()} to load_state_dict; of params in
      bfloat16 pass torch.tensor(w.astype("float32")), as PyTorch does not read NumPy's arrays of it.

    Raises:
      ValueError: the params are those of another cell, or layer or reverse is wrong.

    >>> list(to_torch(jb.lstm(3, 5).init(jax.random.key(0)), layer=1, reverse=True))[:2]
    ['weight_ih_l1_reverse', 'weight_hh_l1_reverse']
    """
    at = _at(layer, reverse)
    if root_of(params) is ProjectedParams:
        return {name + at: w for name, w in _of_projected(params).items()}
    cell = to_their_order(GATES, params, "torch.nn")
    matrices = {"weight_ih": cell.w_x.T, "weight_hh": cell.w_h.T}  # (WL2)
    biases = {"bias_ih": cell.b, "bias_hh": cell.b_h} if cell.has_bias else {}  # (WL2)
    return {name + at: w for name, w in (matrices | biases).items()}


@named("convert.from_torch")
def from_torch(
    weights: Mapping[str, Foreign], layer: int = 0, reverse: bool = False
) -> Params | GRUParams | ProjectedParams:
    """The state_dict of torch.nn.RNN, LSTM or GRU becomes the params of one layer and direction.

    Args:
      weights: tensors or arrays as in `to_torch`; other names are ignored.
      layer: the number of the PyTorch layer, from 0.
      reverse: whether its backward direction is read.

    Returns:
      The params of `elman`, `lstm` or `gru`, arrays of the kind that came; of lstm(projection=P) if there
      is a weight_hr. b is the sum of both biases, except in a GRU, which has both. Without
      biases they are those of a cell with bias=False.

    Raises:
      ValueError: a name is missing, or the shapes are not those of such a cell.

    >>> params = jb.gru(3, 5).init(jax.random.key(0))
    >>> bool((from_torch(to_torch(params)).w_h == params.w_h).all())
    True
    """
    at = _at(layer, reverse)
    w_x, w_h = (leaf(weights, f"weight_{side}{at}").T for side in ("ih", "hh"))  # (WL2)
    b, b_h = (bias(weights, f"bias_{side}{at}", beside=w_h) for side in ("ih", "hh"))  # (WL2)
    if not has(weights, f"weight_hr{at}"):
        return to_our_order(GATES, w_x, w_h, b, b_h)
    w_p = leaf(weights, f"weight_hr{at}").T  # (WL10)
    if not _fit(w_x, w_h, w_p):
        got = {"weight_ih": w_x.T, "weight_hh": w_h.T, "weight_hr": w_p.T}
        raise bad(
            "weights", "[4H, I], [4H, P] and [P, H] of an LSTM", got, "give one layer with its projection"
        )
    params = ProjectedParams(w_x, w_h, or_zeros(b, w_h) + or_zeros(b_h, w_h), w_p)  # type: ignore[arg-type]
    found: ProjectedParams = without_biases(params) if b is None and b_h is None else params
    return found


def _of_projected(params: Foreign) -> dict[str, np.ndarray]:
    """The gates are in the order of PyTorch; its second bias is zeros."""
    check_arrays("params", params)
    has_bias = hasattr(params, "b")
    fields = set(ProjectedParams._fields) - (set() if has_bias else {"b"})
    if set(params._fields) != fields or not all(map(is_floating, params)):
        raise bad("params", "those of lstm(projection=P)", params, "convert it without a trained carry")
    w_x, w_h, w_p = (np.array(w) for w in (params.w_x, params.w_h, params.w_p))
    if not _fit(w_x, w_h, w_p) or (has_bias and params.b.shape != w_h.shape[1:]):
        raise bad("params", "[I, 4H], [P, 4H], [4H], [H, P]", params, "pass params of lstm(projection=P)")
    matrices = {"weight_ih": w_x.T, "weight_hh": w_h.T, "weight_hr": w_p.T}  # (WL2, WL10)
    if not has_bias:
        return matrices
    b = np.array(params.b)
    return matrices | {"bias_ih": b, "bias_hh": np.zeros_like(b)}  # (WL2)


def _fit(w_x: AnyArray, w_h: AnyArray, w_p: AnyArray) -> bool:
    if not w_x.ndim == w_h.ndim == w_p.ndim == 2:
        return False
    hidden, outputs = w_p.shape
    return len(w_h) == outputs and w_x.shape[1] == w_h.shape[1] == 4 * hidden


def _at(layer: int, reverse: bool) -> str:
    flag("reverse", reverse)
    return f"_l{integer('layer', layer, 0, 10**6)}" + "_reverse" * reverse

"""ONNX stores transposed matrices, one for each direction, with the gates in other orders.

    W = [W_xᵀ],  R = [W_hᵀ],  B = [(b, b_h)],  gates i, o, f, g or z, r, n                (WL11)
    P = [(p_i, p_o, p_f)]                                                                 (WL12)

The brackets hold one row for each direction. Only the attribute linear_before_reset of a GRU tells whether
its reset comes after the product; without it both biases are added. A node may lack B and P.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jax_bptt.base.checks import integer, is_floating, or_none
from jax_bptt.base.errors import bad, named, naming
from jax_bptt.base.types import Foreign
from jax_bptt.base.variants import root_of
from jax_bptt.cell.cell import BIASES, Params, without_biases
from jax_bptt.cells.gru import GRUParams
from jax_bptt.cells.lstm import PeepholeParams
from jax_bptt.weights.layout import (
    AFTER,
    BEFORE,
    ELMAN,
    LSTM,
    AnyArray,
    GateOrders,
    has,
    leaf,
    namespace,
    to_our_order,
    to_their_order,
)

GATES: GateOrders = {ELMAN: [""], LSTM: [*"iofg"], AFTER: [*"zrn"], BEFORE: [*"zrn"]}
_PEEPHOLES = ("p_i", "p_o", "p_f")
_DIRECTIONS = ("forward", "reverse")


@named("convert.to_onnx")
def to_onnx(params: Params | GRUParams | PeepholeParams) -> dict[str, np.ndarray]:
    """Params become the inputs W, R, B and P of the ONNX node RNN, LSTM or GRU.

    The node needs the attribute hidden_size = H, and a GRU linear_before_reset = 1 for the params of
    `gru`, 0 for those of gru(reset_after=False). Other activations than tanh and σ are attributes too.
    For a bidirectional node join both cells: {name: numpy.concatenate([forward[name], reverse[name]]) ...}.

    Args:
      params: those of `elman`, `lstm`, with or without peepholes, or `gru`, with the reset after or before
        the product.

    Returns:
      W [1, GH, I], R [1, GH, H], B [1, 2GH] unless the cell has bias=False, and P [1, 3H] with peepholes.

    Raises:
      ValueError: the params are those of another cell.

    >>> {name: a.shape for name, a in to_onnx(jb.lstm(3, 5).init(jax.random.key(0))).items()}
    {'W': (1, 20, 3), 'R': (1, 20, 5), 'B': (1, 40)}
    """
    plain, peepholes = _apart(params)
    cell = to_their_order(GATES, plain, "onnx")
    weights = {"W": cell.w_x.T, "R": cell.w_h.T}  # (WL11)
    if cell.has_bias:
        weights["B"] = np.concatenate([cell.b, cell.b_h])  # (WL11)
    if peepholes:
        if not all(is_floating(p) and p.shape == cell.w_h.shape[:1] for p in peepholes):
            raise bad("params", "p_i, p_f and p_o of one number for each unit", params, "see jb.lstm")
        weights["P"] = np.concatenate(peepholes)  # (WL12)
    return {name: a[None] for name, a in weights.items()}


@named("convert.from_onnx")
def from_onnx(
    weights: Mapping[str, Foreign], linear_before_reset: int | None = None, direction: str | None = None
) -> Params | GRUParams | PeepholeParams:
    """The inputs W, R, B and P of the ONNX node RNN, LSTM or GRU become params of one direction.

    An initializer of the model becomes an array by onnx.numpy_helper.to_array. The clip and input_forget of
    a node have no counterpart here.

    Args:
      weights: names and arrays as in `to_onnx`, but with D = 1 or 2 in front; B and P may be missing or
        None.
      linear_before_reset: this attribute of a GRU, 0 or 1; a node without it has 0. None for other nodes.
      direction: "forward" or "reverse", which direction of two; None for a node of one.

    Returns:
      The params of `elman`, `lstm` or `gru`, arrays of the kind that came; with P those of
      lstm(peephole=True). Without B they are those of a cell with bias=False.

    Raises:
      ValueError: a name is missing, the shapes are not those of such a node, or linear_before_reset or
        direction is missing or does not fit them.

    >>> params = jb.gru(3, 5).init(jax.random.key(0))
    >>> bool((from_onnx(to_onnx(params), linear_before_reset=1).w_h == params.w_h).all())
    True
    """
    reset_after = or_none(lambda name, value: bool(integer(name, value, 0, 1)))(
        "linear_before_reset", linear_before_reset
    )
    one = _of_one_direction(weights, direction)
    w_x, w_h = leaf(one, "W").T, leaf(one, "R").T  # (WL11)
    b = b_h = None
    if has(one, "B"):
        both = leaf(one, "B", like=np.zeros(2 * w_h.shape[1]))
        b, b_h = namespace(both).split(both, 2)  # (WL11)
    params = to_our_order(_possible(w_h, reset_after), w_x, w_h, b, b_h)
    if not has(one, "P"):
        return params
    if w_h.shape[1] != 4 * len(w_h):
        raise bad("weights P", "None for a node that is no LSTM", one["P"], "leave it out")
    p = leaf(one, "P", like=np.zeros(3 * len(w_h)))
    peepholes = dict(zip(_PEEPHOLES, namespace(p).split(p, 3), strict=True))  # (WL12)
    whole = PeepholeParams(**{"b": None} | params._asdict() | peepholes)
    return without_biases(whole) if b is None else whole


def _apart(params: Foreign) -> tuple[Foreign, list[Foreign]]:
    """The params of an LSTM with peepholes as those of one without, and the peepholes in ONNX's order."""
    fields = params._asdict() if root_of(params) is PeepholeParams else {}
    if fields.keys() - {"w_x", "w_h", *BIASES} != set(_PEEPHOLES):
        return params, []
    peepholes = [fields.pop(name) for name in _PEEPHOLES]
    plain = Params(**{"b": None} | fields)
    return plain if "b" in fields else without_biases(plain), peepholes


def _of_one_direction(weights: Foreign, direction: object) -> Foreign:
    """The arrays of one direction of a node, without their first axis."""
    if direction is not None and (not isinstance(direction, str) or direction not in _DIRECTIONS):
        raise bad(
            "direction", "'forward', 'reverse' or None", direction, "say which direction of two to read"
        )
    given = {name: weights[name] for name in ("W", "R", "B", "P") if has(weights, name)}
    if not given:
        return weights  # which lack W
    with naming("weights", "arrays W, R, B and P"):
        counts = {np.shape(a)[:1] for a in given.values()}
    if counts not in ({(1,)}, {(2,)}):
        raise bad("weights", "arrays [D, ...] of one D, 1 or 2", given, "give the inputs of one ONNX node")
    if counts == {(2,)} and direction is None:
        fix = "call it once for each direction"
        raise bad("direction", "'forward' or 'reverse' for weights of two directions", direction, fix)
    row = 1 if counts == {(2,)} and direction == "reverse" else 0
    return {**weights, **{name: a[row] for name, a in given.items()}}


def _possible(w_h: AnyArray, reset_after: bool | None) -> GateOrders:
    """These kinds of cell are possible; only an attribute tells where the reset of a GRU is."""
    is_gru = w_h.shape[1] == 3 * len(w_h)
    if is_gru and reset_after is None:
        expected = "0 or 1 beside the weights of a GRU"
        raise bad("linear_before_reset", expected, reset_after, "pass that attribute; 0 if the node has none")
    if not is_gru and reset_after is not None:
        raise bad("linear_before_reset", "None for a node that is no GRU", int(reset_after), "leave it out")
    kinds = (AFTER if reset_after else BEFORE,) if is_gru else (ELMAN, LSTM)
    return {kind: GATES[kind] for kind in kinds}

"""All conversions share this: the order of the gates, and the reading of a framework's arrays.

Our cells compute u = x W_x + b and v = h W_h + b_h, with the gates i, f, g, o or r, z, n as blocks of
columns, and the state of a GRU is h' = (1 − z) n + z h. b_h is 0, except in a GRU with the reset after the
product. W^g is the block of gate g. For a framework with one bias the two biases are added. This changes no
state, because r and z see only u + v; n keeps its own second bias:

    b̄ = b + (b_h^r, b_h^z, 0),   b_n = b_h^n                   (WL1)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from jax_bptt.base.checks import check_arrays, is_floating
from jax_bptt.base.errors import bad, naming
from jax_bptt.base.types import Foreign
from jax_bptt.cell.cell import Params
from jax_bptt.cells.gru import GRUParams

GateOrders: TypeAlias = dict[str, list[str]]  # for each kind of cell its gates in order

ELMAN, LSTM, AFTER, BEFORE = "elman", "lstm", "gru(reset_after=True)", "gru(reset_after=False)"
OURS: GateOrders = {ELMAN: [""], LSTM: [*"ifgo"], AFTER: [*"rzn"], BEFORE: [*"rzn"]}


class Weights(NamedTuple):
    """These are the weights of one cell, with the gates in the order of a framework.

    Attributes:
      kind: ELMAN, LSTM, AFTER or BEFORE.
      w_x: [I, G*H].
      w_h: [H, G*H].
      b: [G*H].
      b_h: [G*H], zeros except in a GRU with the reset after the product.
    """

    kind: str
    w_x: np.ndarray
    w_h: np.ndarray
    b: np.ndarray
    b_h: np.ndarray


def to_their_order(orders: GateOrders, params: Foreign, framework: str) -> Weights:
    """Params become new arrays with the gates in the order of a framework.

    Args:
      orders: the kinds of cell that the framework has; the first that fits the params is used.
      params: those of one of our cells.
      framework: its name, for the message.

    Returns:
      The `Weights`.

    Raises:
      ValueError: the framework lacks this cell, or params are no parameters of a cell.
    """
    check_arrays("params", params)
    is_ours = isinstance(params, (Params, GRUParams)) and all(map(is_floating, params))
    arrays = [np.array(a) for a in params] if is_ours else []
    for kind, gates in orders.items():
        if len(arrays) == (4 if kind == AFTER else 3) and _fit(gates, *arrays):
            arrays = [*arrays, np.zeros_like(arrays[2])][:4]
            return Weights(kind, *(_reordered(a, OURS[kind], gates) for a in arrays))
    fix = "convert one of these cells, without peepholes or a trained carry"
    raise bad("params", f"those of {', '.join(orders)} for {framework}", params, fix)


def to_our_order(
    orders: GateOrders, w_x: np.ndarray, w_h: np.ndarray, b: np.ndarray, b_h: np.ndarray | None = None
) -> Params | GRUParams:
    """The arrays of a framework become params.

    Args:
      orders: the kinds of cell that are possible; the first that fits the arrays is used.
      w_x: [I, G*H].
      w_h: [H, G*H].
      b: [G*H].
      b_h: [G*H], or None for zeros; it is added to b, except in a GRU with the reset after the product.

    Returns:
      The params, as NumPy arrays.

    Raises:
      ValueError: the shapes fit none of these cells.
    """
    arrays = w_x, w_h, b, np.zeros_like(b) if b_h is None else b_h
    for kind, gates in orders.items():
        if _fit(gates, *arrays):
            ours: list[Any] = [_reordered(a, gates, OURS[kind]) for a in arrays]  # NumPy, not Array
            return GRUParams(*ours) if kind == AFTER else Params(ours[0], ours[1], ours[2] + ours[3])
    got = {"W_x": w_x, "W_h": w_h, "b": b}
    fix = "give one layer in one direction, without projections or peepholes"
    raise bad("weights", f"W_x [I, GH], W_h [H, GH], b [GH] of {', '.join(orders)}", got, fix)


def folded(cell: Weights) -> tuple[np.ndarray, np.ndarray]:
    """Two biases become b̄, [G*H], and b_n, [H] of a GRU; for other cells b_n is zeros."""
    if cell.kind != AFTER:
        return cell.b, cell.b_h
    rz = len(cell.b) // 3 * 2
    return np.append(cell.b[:rz] + cell.b_h[:rz], cell.b[rz:]), cell.b_h[rz:]  # (WL1)


def has(weights: object, name: str) -> bool:
    """A name counts as present if its value is not None."""
    return isinstance(weights, Mapping) and weights.get(name) is not None


def leaf(weights: Foreign, *path: str, like: np.ndarray | None = None) -> np.ndarray:
    """The array at a path of names is copied; it must be a matrix, or have the shape of another array.

    Args:
      weights: the weights that the user passed.
      path: the names, from the outermost to the innermost.
      like: an array of the shape that is required; None for a matrix of any shape.

    Returns:
      The array, of a floating dtype.

    Raises:
      ValueError: a name is missing, or its value is not a floating array of the right shape.
    """
    for name in path:
        if not has(weights, name):
            got = f"names {', '.join(map(str, weights))}" if isinstance(weights, Mapping) else weights
            raise bad("weights", f"a name {'/'.join(path)}", got, "give one cell, named as in jb.convert")
        weights = weights[name]
    if isinstance(weights, np.ndarray):
        check_arrays(f"weights {'/'.join(path)}", weights)
    with naming(f"weights {'/'.join(path)}", "an array"):
        a = np.array(weights.detach().cpu() if hasattr(weights, "detach") else weights)  # PyTorch's tensors
    if not is_floating(a) or (a.ndim != 2 if like is None else a.shape != like.shape):
        expected = "a matrix" if like is None else f"{list(like.shape)} as its neighbours"
        raise bad(f"weights {'/'.join(path)}", expected, a, "give one cell, named as in jb.convert")
    return a


def bias(weights: Foreign, *path: str, beside: np.ndarray) -> np.ndarray:
    """The bias at a path of names is copied; a bias that is missing or None counts as zeros.

    Args:
      weights: the weights that the user passed.
      path: the names, from the outermost to the innermost.
      beside: a matrix with a column for each number of the bias.

    Returns:
      A new array [G*H].

    Raises:
      ValueError: the value is not a floating array of the right shape.
    """
    zeros, here = np.zeros(beside.shape[1], beside.dtype), weights
    for name in path:
        here = here[name] if has(here, name) else None
    return zeros if here is None else leaf(weights, *path, like=zeros)


def _fit(gates: list[str], w_x: np.ndarray, w_h: np.ndarray, *biases: np.ndarray) -> bool:
    columns = (len(gates) * w_h.shape[0],) if w_h.ndim == w_x.ndim == 2 else ()
    return w_x.shape[1:] == w_h.shape[1:] == columns and all(b.shape == columns for b in biases)


def _reordered(a: np.ndarray, old: list[str], new: list[str]) -> np.ndarray:
    blocks = np.split(a, len(old), axis=-1)
    return np.concatenate([blocks[old.index(gate)] for gate in new], axis=-1)

"""All conversions share this: the order of the gates, and the reading of a framework's arrays.

Our cells compute u = x W_x + b and v = h W_h + b_h, with the gates i, f, g, o or r, z, n as blocks of
columns, and the state of a GRU is h' = (1 − z) n + z h. b_h is 0, except in a GRU with the reset after the
product; a cell may have no biases at all. W^g is the block of gate g. For a framework with one bias the two
biases are added. This changes no state, because r and z see only u + v; n keeps its own second bias:

    b̄ = b + (b_h^r, b_h^z, 0),   b_n = b_h^n                   (WL1)
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_bptt.base.checks import check_arrays, is_floating
from jax_bptt.base.errors import bad, naming
from jax_bptt.base.types import Foreign
from jax_bptt.base.variants import root_of
from jax_bptt.cell.cell import BIASES, Params, without_biases
from jax_bptt.cells.gru import GRUParams

AnyArray: TypeAlias = np.ndarray | Array  # of NumPy, or of JAX and perhaps traced
GateOrders: TypeAlias = dict[str, list[str]]  # for each kind of cell its gates in order

ELMAN, LSTM, AFTER, BEFORE = "elman", "lstm", "gru(reset_after=True)", "gru(reset_after=False)"
OURS: GateOrders = {ELMAN: [""], LSTM: [*"ifgo"], AFTER: [*"rzn"], BEFORE: [*"rzn"]}


class Weights(NamedTuple):
    """These are the weights of one cell, with the gates in the order of a framework.

    Attributes:
      kind: ELMAN, LSTM, AFTER or BEFORE.
      w_x: [I, G*H].
      w_h: [H, G*H].
      b: [G*H], zeros in a cell without biases.
      b_h: [G*H], zeros except in a GRU with the reset after the product.
      has_bias: whether the cell has biases.
    """

    kind: str
    w_x: np.ndarray
    w_h: np.ndarray
    b: np.ndarray
    b_h: np.ndarray
    has_bias: bool


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
    whole = _whole(params)
    for kind, gates in orders.items():
        if isinstance(whole, GRUParams if kind == AFTER else Params) and _fit(gates, *whole):
            arrays = (_reordered(a, OURS[kind], gates) for a in (*whole, np.zeros_like(whole.b)))
            w_x, w_h, b, b_h, *_ = arrays
            return Weights(kind, w_x, w_h, b, b_h, has_bias=hasattr(params, "b"))
    fix = "convert one of these cells, without peepholes, heads or a trained carry"
    raise bad("params", f"those of {', '.join(orders)} for {framework}", params, fix)


def to_our_order(
    orders: GateOrders,
    w_x: AnyArray,
    w_h: AnyArray,
    b: AnyArray | None,
    b_h: AnyArray | None = None,
) -> Params | GRUParams:
    """The arrays of a framework become params.

    Args:
      orders: the kinds of cell that are possible; the first that fits the arrays is used.
      w_x: [I, G*H].
      w_h: [H, G*H].
      b: [G*H], or None if it is missing.
      b_h: the same of the second bias, which is added to b, except in a GRU with the reset after the product.

    Returns:
      The params, arrays of the kind that came; without biases if both are missing.

    Raises:
      ValueError: the shapes fit none of these cells.
    """
    zeros = np.zeros(w_h.shape[1:], w_h.dtype)
    arrays = w_x, w_h, *(zeros if one is None else one for one in (b, b_h))
    for kind, gates in orders.items():
        if _fit(gates, *arrays):
            ours = [_reordered(a, gates, OURS[kind]) for a in arrays]
            both: Foreign = ours[2] if b_h is None else ours[3] if b is None else _sum(ours[2], ours[3])
            params = GRUParams(*ours) if kind == AFTER else Params(ours[0], ours[1], both)
            return params if b is not None or b_h is not None else without_biases(params)
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


def leaf(weights: Foreign, *path: str, like: AnyArray | None = None) -> AnyArray:
    """The array at a path of names is copied; it must be a matrix, or have the shape of another array.

    Args:
      weights: the weights that the user passed.
      path: the names, from the outermost to the innermost.
      like: an array of the shape that is required; None for a matrix of any shape.

    Returns:
      A new array of a floating dtype: JAX's if it was one, traced or not, and otherwise NumPy's.

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
        a = _copied(weights)
    if not is_floating(a) or (a.ndim != 2 if like is None else a.shape != like.shape):
        expected = "a matrix" if like is None else f"{list(like.shape)} as its neighbours"
        raise bad(f"weights {'/'.join(path)}", expected, a, "give one cell, named as in jb.convert")
    return a


def bias(weights: Foreign, *path: str, beside: AnyArray) -> AnyArray | None:
    """The bias at a path of names is copied; the result is None where it is missing.

    Args:
      weights: the weights that the user passed.
      path: the names, from the outermost to the innermost.
      beside: a matrix with a column for each number of the bias.

    Returns:
      A new array [G*H], or None.

    Raises:
      ValueError: the value is not a floating array of the right shape.
    """
    here = weights
    for name in path:
        here = here[name] if has(here, name) else None
    return None if here is None else leaf(weights, *path, like=or_zeros(None, beside))


def or_zeros(found: AnyArray | None, beside: AnyArray) -> AnyArray:
    """A bias that is missing becomes zeros, one for each column of the matrix beside it."""
    return np.zeros(beside.shape[1], beside.dtype) if found is None else found


def _whole(params: Foreign) -> Params | GRUParams | None:
    """Params of our cells become NumPy arrays, with zeros for missing biases; other params become None."""
    root = root_of(params)
    if root not in (Params, GRUParams) or not all(map(is_floating, params)):
        return None
    zeros = dict.fromkeys(BIASES, np.zeros(params.w_h.shape[1:], params.w_h.dtype))
    arrays = {name: zeros[name] for name in root._fields if name in zeros} | {
        name: np.array(p) for name, p in params._asdict().items()
    }
    return root(**arrays) if arrays.keys() == set(root._fields) else None


def _copied(weights: Foreign) -> AnyArray:
    """JAX's arrays stay JAX's, where they lie; PyTorch's bfloat16 goes through float32, which holds it."""
    if isinstance(weights, jax.Array):
        return jnp.array(weights)
    if not hasattr(weights, "detach"):
        return np.array(weights)
    tensor = weights.detach().cpu()
    is_bfloat16 = str(tensor.dtype) == "torch.bfloat16"
    return np.array(tensor.float()).astype(jnp.bfloat16) if is_bfloat16 else np.array(tensor)


def namespace(a: AnyArray) -> ModuleType:
    """NumPy or jax.numpy: what computes with such an array."""
    return jnp if isinstance(a, jax.Array) else np


def _fit(gates: list[str], w_x: AnyArray, w_h: AnyArray, *biases: AnyArray) -> bool:
    columns = (len(gates) * w_h.shape[0],) if w_h.ndim == w_x.ndim == 2 else ()
    return w_x.shape[1:] == w_h.shape[1:] == columns and all(b.shape == columns for b in biases)


def _sum(b: AnyArray, b_h: AnyArray) -> AnyArray:
    with jax.numpy_dtype_promotion("standard"):  # as NumPy does it; later checks want one dtype
        return b + b_h


def _reordered(a: AnyArray, old: list[str], new: list[str]) -> Foreign:
    blocks = namespace(a).split(a, len(old), axis=-1)
    return namespace(a).concatenate([blocks[old.index(gate)] for gate in new], axis=-1)

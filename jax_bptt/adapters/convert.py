"""The weights of one cell to and from PyTorch, Flax, Keras, Haiku and Equinox, in NumPy alone.

Ours is u = x W_x + b and v = h W_h + b_h with the gates i, f, g, o or r, z, n as blocks of columns and
h' = (1 − z) n + z h; b_h = 0 but in a GRU with the reset after the product. W^g is the block of gate g.

    folded   r and z see only u + v:   b̄ = b + (b_h^r, b_h^z, 0),   b_n = b_h^n                    (C1)
    PyTorch  weight_ih = W_xᵀ,  weight_hh = W_hᵀ,  bias_ih = b,  bias_hh = b_h                     (C2)
    linen    i<g>/kernel = W_x^g,  h<g>/kernel = W_h^g,  i<g>/bias = b̄^g (LSTM: h<g>),  hn/bias = b_n (C3)
    nnx      dense_i, dense_h: linen's gates side by side, no b_n; LSTMCell as linen, if_ for if   (C4)
    Keras    [W_x, W_h, b] with the gates z, r, n; the rows (b, b_h) with the reset after          (C5)
    Haiku    RNN   linear = W_x, b;  linear_1 = W_h, b_h                                           (C6)
             LSTM  linear = the rows (W_x, W_h), b, gates i, g, f, o; b_f − 1, as it adds 1 itself (C7)
             GRU   gates −z, r, n, reset before: h' = (1 − z) h + z n there, 1 − σ(z) = σ(−z)      (C8)
    Equinox  weight_ih = W_xᵀ,  weight_hh = W_hᵀ,  bias = b̄,  bias_n = b_n                         (C9)

Biases that are absent are zeros. Activations are not weights: Haiku's RNN is elman(activation="relu"),
and SimpleCell(residual=True) of Flax, which adds h_{t−1}, is ours with 1 added to the diagonal of W_h.
A cell that the framework lacks, a name that is absent and a shape that does not fit are ValueErrors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jax_bptt.base.checks import flag, integer, is_floating
from jax_bptt.base.errors import bad, naming
from jax_bptt.cell.cell import Params
from jax_bptt.cells.gru import GRUParams

ELMAN, LSTM, AFTER, BEFORE = "elman", "lstm", "gru(reset_after=True)", "gru(reset_after=False)"
OURS = {ELMAN: [""], LSTM: [*"ifgo"], AFTER: [*"rzn"], BEFORE: [*"rzn"]}  # the gates in their order
TORCH = FLAX = {ELMAN: [""], LSTM: [*"ifgo"], AFTER: [*"rzn"]}
KERAS = {ELMAN: [""], LSTM: [*"ifgo"], AFTER: [*"zrn"], BEFORE: [*"zrn"]}
HAIKU = {ELMAN: [""], LSTM: [*"igfo"], BEFORE: [*"zrn"]}
EQUINOX = {LSTM: [*"ifgo"], AFTER: [*"rzn"]}


def to_torch(params: Any, layer: int = 0, reverse: bool = False) -> dict[str, np.ndarray]:
    """The weights of one layer and direction of torch.nn.RNN, LSTM or GRU.

    Args:
      params: of `elman`, `lstm` or `gru`.
      layer, reverse: where they go.

    Returns:
      weight_ih_l0 [GH, I], weight_hh_l0 [GH, H], bias_ih_l0 and bias_hh_l0 [GH], named for the layer; as
      {name: torch.tensor(w) for name, w in to_torch(params).items()} for load_state_dict.

    Raises:
      ValueError: params of another cell.

    >>> list(to_torch(jb.lstm(3, 5).init(jax.random.key(0)), layer=1, reverse=True))[:2]
    ['weight_ih_l1_reverse', 'weight_hh_l1_reverse']
    """
    _, w_x, w_h, b, b_h = _theirs(params, "torch.nn", TORCH)
    weights = {"weight_ih": w_x.T, "weight_hh": w_h.T, "bias_ih": b, "bias_hh": b_h}  # (C2)
    return {name + _at(layer, reverse): w for name, w in weights.items()}


def from_torch(weights: Mapping[str, Any], layer: int = 0, reverse: bool = False) -> Params | GRUParams:
    """Params from the state_dict of torch.nn.RNN, LSTM or GRU.

    Args:
      weights: tensors or arrays as in `to_torch`; other names are not read.
      layer, reverse: which of them.

    Returns:
      The params of `elman`, `lstm` or `gru`, of NumPy arrays; b is the sum of both biases but in a GRU.

    Raises:
      ValueError: a name that is absent, or shapes of no such cell.

    >>> params = jb.gru(3, 5).init(jax.random.key(0))
    >>> bool((from_torch(to_torch(params)).w_h == params.w_h).all())
    True
    """
    at = _at(layer, reverse)
    w_x, w_h = (_leaf(weights, f"weight_{side}{at}").T for side in ("ih", "hh"))  # (C2)
    b, b_h = (_bias(weights, f"bias_{side}{at}", beside=w_h) for side in ("ih", "hh"))  # (C2)
    return _ours(TORCH, w_x, w_h, b, b_h)


def _at(layer: int, reverse: bool) -> str:
    flag("reverse", reverse)
    return f"_l{integer('layer', layer, 0, 10**6)}" + "_reverse" * reverse


def to_linen(params: Any) -> dict[str, dict[str, np.ndarray]]:
    """The "params" of flax.linen.SimpleCell, LSTMCell, OptimizedLSTMCell or GRUCell.

    Args:
      params: of `elman`, `lstm` or `gru`.

    Returns:
      i<g> and h<g> for each gate g (i and h where there is one): kernel [I, H] or [H, H], bias [H].
    """
    kind, w_x, w_h, b, b_h = _theirs(params, "flax.linen", FLAX)
    b, b_n = _folded(kind, b, b_h)  # (C1)
    tree = {}
    blocks = (np.split(a, len(OURS[kind]), axis=-1) for a in (w_x, w_h, b))
    for g, w_x_g, w_h_g, b_g in zip(OURS[kind], *blocks, strict=True):
        tree[f"i{g}"], tree[f"h{g}"] = {"kernel": w_x_g}, {"kernel": w_h_g}  # (C3)
        tree[f"h{g}" if kind == LSTM else f"i{g}"]["bias"] = b_g  # (C3)
    if kind == AFTER:
        tree["hn"]["bias"] = b_n  # (C3)
    return tree


def from_linen(weights: Mapping[str, Any]) -> Params | GRUParams:
    """Params from the "params" of a cell of flax.linen.

    Args:
      weights: see `to_linen`.

    Returns:
      The params of `elman`, `lstm` or `gru`, of NumPy arrays; b_h = (0, 0, b_n).
    """
    kind = next((kind for kind in FLAX if _has(weights, f"i{OURS[kind][0]}")), ELMAN)
    gates, (i, h) = OURS[kind], (_leaf(weights, side + OURS[kind][0], "kernel") for side in "ih")
    w_x = np.concatenate([_leaf(weights, f"i{g}", "kernel", like=i) for g in gates], axis=1)  # (C3)
    w_h = np.concatenate([_leaf(weights, f"h{g}", "kernel", like=h) for g in gates], axis=1)  # (C3)
    b, b_h = (np.concatenate([_bias(weights, s + g, "bias", beside=h) for g in gates]) for s in "ih")
    return _ours({kind: gates}, w_x, w_h, b, b_h)


def to_nnx(params: Any, optimized: bool = True) -> dict[str, dict[str, np.ndarray]]:
    """The state of flax.nnx.SimpleCell, OptimizedLSTMCell, LSTMCell or GRUCell as a pure dict.

    Load it by nnx.replace_by_pure_dict(state, to_nnx(params)), where graphdef, state = nnx.split(cell).

    Args:
      params: of `elman`, `lstm` or `gru`.
      optimized: an LSTM for nnx.OptimizedLSTMCell; False for nnx.LSTMCell.

    Returns:
      dense_i and dense_h: kernel [I, GH] or [H, GH], bias [GH] in one; for nnx.LSTMCell see `to_linen`.

    Raises:
      ValueError: params of another cell, or a GRU's b_h that is not zero for n: nnx.GRUCell has none.
    """
    flag("optimized", optimized)
    kind, w_x, w_h, b, b_h = _theirs(params, "flax.nnx", FLAX)
    if kind == LSTM and not optimized:
        return {"if_" if name == "if" else name: leaf for name, leaf in to_linen(params).items()}  # (C4)
    b, b_n = _folded(kind, b, b_h)  # (C1)
    if b_n.any():
        raise bad("params.b_h", "zeros for n, as nnx.GRUCell has no such bias", b_h, "use flax.linen's")
    tree = {"dense_i": {"kernel": w_x}, "dense_h": {"kernel": w_h}}  # (C4)
    tree["dense_h" if kind == LSTM else "dense_i"]["bias"] = b
    return tree


def from_nnx(weights: Mapping[str, Any]) -> Params | GRUParams:
    """Params from the state of a cell of flax.nnx.

    Args:
      weights: nnx.to_pure_dict(nnx.state(cell, nnx.Param)), see `to_nnx`.

    Returns:
      The params of `elman`, `lstm` or `gru`, of NumPy arrays; b_h = 0.
    """
    if _has(weights, "if_"):
        return from_linen({"if" if name == "if_" else name: leaf for name, leaf in weights.items()})  # (C4)
    w_x, w_h = (_leaf(weights, side, "kernel") for side in ("dense_i", "dense_h"))  # (C4)
    b = sum(_bias(weights, side, "bias", beside=w_h) for side in ("dense_i", "dense_h"))  # (C4)
    return _ours(FLAX, w_x, w_h, np.asarray(b))


def to_keras(params: Any) -> list[np.ndarray]:
    """The weights of keras.layers.SimpleRNN, LSTM or GRU, for layer.set_weights.

    Args:
      params: of `elman`, `lstm` or `gru`, with the reset after or before.

    Returns:
      [W_x [I, GH], W_h [H, GH], b [GH], or [2, GH] with the reset after].
    """
    kind, w_x, w_h, b, b_h = _theirs(params, "keras.layers", KERAS)
    return [w_x, w_h, np.stack([b, b_h]) if kind == AFTER else b]  # (C5)


def from_keras(weights: Sequence[Any]) -> Params | GRUParams:
    """Params from layer.get_weights() of keras.layers.SimpleRNN, LSTM or GRU.

    Args:
      weights: see `to_keras`; without the bias where the layer has none, but not of a GRU, where the
        shape of the bias tells whether the reset is after.

    Returns:
      The params of `elman`, `lstm` or `gru`, of NumPy arrays.

    Raises:
      ValueError: not two or three arrays, or shapes of no such layer.
    """
    if not isinstance(weights, Sequence) or len(weights) not in (2, 3):
        raise bad("weights", "[W_x, W_h, b]", weights, "pass layer.get_weights()")
    named = dict(zip(("W_x", "W_h", "b"), weights, strict=False))
    w_x, w_h = _leaf(named, "W_x"), _leaf(named, "W_h")
    with naming("weights b", "an array"):
        is_after = np.shape(named.get("b", ()))[:-1] == (2,)
    if is_after:
        return _ours({AFTER: KERAS[AFTER]}, w_x, w_h, *_leaf(named, "b"))  # (C5)
    kinds = (ELMAN, LSTM, BEFORE) if _has(named, "b") else (ELMAN, LSTM)
    return _ours({kind: KERAS[kind] for kind in kinds}, w_x, w_h, _bias(named, "b", beside=w_h))  # (C5)


def to_haiku(params: Any) -> dict[str, Any]:
    """The params of hk.VanillaRNN, hk.LSTM or hk.GRU, without the name of the module in front.

    Under a name: {"lstm/linear": to_haiku(params)["linear"]}; a GRU has no inner module:
    {"gru": to_haiku(params)}.

    Args:
      params: of `elman`, `lstm` or `gru(reset_after=False)`.

    Returns:
      linear and linear_1 of an RNN, linear of an LSTM: w and b [GH]; w_i, w_h and b of a GRU.
    """
    kind, w_x, w_h, b, b_h = _theirs(params, "haiku", HAIKU)
    if kind == ELMAN:
        return {"linear": {"w": w_x, "b": b}, "linear_1": {"w": w_h, "b": b_h}}  # (C6)
    if kind == LSTM:
        return {"linear": {"w": np.concatenate([w_x, w_h]), "b": b - _per_gate((0, 0, 1, 0), b)}}  # (C7)
    return {name: a * _per_gate((-1, 1, 1), a) for name, a in (("w_i", w_x), ("w_h", w_h), ("b", b))}  # (C8)


def from_haiku(weights: Mapping[str, Any]) -> Params | GRUParams:
    """Params from those of hk.VanillaRNN, hk.LSTM or hk.GRU.

    Args:
      weights: without the name of the module in front, see `to_haiku`.

    Returns:
      The params of `elman`, `lstm` or `gru(reset_after=False)`, of NumPy arrays.
    """
    if _has(weights, "w_i"):
        w_x, w_h = _leaf(weights, "w_i"), _leaf(weights, "w_h")
        ours = _ours({BEFORE: HAIKU[BEFORE]}, w_x, w_h, _bias(weights, "b", beside=w_h))
        return Params(*(a * _per_gate((1, -1, 1), a) for a in ours))  # (C8)
    w = _leaf(weights, "linear", "w")
    b = _bias(weights, "linear", "b", beside=w)
    if "linear_1" in weights:
        w_h = _leaf(weights, "linear_1", "w")
        return _ours({ELMAN: HAIKU[ELMAN]}, w, w_h, b, _bias(weights, "linear_1", "b", beside=w_h))  # (C6)
    inputs = max(0, len(w) - w.shape[1] // 4)
    ours = _ours({LSTM: HAIKU[LSTM]}, w[:inputs], w[inputs:], b)  # (C7)
    return ours._replace(b=ours.b + _per_gate((0, 1, 0, 0), ours.b))  # (C7)


def to_equinox(params: Any) -> dict[str, np.ndarray]:
    """The arrays of equinox.nn.LSTMCell or GRUCell by attribute.

    Load them by equinox.tree_at(lambda cell: [getattr(cell, name) for name in w], cell, [*w.values()]).

    Args:
      params: of `lstm` or `gru`.

    Returns:
      weight_ih [GH, I], weight_hh [GH, H], bias [GH]; bias_n [H] of a GRU.
    """
    kind, w_x, w_h, b, b_h = _theirs(params, "equinox.nn", EQUINOX)
    b, b_n = _folded(kind, b, b_h)  # (C1)
    return {"weight_ih": w_x.T, "weight_hh": w_h.T, "bias": b} | ({"bias_n": b_n} if kind == AFTER else {})


def from_equinox(weights: Mapping[str, Any]) -> Params | GRUParams:
    """Params from the attributes of equinox.nn.LSTMCell or GRUCell.

    Args:
      weights: vars(cell), see `to_equinox`; a bias may be None.

    Returns:
      The params of `lstm` or `gru`, of NumPy arrays; b_h = (0, 0, b_n).
    """
    w_x, w_h = _leaf(weights, "weight_ih").T, _leaf(weights, "weight_hh").T  # (C9)
    b_n = _bias(weights, "bias_n", beside=w_h[:, : len(w_h)])
    b_h = np.pad(b_n, (w_h.shape[1] - len(b_n), 0))  # (C1)
    return _ours(EQUINOX, w_x, w_h, _bias(weights, "bias", beside=w_h), b_h)  # (C9)


def _theirs(params: Any, framework: str, kinds: dict[str, list[str]]) -> tuple[str, Any, Any, Any, Any]:
    """The kind of cell, and new arrays w_x, w_h, b, b_h with the gates in the order of kinds."""
    ours = isinstance(params, (Params, GRUParams)) and all(map(is_floating, params))
    arrays = [np.array(a) for a in params] if ours else []
    for kind, gates in kinds.items():
        if len(arrays) == (4 if kind == AFTER else 3) and _fit(gates, *arrays):
            arrays = [*arrays, np.zeros_like(arrays[2])][:4]
            w_x, w_h, b, b_h = (_reordered(a, OURS[kind], gates) for a in arrays)
            return kind, w_x, w_h, b, b_h
    fix = "peepholes, trained carries and other cells have no counterpart there"
    raise bad("params", f"those of {', '.join(kinds)} for {framework}", params, fix)


def _ours(kinds: dict[str, list[str]], w_x: Any, w_h: Any, b: Any, b_h: Any = None) -> Params | GRUParams:
    """Params of the first of kinds that the arrays fit, whose gates are in its order; else ValueError."""
    arrays = w_x, w_h, b, np.zeros_like(b) if b_h is None else b_h
    for kind, gates in kinds.items():
        if _fit(gates, *arrays):
            w_x, w_h, b, b_h = (_reordered(a, gates, OURS[kind]) for a in arrays)
            return GRUParams(w_x, w_h, b, b_h) if kind == AFTER else Params(w_x, w_h, b + b_h)
    got = {"W_x": w_x, "W_h": w_h, "b": b}
    fix = "give one layer in one direction, without projections or peepholes"
    raise bad("weights", f"W_x [I, GH], W_h [H, GH], b [GH] of {', '.join(kinds)}", got, fix)


def _fit(gates: list[str], w_x: Any, w_h: Any, *biases: Any) -> bool:
    wide = (len(gates) * w_h.shape[0],) if w_h.ndim == w_x.ndim == 2 else ()
    return w_x.shape[1:] == w_h.shape[1:] == wide and all(b.shape == wide for b in biases)


def _folded(kind: str, b: Any, b_h: Any) -> tuple[Any, Any]:
    rz = len(b) // 3 * 2
    return (np.append(b[:rz] + b_h[:rz], b[rz:]), b_h[rz:]) if kind == AFTER else (b, b_h)  # (C1)


def _reordered(a: Any, old: list[str], new: list[str]) -> Any:
    blocks = np.split(a, len(old), axis=-1)
    return np.concatenate([blocks[old.index(gate)] for gate in new], axis=-1)


def _per_gate(values: tuple[int, ...], like: Any) -> Any:
    return np.repeat(np.array(values, like.dtype), like.shape[-1] // len(values))


def _has(weights: Any, name: str) -> bool:
    return isinstance(weights, Mapping) and weights.get(name) is not None


def _leaf(weights: Any, *path: str, like: Any = None) -> np.ndarray:
    """A copy of the array at a path of names: a matrix, or of the same shape as another."""
    for name in path:
        if not _has(weights, name):
            got = f"names {', '.join(map(str, weights))}" if isinstance(weights, Mapping) else weights
            raise bad("weights", f"a name {'/'.join(path)}", got, "give one cell, named as in jb.convert")
        weights = weights[name]
    with naming(f"weights {'/'.join(path)}", "an array"):
        a = np.array(weights.detach().cpu() if hasattr(weights, "detach") else weights)  # PyTorch's tensors
    if not is_floating(a) or (a.ndim != 2 if like is None else a.shape != like.shape):
        expected = "a matrix" if like is None else f"{list(like.shape)} as its neighbours"
        raise bad(f"weights {'/'.join(path)}", expected, a, "give one cell, named as in jb.convert")
    return a


def _bias(weights: Any, *path: str, beside: Any) -> np.ndarray:
    none, here = np.zeros(beside.shape[1], beside.dtype), weights  # zeros where it is absent or None
    for name in path:
        here = here[name] if _has(here, name) else None
    return none if here is None else _leaf(weights, *path, like=none)

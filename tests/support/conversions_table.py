"""The arguments of every conversion of parameters to and from another library, each with a right value."""

import numpy as np

import jax_bptt as jb
import support.argument_kinds as k
from support.reference_calls import H, I

_rz = np.arange(3 * H) < 2 * H


def _random(gates):
    shapes = (I, gates * H), (H, gates * H), (gates * H,)
    return jb.Params(*(np.random.default_rng(gates).normal(size=shape) for shape in shapes))


_elman, _lstm, _before = _random(1), _random(4), _random(3)
_after = jb.GRUParams(*_before, np.sin(np.arange(3 * H)))
_folded = _after._replace(b_h=~_rz * _after.b_h)  # nothing that r and z would have to fold
_without_b_n = _after._replace(b_h=np.zeros(3 * H))
_there = {
    "torch": _after,
    "linen": _folded,
    "nnx": _without_b_n,
    "keras": _after,
    "haiku": _before,
    "equinox": _folded,
    "onnx": _after,
}
CONVERSIONS = {}
_where = {"layer": (k.integer(0), 1), "reverse": (k.FLAG, True)}
_BACK = {
    "torch": _where,
    "keras": {"reset_after": (k.or_none(k.FLAG), None)},
    "onnx": {
        "linear_before_reset": (k.integer(0, 1), 1),
        "direction": (k.or_none(k.thing(str, within=("forward", "reverse").__contains__)), None),
    },
}
for name, of in _there.items():
    to, back = (getattr(jb.convert, f"{way}_{name}") for way in ("to", "from"))
    where = _where if name == "torch" else {"optimized": (k.FLAG, True)} if name == "nnx" else {}
    right = {argument: value for argument, (_, value) in where.items()}
    CONVERSIONS[f"to_{name}"] = to, {"params": (k.WEIGHTS, of)} | where
    back_where = _BACK.get(name, {})
    CONVERSIONS[f"from_{name}"] = back, {"weights": (k.WEIGHTS, to(of, **right))} | back_where

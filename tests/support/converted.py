"""Params of every cell that other frameworks have, with random numbers, for the tests of their conversion."""

import jax
import numpy as np

import jax_bptt as jb
from jax_bptt.adapters import convert

I, H = 3, 4  # noqa: E741
RANDOM = np.random.default_rng(0)


def params_of(gates, input_size=I, dtype="float64"):
    shapes = (input_size, gates * H), (H, gates * H), (gates * H,)
    return jb.Params(*(RANDOM.normal(size=shape).astype(dtype) for shape in shapes))


ELMAN, LSTM, BEFORE = params_of(1), params_of(4), params_of(3)
AFTER = jb.GRUParams(*params_of(3), RANDOM.normal(size=3 * H))
PROJECTED = jb.ProjectedParams(
    *(RANDOM.normal(size=shape) for shape in ((I, 4 * H), (2, 4 * H), (4 * H,), (H, 2)))
)
RZ = np.arange(3 * H) < 2 * H
FOLDED = AFTER._replace(b=AFTER.b + RZ * AFTER.b_h, b_h=~RZ * AFTER.b_h)  # the same cell: r, z see b + b_h
WITHOUT_B_N = FOLDED._replace(b_h=np.zeros(3 * H))


def _unbiased(cell, params):
    """The same matrices, as params of the cell with bias=False."""
    return type(cell.init(jax.random.key(0)))(params.w_x, params.w_h)


ELMAN_0, LSTM_0, AFTER_0, BEFORE_0 = (
    _unbiased(cell, params)
    for cell, params in [
        (jb.elman(I, H, bias=False), ELMAN),
        (jb.lstm(I, H, bias=False), LSTM),
        (jb.gru(I, H, bias=False), AFTER),
        (jb.gru(I, H, bias=False, reset_after=False), BEFORE),
    ]
)

PROJECTED_0 = type(jb.lstm(I, H, bias=False, projection=2).init(jax.random.key(0)))(
    PROJECTED.w_x, PROJECTED.w_h, PROJECTED.w_p
)
PEEPHOLES = jb.PeepholeParams(*LSTM, *RANDOM.normal(size=(3, H)))
PEEPHOLES_0 = type(jb.lstm(I, H, bias=False, peephole=True).init(jax.random.key(0)))(*LSTM_0, *PEEPHOLES[3:])


def onnx_as_reverse(params):
    """Two directions in one node, of which the other is another cell."""
    weights = convert.to_onnx(params)
    return {name: np.concatenate([a + 1, a]) for name, a in weights.items()}


def without(weights, *names):
    return {name: leaf for name, leaf in weights.items() if name not in names}

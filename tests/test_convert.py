"""Weights are converted to another framework's layout and back; `test_peers` runs the frameworks."""

import jax
import numpy as np
import pytest
from support.refusals import refused

import jax_bptt as jb
from jax_bptt.adapters import convert

I, H = 3, 4  # noqa: E741
RANDOM = np.random.default_rng(0)


def _params(gates, input_size=I, dtype="float64"):
    shapes = (input_size, gates * H), (H, gates * H), (gates * H,)
    return jb.Params(*(RANDOM.normal(size=shape).astype(dtype) for shape in shapes))


ELMAN, LSTM, BEFORE = _params(1), _params(4), _params(3)
AFTER = jb.GRUParams(*_params(3), RANDOM.normal(size=3 * H))
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
TORCH_HAS = [ELMAN, LSTM, AFTER, PROJECTED, ELMAN_0, LSTM_0, AFTER_0, PROJECTED_0]
EXACT = {
    "torch": (convert.to_torch, convert.from_torch, TORCH_HAS),
    "torch backwards": (
        lambda params: convert.to_torch(params, layer=2, reverse=True),
        lambda weights: convert.from_torch(weights, layer=2, reverse=True),
        [ELMAN, LSTM, AFTER],
    ),
    "linen": (convert.to_linen, convert.from_linen, [ELMAN, LSTM, FOLDED]),
    "nnx": (convert.to_nnx, convert.from_nnx, [ELMAN, LSTM, WITHOUT_B_N]),
    "nnx, not optimized": (
        lambda params: convert.to_nnx(params, optimized=False),
        convert.from_nnx,
        [ELMAN, LSTM, WITHOUT_B_N],
    ),
    "keras": (convert.to_keras, convert.from_keras, [ELMAN, LSTM, AFTER, BEFORE, ELMAN_0, LSTM_0]),
    "keras, reset after": (convert.to_keras, lambda w: convert.from_keras(w, reset_after=True), [AFTER_0]),
    "keras, reset before": (convert.to_keras, lambda w: convert.from_keras(w, reset_after=False), [BEFORE_0]),
    "haiku": (convert.to_haiku, convert.from_haiku, [ELMAN, BEFORE]),
    "equinox": (convert.to_equinox, convert.from_equinox, [LSTM, FOLDED, LSTM_0, AFTER_0]),
}


def _same(found, wanted):
    assert type(found) is type(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert isinstance(a, np.ndarray)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", EXACT)
def test_there_and_back_is_exact(name, dtype):
    to, back, cells = EXACT[name]
    for params in cells:
        params = type(params)(*(a.astype(dtype) for a in params))
        _same(back(to(params)), params)


@pytest.mark.parametrize("name", ["linen", "equinox"])
def test_biases_that_fold_come_back_as_the_same_cell(name):
    to, back, _ = EXACT[name]
    _same(back(to(AFTER)), FOLDED)


def test_haiku_adds_one_to_the_forget_gate_so_we_take_it_away():
    weights = convert.to_haiku(LSTM)
    np.testing.assert_array_equal(weights["linear"]["b"][2 * H : 3 * H], LSTM.b[H : 2 * H] - 1)
    back = convert.from_haiku(weights)
    np.testing.assert_allclose(back.b, LSTM.b, rtol=1e-15, atol=1e-15)  # (b − 1) + 1 rounds
    _same(back._replace(b=LSTM.b), LSTM)


def test_jax_arrays_go_in_and_unroll_takes_what_comes_out():
    cell = jb.gru(I, H)
    params = cell.init(jax.random.key(0))
    _, hs = jb.unroll(cell, convert.from_torch(convert.to_torch(params)), None, np.ones((5, 2, I)))
    np.testing.assert_array_equal(hs, jb.unroll(cell, params, None, np.ones((5, 2, I)))[1])


def test_the_arrays_are_copies():
    for to, back, cells in EXACT.values():
        params = cells[-1]
        weights = to(params)
        ours = back(weights)
        leaves = _leaves(weights)
        assert not any(np.shares_memory(a, b) for a in leaves for b in [*params, *ours])
        assert all(a.flags.writeable for a in leaves)


def _leaves(weights):
    if isinstance(weights, np.ndarray):
        return [weights]
    parts = weights.values() if isinstance(weights, dict) else weights
    return [leaf for part in parts for leaf in _leaves(part)]


def _without(weights, *names):
    return {name: leaf for name, leaf in weights.items() if name not in names}


def test_a_module_without_biases_is_a_cell_without_biases():
    torch = convert.to_torch(AFTER)
    _same(convert.from_torch(_without(torch, "bias_ih_l0", "bias_hh_l0")), AFTER_0)
    _same(convert.from_torch(_without(torch, "bias_hh_l0")), AFTER._replace(b_h=np.zeros(3 * H)))
    _same(convert.from_keras(convert.to_keras(LSTM)[:2]), LSTM_0)
    _same(convert.from_equinox(convert.to_equinox(AFTER) | {"bias": None, "bias_n": None}), AFTER_0)
    haiku = convert.to_haiku(ELMAN)
    haiku["linear_1"] = _without(haiku["linear_1"], "b")
    _same(convert.from_haiku(haiku), ELMAN)


def test_where_every_module_has_biases_those_of_a_cell_without_are_zeros():
    """The outputs are the same, so the weights are exact; Haiku adds 1 to the forget gate by itself."""
    zeros = np.zeros(4 * H)
    _same(convert.from_linen(convert.to_linen(AFTER_0)), jb.GRUParams(*AFTER_0, zeros[H:], zeros[H:]))
    _same(convert.from_nnx(convert.to_nnx(LSTM_0)), jb.Params(*LSTM_0, zeros))
    _same(convert.from_haiku(convert.to_haiku(BEFORE_0)), jb.Params(*BEFORE_0, zeros[H:]))
    _same(convert.from_haiku(convert.to_haiku(LSTM_0)), jb.Params(*LSTM_0, zeros))


def test_both_biases_of_torch_are_summed_but_in_a_gru():
    weights = convert.to_torch(LSTM) | {"bias_hh_l0": np.ones(4 * H)}
    _same(convert.from_torch(weights), LSTM._replace(b=LSTM.b + 1))


class _Tensor:
    """What a tensor of PyTorch that needs a gradient lets one do."""

    def __init__(self, a):
        self.a = a

    def detach(self):
        return self

    def cpu(self):
        return self.a


class _Bfloat16(_Tensor):
    """NumPy cannot read it, only what it is as float32."""

    dtype = "torch.bfloat16"

    def cpu(self):
        return self

    def float(self):
        return self.a.astype("float32")


def test_tensors_are_detached():
    tensors = {name: _Tensor(w) for name, w in convert.to_torch(LSTM).items()}
    _same(convert.from_torch(tensors), LSTM)
    short = jb.Params(*(w.astype("bfloat16") for w in LSTM))
    tensors = {name: _Bfloat16(w) for name, w in convert.to_torch(short).items()}
    _same(convert.from_torch(tensors), short)


PEEPHOLES = jb.PeepholeParams(*LSTM, *np.ones((3, H)))
TORCH, LINEN, KERAS, HAIKU = (
    f(LSTM) for f in (convert.to_torch, convert.to_linen, convert.to_keras, convert.to_haiku)
)
EQUINOX = convert.to_equinox(AFTER)

BAD = {
    "peepholes": (
        lambda: convert.to_torch(PEEPHOLES),
        r"params: expected those of elman, lstm, gru\(reset_after=True\) for torch.nn, got PeepholeParams\(.*"
        r"convert one of these cells, without peepholes, heads or a trained carry",
    ),
    "a leak": (lambda: convert.to_keras(jb.LeakyParams(*ELMAN, np.ones(H))), r"params: .* got LeakyParams\("),
    "two gates": (
        lambda: convert.to_keras(_params(2)),
        r"params: .* for keras.layers, got Params\(.*\[4,8\]",
    ),
    "no recurrent product": (
        lambda: convert.to_keras(ELMAN._replace(w_h=np.ones(H))),
        r"params: .* got Params\(.*w_h=float64\[4\]",
    ),
    "a dict of ours": (lambda: convert.to_torch(LSTM._asdict()), r"params: .* got \{w_x: float64\[3,16\]"),
    "None in ours": (lambda: convert.to_torch(LSTM._replace(b=None)), r"params: .* b=None"),
    "reset before in torch": (lambda: convert.to_torch(BEFORE), r"gru\(reset_after=True\) for torch.nn, got"),
    "reset before in nnx": (lambda: convert.to_nnx(BEFORE), r"params: .* for flax.nnx"),
    "reset before in linen": (lambda: convert.to_linen(BEFORE), r"params: .* for flax.linen"),
    "reset after in haiku": (
        lambda: convert.to_haiku(AFTER),
        r"lstm, gru\(reset_after=False\) for haiku, got",
    ),
    "elman in equinox": (lambda: convert.to_equinox(ELMAN), r"params: expected those of lstm, gru.* equinox"),
    "b_n in nnx": (
        lambda: convert.to_nnx(AFTER),
        r"params.b_h: expected zeros for n, as nnx.GRUCell has no such bias, got float64\[12\]; use",
    ),
    "another layer": (
        lambda: convert.from_torch(TORCH, layer=1),
        r"weights: expected a name weight_ih_l1, got names weight_ih_l0, .*; give one cell",
    ),
    "a module": (lambda: convert.from_torch(object()), r"weights: expected a name weight_ih_l0, got object"),
    "a vector for a matrix": (
        lambda: convert.from_torch(TORCH | {"weight_ih_l0": np.ones(16)}),
        r"weights weight_ih_l0: expected a matrix, got float64\[16\]",
    ),
    "a bias of another size": (
        lambda: convert.from_torch(TORCH | {"bias_hh_l0": np.ones(12)}),
        r"weights bias_hh_l0: expected \[16\] as its neighbours, got float64\[12\]",
    ),
    "a projection": (
        lambda: convert.from_torch({"weight_ih_l0": np.ones((16, 3)), "weight_hh_l0": np.ones((16, 2))}),
        r"weights: expected W_x \[I, GH\], W_h \[H, GH\], b \[GH\] of elman.* W_h: float64\[2,16\].*projec",
    ),
    "a projection of another width": (
        lambda: convert.from_torch(convert.to_torch(PROJECTED) | {"weight_hr_l0": np.ones((3, 4))}),
        r"weights: expected \[4H, I\], \[4H, P\] and \[P, H\] of an LSTM, got .*weight_hr: float64\[3,4\]",
    ),
    "a projected cell with a trained carry": (
        lambda: convert.to_torch(jb.learn_carry(jb.lstm(3, 4, projection=2)).init(jax.random.key(0))),
        r"params: expected those of lstm\(projection=P\), got .*h_0.*; convert it without a trained carry",
    ),
    "a projected cell of another width": (
        lambda: convert.to_torch(jb.lstm(3, 4, projection=2).init(jax.random.key(0))._replace(b=np.ones(8))),
        r"params: expected \[I, 4H\], \[P, 4H\], \[4H\], \[H, P\], got ProjectedParams",
    ),
    "heads": (
        lambda: convert.to_torch(jb.gru(3, 4, heads=2).init(jax.random.key(0))),
        r"params: .* got GRUParams\(.*w_h=float64\[2,2,6\].*without peepholes, heads or a trained carry",
    ),
    "matrices of two cells": (
        lambda: convert.from_torch({"weight_ih_l0": np.ones((12, 3)), "weight_hh_l0": np.ones((16, 4))}),
        r"weights: expected W_x .* got \{W_x: float64\[3,12\], W_h: float64\[4,16\]",
    ),
    "no names of linen": (
        lambda: convert.from_linen(TORCH),
        r"weights: expected a name i/kernel, got names weight_ih_l0",
    ),
    "linen's variables": (
        lambda: convert.from_linen({"params": LINEN}),
        r"a name i/kernel, got names params",
    ),
    "a gate of linen absent": (
        lambda: convert.from_linen(_without(LINEN, "hg")),
        r"weights: expected a name hg/kernel, got names ii",
    ),
    "a gate of linen smaller": (
        lambda: convert.from_linen(LINEN | {"ig": {"kernel": np.ones((3, 5))}}),
        r"weights ig/kernel: expected \[3, 4\] as its neighbours, got float64\[3,5\]",
    ),
    "a bias of linen smaller": (
        lambda: convert.from_linen(LINEN | {"hg": {"kernel": np.ones((4, 4)), "bias": np.ones(3)}}),
        r"weights hg/bias: expected \[4\]",
    ),
    "no names of nnx": (lambda: convert.from_nnx({}), r"a name dense_i/kernel, got names ?;"),
    "an array for nnx": (lambda: convert.from_nnx(np.ones(3)), r"a name dense_i/kernel, got float64\[3\]"),
    "keras by name": (lambda: convert.from_keras(TORCH), r"weights: expected \[W_x, W_h, b\], got \{weight"),
    "two layers of keras": (
        lambda: convert.from_keras(KERAS * 2),
        r"\[W_x, W_h, b\], got list of .*get_weights",
    ),
    "a keras GRU without biases": (
        lambda: convert.from_keras(convert.to_keras(AFTER)[:2]),
        r"reset_after: expected True or False beside the weights of a GRU without .*; pass reset_after=layer",
    ),
    "a keras GRU whose bias says otherwise": (
        lambda: convert.from_keras(convert.to_keras(AFTER), reset_after=False),
        r"reset_after: expected True for this bias, got False; leave it out",
    ),
    "reset before in torch, without biases": (
        lambda: convert.to_torch(BEFORE_0),
        r"for torch.nn, got Params",
    ),
    "reset after in haiku, without biases": (lambda: convert.to_haiku(AFTER_0), r"for haiku, got GRUParams"),
    "a trained carry": (
        lambda: convert.to_torch(jb.learn_carry(jb.elman(I, H, bias=False)).init(jax.random.key(0))),
        r"params: .* got ParamsWithoutBiasWithCarry\(.*without peepholes, heads or a trained carry",
    ),
    "two rows of biases for an LSTM": (
        lambda: convert.from_keras([*KERAS[:2], np.ones((2, 16))]),
        r"weights: expected W_x .* of gru\(reset_after=True\), got",
    ),
    "three rows of biases": (
        lambda: convert.from_keras([*KERAS[:2], np.ones((3, 16))]),
        r"weights b: expected \[16\] as its neighbours, got float64\[3,16\]",
    ),
    "haiku under a name": (
        lambda: convert.from_haiku({"lstm/linear": HAIKU["linear"]}),
        r"weights: expected a name linear/w, got names lstm/linear",
    ),
    "haiku of odd width": (
        lambda: convert.from_haiku({"linear": {"w": np.ones((7, 15))}}),
        r"weights: expected W_x .* of lstm, got",
    ),
    "haiku of too few rows": (
        lambda: convert.from_haiku({"linear": {"w": np.ones((3, 16))}}),
        r"weights: expected W_x .* of lstm, got \{W_x: float64\[0,16\]",
    ),
    "bias_n of another size": (
        lambda: convert.from_equinox(EQUINOX | {"bias_n": np.ones(8)}),
        r"weights bias_n: expected \[4\]",
    ),
    "equinox without gates": (
        lambda: convert.from_equinox({"weight_ih": np.ones((4, 3)), "weight_hh": np.ones((4, 4))}),
        r"weights: expected W_x .* of lstm, gru\(reset_after=True\), got",
    ),
    "equinox with few rows": (
        lambda: convert.from_equinox({"weight_ih": np.ones((2, 3)), "weight_hh": np.ones((2, 4))}),
        r"weights: expected W_x .* of lstm",
    ),
}

test_messages = refused(BAD)

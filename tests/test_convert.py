"""Weights are converted to another framework's layout and back; `test_peers` runs the frameworks."""

import jax
import numpy as np
import pytest
from support.converted import (
    AFTER,
    AFTER_0,
    BEFORE,
    BEFORE_0,
    ELMAN,
    ELMAN_0,
    FOLDED,
    LSTM,
    LSTM_0,
    PEEPHOLES,
    PEEPHOLES_0,
    PROJECTED,
    PROJECTED_0,
    WITHOUT_B_N,
    H,
    I,
    onnx_as_reverse,
    without,
)

import jax_bptt as jb
from jax_bptt.adapters import convert

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
    "onnx": (convert.to_onnx, convert.from_onnx, [ELMAN, LSTM, ELMAN_0, LSTM_0, PEEPHOLES_0, PEEPHOLES]),
    "onnx, reset after": (convert.to_onnx, lambda w: convert.from_onnx(w, 1), [AFTER, AFTER_0]),
    "onnx, reset before": (convert.to_onnx, lambda w: convert.from_onnx(w, 0), [BEFORE, BEFORE_0]),
    "onnx, both directions": (
        onnx_as_reverse,
        lambda weights: convert.from_onnx(weights, direction="reverse"),
        [LSTM, PEEPHOLES],
    ),
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


def test_the_gates_of_onnx_are_in_its_order():
    lstm, gru = convert.to_onnx(PEEPHOLES), convert.to_onnx(AFTER)
    i, f, g, o = np.split(LSTM.w_h.T, 4)
    np.testing.assert_array_equal(lstm["R"], [np.concatenate([i, o, f, g])])
    np.testing.assert_array_equal(lstm["P"], [np.concatenate([PEEPHOLES.p_i, PEEPHOLES.p_o, PEEPHOLES.p_f])])
    r, z, n = np.split(AFTER.w_h.T, 3)
    np.testing.assert_array_equal(gru["R"], [np.concatenate([z, r, n])])
    np.testing.assert_array_equal(gru["B"][0, -H:], AFTER.b_h[-H:])


@pytest.mark.parametrize("name", EXACT)
def test_traced_weights_become_tracedparams_of(name):
    """So `adopt` stands inside a loss, and a gradient reaches the weights of the framework."""
    to, back, cells = EXACT[name]
    for params in cells:
        found = jax.eval_shape(back, to(params))
        assert type(found) is type(params)
        assert [(a.shape, a.dtype) for a in found] == [(a.shape, a.dtype) for a in params]


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


def test_a_module_without_biases_is_a_cell_without_biases():
    torch = convert.to_torch(AFTER)
    _same(convert.from_torch(without(torch, "bias_ih_l0", "bias_hh_l0")), AFTER_0)
    _same(convert.from_torch(without(torch, "bias_hh_l0")), AFTER._replace(b_h=np.zeros(3 * H)))
    _same(convert.from_keras(convert.to_keras(LSTM)[:2]), LSTM_0)
    _same(convert.from_equinox(convert.to_equinox(AFTER) | {"bias": None, "bias_n": None}), AFTER_0)
    haiku = convert.to_haiku(ELMAN)
    haiku["linear_1"] = without(haiku["linear_1"], "b")
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

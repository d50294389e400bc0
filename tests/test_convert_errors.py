"""What cannot be converted is refused, and the message says what was expected and what to do."""

import jax
import numpy as np
from support.converted import (
    AFTER,
    AFTER_0,
    BEFORE,
    BEFORE_0,
    ELMAN,
    LSTM,
    PEEPHOLES,
    PROJECTED,
    H,
    I,
    onnx_as_reverse,
    params_of,
    without,
)
from support.refusals import refused

import jax_bptt as jb
from jax_bptt.adapters import convert

TORCH, LINEN, KERAS, HAIKU = (
    f(LSTM) for f in (convert.to_torch, convert.to_linen, convert.to_keras, convert.to_haiku)
)
EQUINOX = convert.to_equinox(AFTER)
ONNX, ONNX_GRU, BOTH_WAYS = convert.to_onnx(LSTM), convert.to_onnx(AFTER), onnx_as_reverse(LSTM)

BAD = {
    "peepholes": (
        lambda: convert.to_torch(PEEPHOLES),
        r"params: expected those of elman, lstm, gru\(reset_after=True\) for torch.nn, got PeepholeParams\(.*"
        r"convert one of these cells, without peepholes, heads or a trained carry",
    ),
    "a leak": (lambda: convert.to_keras(jb.LeakyParams(*ELMAN, np.ones(H))), r"params: .* got LeakyParams\("),
    "two gates": (
        lambda: convert.to_keras(params_of(2)),
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
        lambda: convert.from_linen(without(LINEN, "hg")),
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
    "a trained carry in onnx": (
        lambda: convert.to_onnx(jb.learn_carry(jb.lstm(I, H, peephole=True)).init(jax.random.key(0))),
        r"params: expected those of .* for onnx, got PeepholeParamsWithCarry\(",
    ),
    "peepholes of another size": (
        lambda: convert.to_onnx(PEEPHOLES._replace(p_o=np.ones(3))),
        r"params: expected p_i, p_f and p_o of one number for each unit, got Peep.*p_o=float64\[3\]",
    ),
    "no names of onnx": (lambda: convert.from_onnx(TORCH), r"a name W, got names weight_ih_l0"),
    "two nodes of onnx": (lambda: convert.from_onnx([ONNX, ONNX]), r"a name W, got list"),
    "one direction without the axis of onnx": (
        lambda: convert.from_onnx({name: a[0] for name, a in ONNX.items()}),
        r"weights: expected arrays \[D, ...\] of one D, 1 or 2, got \{W: float64\[16,3\].*inputs of one ONNX",
    ),
    "both directions of onnx for W alone": (
        lambda: convert.from_onnx(ONNX | {"W": BOTH_WAYS["W"]}, direction="reverse"),
        r"weights: expected arrays \[D, ...\] of one D",
    ),
    "which direction of onnx": (
        lambda: convert.from_onnx(BOTH_WAYS),
        r"direction: expected 'forward' or 'reverse' for weights of two directions, got None; call it once",
    ),
    "a direction that onnx lacks": (
        lambda: convert.from_onnx(ONNX, direction="bidirectional"),
        r"direction: expected 'forward', 'reverse' or None, got bidirectional; say which",
    ),
    "a GRU of onnx without its attribute": (
        lambda: convert.from_onnx(ONNX_GRU),
        r"linear_before_reset: expected 0 or 1 beside the weights of a GRU, got None; pass that attribute",
    ),
    "an attribute of onnx too many": (
        lambda: convert.from_onnx(ONNX, 0),
        r"linear_before_reset: expected None for a node that is no GRU, got 0; leave it out",
    ),
    "a bias of onnx alone": (
        lambda: convert.from_onnx(ONNX | {"B": np.ones((1, 16))}),
        r"weights B: expected \[32\] as its neighbours, got float64\[16\]",
    ),
    "peepholes of an RNN of onnx": (
        lambda: convert.from_onnx(convert.to_onnx(ELMAN) | {"P": np.ones((1, 12))}),
        r"weights P: expected None for a node that is no LSTM, got float64\[12\]; leave it out",
    ),
}

test_messages = refused(BAD)

"""How the cells of other frameworks, and the nodes of ONNX, are run in their own layout, beside ours."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_bptt as jb
from jax_bptt.adapters import convert
from support.onnx_peer import onnx_peer
from support.peer import LENGTHS, B, H, I, Peer, T

os.environ["KERAS_BACKEND"] = "jax"

# PyTorch: any number of layers and directions, of equal or unequal lengths.


def torch_peer(
    name: str, layers: int = 1, both: bool = False, lengths: Any = None, bias: bool = True, **options: Any
) -> Peer:
    import torch

    kind = {"RNN": jb.elman, "LSTM": jb.lstm, "GRU": jb.gru}[name]
    ours_for = {"nonlinearity": "activation", "proj_size": "projection"}
    same = {ours_for[option]: value for option, value in options.items()}
    places = [(layer, reverse) for layer in range(layers) for reverse in (False, True)[: 1 + both]]
    outputs = options.get("proj_size", H) * (1 + both)
    cells = [kind(outputs if layer else I, H, bias=bias, **same) for layer, _ in places]
    mask = None if lengths is None else jb.mask_of_lengths(jnp.array(lengths), T)
    options = {"bias": bias, "bidirectional": both, "dtype": torch.float64, **options}
    module = getattr(torch.nn, name)(I, H, layers, **options)

    def ours(params: Any, carry: Any, xs: Any) -> Any:
        finals, hs = [], []
        for (_, reverse), cell, p, s in zip(places, cells, params, carry, strict=True):
            if len(hs) == 1 + both:
                xs, hs = jnp.concatenate(hs, -1), []
            final, h = jb.unroll(cell, p, s, xs, gradient=jb.full(), mask=mask, reverse=reverse)
            finals, hs = [*finals, final], [*hs, h]
        hs = jnp.concatenate(hs, -1)  # held where there is padding; zeros in PyTorch
        return finals, hs if mask is None else jnp.where(mask[..., None], hs, 0.0)

    def theirs(primals: Any, cotangents: Any) -> Any:
        weights, carry, xs = jax.tree.map(torch.tensor, primals)
        module.load_state_dict(weights)
        states = [torch.stack(of_field).requires_grad_() for of_field in zip(*carry, strict=True)]
        sequence = xs.requires_grad_()
        if lengths is not None:
            sequence = torch.nn.utils.rnn.pack_padded_sequence(
                xs, torch.tensor(lengths), enforce_sorted=False
            )
        hs, finals = module(sequence, tuple(states) if name == "LSTM" else states[0])
        finals = finals if name == "LSTM" else (finals,)
        if lengths is not None:
            hs, _ = torch.nn.utils.rnn.pad_packed_sequence(hs, total_length=T)
        d_carry, d_hs = jax.tree.map(lambda a: torch.tensor(np.asarray(a)), cotangents)
        d_finals = [torch.stack(of_field) for of_field in zip(*d_carry, strict=True)]
        leaves = [*module.parameters(), *states, xs]
        d = [a.numpy() for a in torch.autograd.grad([*finals, hs], leaves, [*d_finals, d_hs])]
        n = len(weights)
        d_weights = dict(zip((key for key, _ in module.named_parameters()), d[:n], strict=True))
        outputs = _per_cell([a.detach().numpy() for a in finals]), hs.detach().numpy()
        return outputs, (d_weights, _per_cell(d[n:-1]), d[-1])

    def _per_cell(fields: Any) -> list[Any]:
        return [type(s)(*of_cell) for s, of_cell in zip(carry, zip(*fields, strict=True), strict=True)]

    def to(params: Any) -> dict[str, Any]:
        each = zip(places, params, strict=True)
        return {key: w for place, p in each for key, w in convert.to_torch(p, *place).items()}

    carry = [cell.initial_carry(cell.init(jax.random.key(0)), (B,)) for cell in cells]
    weights = {key: w.numpy() for key, w in module.state_dict().items()}
    return Peer(
        weights, to, lambda w: [convert.from_torch(w, *place) for place in places], ours, theirs, carry
    )


# The frameworks that are JAX: a function of weights, carry and one step or all of xs.


def jax_peer(cell: Any, weights: Any, to: Any, back: Any, run: Any) -> Peer:
    def theirs(primals: Any, cotangents: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            outputs, pullback = jax.vjp(jax.jit(run), *jax.tree.map(jnp.asarray, primals))
            return outputs, pullback(jax.tree.map(jnp.asarray, cotangents))

    ours = functools.partial(jb.unroll, cell, gradient=jb.full())
    carry = cell.initial_carry(cell.init(jax.random.key(0)), (B,))
    return Peer(jax.tree.map(np.asarray, weights), to, back, ours, theirs, carry)


def scanned(step: Any) -> Any:
    """run of step(weights, carry, x) -> (carry, h)."""
    return lambda weights, carry, xs: jax.lax.scan(functools.partial(step, weights), carry, xs)


def ch(step: Any) -> Any:
    """Ours from a step whose carry is (c, h), or h without c."""

    def ours(weights: Any, carry: Any, x: Any) -> Any:
        new, h = step(weights, carry[::-1] if len(carry) == 2 else carry.h, x)
        return type(carry)(*new[::-1]) if len(carry) == 2 else type(carry)(new), h

    return ours


def linen_peer(name: str, cell: jb.Cell) -> Peer:
    import flax.linen

    module = getattr(flax.linen, name)(H, param_dtype=jnp.float64)
    x = jnp.zeros((B, I))
    weights = module.init(jax.random.key(0), module.initialize_carry(jax.random.key(0), x.shape), x)["params"]
    step = ch(lambda weights, carry, x: module.apply({"params": weights}, carry, x))
    return jax_peer(cell, weights, convert.to_linen, convert.from_linen, scanned(step))


def nnx_peer(name: str, cell: jb.Cell) -> Peer:
    from flax import nnx

    float64 = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    module = getattr(nnx, name)(I, H, **float64, rngs=nnx.Rngs(0))

    def step(weights: Any, carry: Any, x: Any) -> Any:
        graphdef, state = nnx.split(module)
        nnx.replace_by_pure_dict(state, weights)
        return nnx.merge(graphdef, state)(carry, x)

    to = functools.partial(convert.to_nnx, optimized=name != "LSTMCell")
    weights = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    peer = jax_peer(cell, weights, to, convert.from_nnx, scanned(ch(step)))
    without_b_n = np.arange(3 * H) < 2 * H
    return peer._replace(held=lambda p: p._replace(b_h=p.b_h * without_b_n)) if name == "GRUCell" else peer


def keras_peer(name: str, cell: Any, **options: Any) -> Peer:
    import keras

    options = {"return_sequences": True, "return_state": True, "dtype": "float64", **options}
    layer = getattr(keras.layers, name)(H, activation=jnp.tanh, **options)  # Keras' own tanh is float32 here
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        layer.build((B, T, I))
    fixed = [variable.value for variable in layer.non_trainable_variables]

    def run(weights: Any, carry: Any, xs: Any) -> Any:
        (hs, *final), _ = layer.stateless_call(weights, fixed, xs.swapaxes(0, 1), initial_state=list(carry))
        return type(carry)(*final), hs.swapaxes(0, 1)

    back = convert.from_keras
    if name == "GRU" and not options.get("use_bias", True):
        back = functools.partial(back, reset_after=options["reset_after"])
    return jax_peer(cell, layer.get_weights(), convert.to_keras, back, run)


def haiku_peer(name: str, cell: Any) -> Peer:
    import haiku as hk

    apart = {"VanillaRNN": "vanilla_rnn/", "LSTM": "lstm/"}.get(name, "")
    pure = hk.without_apply_rng(hk.transform(lambda x, s: getattr(hk, name)(H)(x, s)))
    state = hk.LSTMState if name == "LSTM" else lambda h: h

    def step(weights: Any, carry: Any, x: Any) -> Any:
        named = {apart + key: w for key, w in weights.items()} if apart else {"gru": weights}
        h, new = pure.apply(named, x, state(*carry))
        return type(carry)(*new) if name == "LSTM" else type(carry)(new), h

    zeros = jnp.zeros((B, H))
    weights = pure.init(jax.random.key(0), jnp.zeros((B, I)), state(*[zeros] * (1 + (name == "LSTM"))))
    weights = {key.removeprefix(apart): w for key, w in weights.items()} if apart else weights["gru"]
    return jax_peer(cell, weights, convert.to_haiku, convert.from_haiku, scanned(step))


def equinox_peer(name: str, cell: jb.Cell, **options: Any) -> Peer:
    import equinox as eqx

    module = getattr(eqx.nn, name)(I, H, dtype=jnp.float64, key=jax.random.key(0), **options)
    weights = {key: w for key, w in vars(module).items() if isinstance(w, jax.Array)}

    def step(weights: Any, carry: Any, x: Any) -> Any:
        loaded = eqx.tree_at(lambda m: [getattr(m, key) for key in weights], module, [*weights.values()])
        new = jax.vmap(loaded)(x, tuple(carry) if len(carry) == 2 else carry.h)
        carry = type(carry)(*new) if len(carry) == 2 else type(carry)(new)
        return carry, carry.h

    return jax_peer(cell, weights, convert.to_equinox, convert.from_equinox, scanned(step))


ELMAN, LSTM, GRU, BEFORE = jb.elman(I, H), jb.lstm(I, H), jb.gru(I, H), jb.gru(I, H, reset_after=False)
ELMAN_0, LSTM_0, GRU_0 = (make(I, H, bias=False) for make in (jb.elman, jb.lstm, jb.gru))
BEFORE_0 = jb.gru(I, H, reset_after=False, bias=False)
PEEPHOLE, BOTH_WAYS = jb.lstm(I, H, peephole=True), {"direction": "bidirectional"}
PEEPHOLE_0 = jb.lstm(I, H, peephole=True, bias=False)
AFTER_UNBIASED = {"reset_after": True, "use_bias": False}
BEFORE_UNBIASED = {"reset_after": False, "use_bias": False}
TANH, RELU = {"nonlinearity": "tanh"}, {"nonlinearity": "relu"}
UNEQUAL = {"lengths": LENGTHS}
DEEP = {"lengths": LENGTHS, "layers": 2, "both": True}

ROWS: dict[str, tuple[str, Callable[..., Peer], tuple, dict]] = {
    "PyTorch RNN tanh": ("torch", torch_peer, ("RNN",), TANH),
    "PyTorch RNN relu": ("torch", torch_peer, ("RNN",), RELU),
    "PyTorch LSTM": ("torch", torch_peer, ("LSTM",), {}),
    "PyTorch GRU": ("torch", torch_peer, ("GRU",), {}),
    "PyTorch RNN tanh, packed": ("torch", torch_peer, ("RNN",), UNEQUAL | TANH),
    "PyTorch RNN relu, packed": ("torch", torch_peer, ("RNN",), UNEQUAL | RELU),
    "PyTorch LSTM, packed": ("torch", torch_peer, ("LSTM",), UNEQUAL),
    "PyTorch GRU, packed": ("torch", torch_peer, ("GRU",), UNEQUAL),
    "PyTorch RNN tanh, packed, 2 layers, both ways": ("torch", torch_peer, ("RNN",), DEEP | TANH),
    "PyTorch RNN relu, packed, 2 layers, both ways": ("torch", torch_peer, ("RNN",), DEEP | RELU),
    "PyTorch LSTM, packed, 2 layers, both ways": ("torch", torch_peer, ("LSTM",), DEEP),
    "PyTorch GRU, packed, 2 layers, both ways": ("torch", torch_peer, ("GRU",), DEEP),
    "PyTorch LSTM, projected": ("torch", torch_peer, ("LSTM",), {"proj_size": 3}),
    "PyTorch LSTM, projected, no bias, packed, 2 layers, both ways": (
        "torch",
        torch_peer,
        ("LSTM",),
        DEEP | {"bias": False, "proj_size": 3},
    ),
    "PyTorch RNN tanh, no bias": ("torch", torch_peer, ("RNN",), TANH | {"bias": False}),
    "PyTorch LSTM, no bias": ("torch", torch_peer, ("LSTM",), {"bias": False}),
    "PyTorch GRU, no bias, packed, 2 layers, both ways": (
        "torch",
        torch_peer,
        ("GRU",),
        DEEP | {"bias": False},
    ),
    "Flax linen SimpleCell": ("flax", linen_peer, ("SimpleCell", ELMAN), {}),
    "Flax linen LSTMCell": ("flax", linen_peer, ("LSTMCell", LSTM), {}),
    "Flax linen OptimizedLSTMCell": ("flax", linen_peer, ("OptimizedLSTMCell", LSTM), {}),
    "Flax linen GRUCell": ("flax", linen_peer, ("GRUCell", GRU), {}),
    "Flax nnx SimpleCell": ("flax", nnx_peer, ("SimpleCell", ELMAN), {}),
    "Flax nnx LSTMCell": ("flax", nnx_peer, ("LSTMCell", LSTM), {}),
    "Flax nnx OptimizedLSTMCell": ("flax", nnx_peer, ("OptimizedLSTMCell", LSTM), {}),
    "Flax nnx GRUCell": ("flax", nnx_peer, ("GRUCell", GRU), {}),
    "Keras SimpleRNN": ("keras", keras_peer, ("SimpleRNN", ELMAN), {}),
    "Keras LSTM": ("keras", keras_peer, ("LSTM", LSTM), {}),
    "Keras GRU, reset after": ("keras", keras_peer, ("GRU", GRU), {"reset_after": True}),
    "Keras GRU, reset before": ("keras", keras_peer, ("GRU", BEFORE), {"reset_after": False}),
    "Keras SimpleRNN, no bias": ("keras", keras_peer, ("SimpleRNN", ELMAN_0), {"use_bias": False}),
    "Keras LSTM, no bias": ("keras", keras_peer, ("LSTM", LSTM_0), {"use_bias": False}),
    "Keras GRU, no bias, reset after": ("keras", keras_peer, ("GRU", GRU_0), AFTER_UNBIASED),
    "Keras GRU, no bias, reset before": ("keras", keras_peer, ("GRU", BEFORE_0), BEFORE_UNBIASED),
    "Haiku VanillaRNN": ("haiku", haiku_peer, ("VanillaRNN", jb.elman(I, H, activation="relu")), {}),
    "Haiku LSTM": ("haiku", haiku_peer, ("LSTM", LSTM), {}),
    "Haiku GRU": ("haiku", haiku_peer, ("GRU", BEFORE), {}),
    "Equinox LSTMCell": ("equinox", equinox_peer, ("LSTMCell", LSTM), {}),
    "Equinox GRUCell": ("equinox", equinox_peer, ("GRUCell", GRU), {}),
    "Equinox LSTMCell, no bias": ("equinox", equinox_peer, ("LSTMCell", LSTM_0), {"use_bias": False}),
    "Equinox GRUCell, no bias": ("equinox", equinox_peer, ("GRUCell", GRU_0), {"use_bias": False}),
    "ONNX RNN": ("onnx", onnx_peer, ("RNN", ELMAN), {}),
    "ONNX RNN, no bias, backwards": ("onnx", onnx_peer, ("RNN", ELMAN_0, "reverse", "BP"), {}),
    "ONNX LSTM, both ways": ("onnx", onnx_peer, ("LSTM", LSTM), BOTH_WAYS),
    "ONNX LSTM, peepholes, both ways": ("onnx", onnx_peer, ("LSTM", PEEPHOLE), BOTH_WAYS | {"without": ""}),
    "ONNX LSTM, peepholes, no bias": ("onnx", onnx_peer, ("LSTM", PEEPHOLE_0), {"without": "B"}),
    "ONNX GRU, reset after, both ways": (
        "onnx",
        onnx_peer,
        ("GRU", GRU),
        BOTH_WAYS | {"linear_before_reset": 1},
    ),
    "ONNX GRU, reset before, both ways": ("onnx", onnx_peer, ("GRU", BEFORE), BOTH_WAYS),
    "ONNX GRU, no bias": ("onnx", onnx_peer, ("GRU", GRU_0), {"without": "BP", "linear_before_reset": 1}),
}

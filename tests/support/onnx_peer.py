"""The nodes of ONNX: outputs by its reference evaluator, gradients by loops over its equations."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_bptt as jb
from jax_bptt.adapters import convert
from support.peer import B, H, I, Peer, T


def onnx_peer(
    node: str, cell: Any, direction: str = "forward", without: str = "P", **attributes: int
) -> Peer:
    import onnx.reference as reference
    from onnx import TensorProto, helper

    both = direction == "bidirectional"
    directions = ["forward", "reverse"] if both else [direction]
    gates = {"RNN": 1, "LSTM": 4, "GRU": 3}[node] * H
    shapes = {"W": (gates, I), "R": (gates, H), "B": (2 * gates,), "P": (3 * H,)}
    weights = {
        name: np.zeros((len(directions), *shape)) for name, shape in shapes.items() if name not in without
    }
    states = ["Y_h", "Y_c"] if node == "LSTM" else ["Y_h"]
    names = ["X", "W", "R", "B", "", *(f"initial_{state[-1]}" for state in states)]
    names += ["P"] * (node == "LSTM")
    inputs = [name if name in weights or name[:1] in ("X", "i") else "" for name in names]
    graph = helper.make_graph(
        [helper.make_node(node, inputs, ["Y", *states], direction=direction, hidden_size=H, **attributes)],
        "one_node",
        [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in inputs if name],
        [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in ["Y", *states]],
    )
    evaluator = reference.ReferenceEvaluator(helper.make_model(graph))

    def ours(params: Any, carry: Any, xs: Any) -> Any:
        runs = [
            jb.unroll(cell, p, s, xs, gradient=jb.full(), reverse=d == "reverse")
            for p, s, d in zip(params, carry, directions, strict=True)
        ]
        return [s for s, _ in runs], jnp.stack([hs for _, hs in runs], 1)

    def theirs(primals: Any, cotangents: Any) -> Any:
        weights, carry, xs = primals
        initial = [np.stack(field) for field in zip(*carry, strict=True)]
        starts = dict(zip((f"initial_{state[-1]}" for state in states), initial, strict=True))
        y, *finals = evaluator.run(None, {"X": xs, **weights, **starts})
        finals = [type(carry[0])(*final) for final in zip(*finals, strict=True)]
        loop = functools.partial(_onnx_loop, node, directions, bool(attributes.get("linear_before_reset")))
        with jax.numpy_rank_promotion("allow"):
            pullback = jax.vjp(jax.jit(loop), *jax.tree.map(jnp.asarray, primals))[1]
            return (finals, y), pullback(jax.tree.map(jnp.asarray, cotangents))

    def to(params: Any) -> Any:
        each = [convert.to_onnx(p) for p in params]
        return {name: np.concatenate([one[name] for one in each]) for name in each[0]}

    def back(weights: Any) -> Any:
        before = attributes.get("linear_before_reset", 0) if node == "GRU" else None
        return [convert.from_onnx(weights, before, d if both else None) for d in directions]

    carry = [cell.initial_carry(cell.init(jax.random.key(0)), (B,)) for _ in directions]
    return Peer(weights, to, back, ours, theirs, carry)


def _onnx_loop(node: str, directions: Any, after: bool, weights: Any, carry: Any, xs: Any) -> Any:
    """The equations of the operators RNN, LSTM and GRU as the ONNX specification writes them."""
    finals, all_hs = [], []
    for k, (direction, s) in enumerate(zip(directions, carry, strict=True)):
        w, r = weights["W"][k].T, weights["R"][k].T
        wb, rb = jnp.split(weights["B"][k] if "B" in weights else jnp.zeros(2 * w.shape[1]), 2)
        p_i, p_o, p_f = jnp.split(weights["P"][k] if "P" in weights else jnp.zeros(3 * H), 3)
        h, c = (s.h, getattr(s, "c", None))
        hs = {}
        for t in range(T) if direction == "forward" else reversed(range(T)):
            xw, hr = xs[t] @ w + wb, h @ r + rb
            if node == "RNN":
                h = jnp.tanh(xw + hr)
            elif node == "LSTM":
                i, o, f, g = jnp.split(xw + hr, 4, -1)
                i, f = jax.nn.sigmoid(i + p_i * c), jax.nn.sigmoid(f + p_f * c)
                c = f * c + i * jnp.tanh(g)
                h = jax.nn.sigmoid(o + p_o * c) * jnp.tanh(c)
            else:
                z, reset = jnp.split(jax.nn.sigmoid((xw + hr)[:, : 2 * H]), 2, -1)
                n = reset * hr[:, 2 * H :] if after else (reset * h) @ r[:, 2 * H :] + rb[2 * H :]
                h = (1 - z) * jnp.tanh(xw[:, 2 * H :] + n) + z * h
            hs[t] = h
        finals.append(type(s)(*([h] if c is None else [h, c])))
        all_hs.append(jnp.stack([hs[t] for t in range(T)]))
    return finals, jnp.stack(all_hs, 1)

"""Networks with an encoder in front and a head on top, each beside a program of loops and whole arrays.

The program knows no encoder, no head and no chunk: an embedding is a product with one-hot rows, an encoder
and a head are formulas of all steps and rows, and the layers are loops over time.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from cases import CELLS, initial

import jax_bptt as jb
from support.network_by_loop import PLAIN, scan_one_way

T, B, V, E = 6, 3, 7, 4
PATTERN = np.arange(T * B).reshape(T, B)
MASK = PATTERN % 5 != 3


class Model(NamedTuple):
    """A network with all that its gradient needs, and its pieces written out again.

    Attributes:
      net: the network.
      loss: of jb.sum_over_steps or jb.mean_over_steps.
      encoded: (params, xs) -> x_1..x_T of the first layer.
      layers: for each layer a step function of `cases`, or (params, x) -> o of a dense one.
      outputs: (params, hs) -> ys.
      each: (ys, targets) -> the error of every step and row, [T, B].
      xs, targets: the inputs; padding where the mask is False.
    """

    net: Any
    loss: Any
    encoded: Callable[..., Any]
    layers: tuple
    outputs: Callable[..., Any]
    each: Callable[..., Any]
    xs: Any
    targets: Any


def _numbers(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(T, B, *shape)))


def _padded(tree):
    """Inputs that must not be read: NaN, or a number that is no class."""

    def one(z):
        nothing = jnp.asarray(jnp.nan if jnp.issubdtype(z.dtype, jnp.floating) else 99, z.dtype)
        return jnp.where(MASK.reshape(MASK.shape + (1,) * (z.ndim - 2)), z, nothing)

    return jax.tree.map(one, tree)


def _words():
    cells = [jb.gru(E, 5), jb.layer(jb.dense(5, E, activation="tanh"), residual=False)]
    net = jb.network(cells, jb.tied_readout(V), jb.embedding(V, E))
    return Model(
        net,
        jb.softmax_cross_entropy,
        lambda p, xs: jax.nn.one_hot(xs, V, dtype=jnp.float64) @ p.encoder.w_e,
        (CELLS["gru"].plain, lambda p, x: jnp.tanh(x @ p.w + jnp.broadcast_to(p.b, (T, B, E)))),
        lambda p, hs: hs @ p.encoder.w_e.T + jnp.broadcast_to(p.readout.b_y, (T, B, V)),
        lambda ys, d: -jnp.log((jax.nn.one_hot(d, V, dtype=jnp.float64) * jax.nn.softmax(ys)).sum(-1)),
        _padded(jnp.asarray(PATTERN**2 % V)),
        jnp.asarray(PATTERN % V),
    )


def _init_encoder(key):
    return {"w": jax.random.normal(key, (2, E)), "light": jnp.ones(E)}


def encode(params, x):
    """Two numbers, a light and a counter of one step and row give E features."""
    assert (x["seen"].shape, x["light"].shape, x["count"].dtype) == ((2,), (), jnp.int32)
    return jnp.tanh(x["seen"] @ params["w"] + x["light"] * params["light"]) * x["count"].astype(
        params["w"].dtype
    )


def _init_head(key):
    return {"policy": jax.random.normal(key, (E, V)), "value": jnp.ones(E), "bias": jnp.zeros(())}


def two_heads(params, h):
    """The logits of a policy, a value, and the features, as they are."""
    assert h.shape == (E,)
    return {"policy": h @ params["policy"], "value": h @ params["value"] + params["bias"], "features": h}


def error_of_an_agent(y, target):
    """A policy's gain, the error of a value, and a penalty on the features."""
    chosen = jax.nn.log_softmax(y["policy"])[target["action"]]
    return -chosen * target["gain"] + jnp.square(y["value"] - target["gain"]) + jnp.sum(y["features"] ** 4)


def _each_of_an_agent(ys, d):
    chosen = jnp.take_along_axis(jax.nn.log_softmax(ys["policy"]), d["action"][..., None], -1)[..., 0]
    return -chosen * d["gain"] + (ys["value"] - d["gain"]) ** 2 + (ys["features"] ** 4).sum(-1)


def _agent():
    cells = [jb.dense(E, E, bias=False), jb.layer(jb.learn_carry(jb.lstm(E, E)), residual=True)]
    net = jb.network(cells, jb.head(two_heads, _init_head), jb.encoder(encode, _init_encoder))
    xs = {"seen": _numbers(2), "light": _numbers(seed=1), "count": jnp.asarray(PATTERN % 3, jnp.int32)}

    def encoded(p, xs):
        seen = xs["seen"] @ p.encoder["w"] + xs["light"][..., None] * jnp.broadcast_to(
            p.encoder["light"], (T, B, E)
        )
        return jnp.tanh(seen) * xs["count"][..., None].astype(float)

    def outputs(p, hs):
        value = hs @ p.readout["value"] + jnp.broadcast_to(p.readout["bias"], (T, B))
        return {"policy": hs @ p.readout["policy"], "value": value, "features": hs}

    return Model(
        net,
        jb.sum_over_steps(error_of_an_agent),
        encoded,
        (lambda p, x: x @ p.w, CELLS["lstm"].plain),
        outputs,
        _each_of_an_agent,
        _padded(xs),
        {"action": jnp.asarray(PATTERN % V), "gain": _numbers(seed=2)},
    )


MODELS = {"words": _words(), "an agent": _agent()}
MARKS = {
    "mask": jnp.asarray(MASK),
    "reset": jnp.asarray(PATTERN % 7 == 2),
    "cut": jnp.asarray(PATTERN % 11 == 5),
}
WEIGHT = jnp.asarray(np.where(PATTERN % 4 == 1, 0.0, 0.5 + np.cos(PATTERN)))


def params_of(model):
    """Random parameters, no bias of which is zero."""
    keys = iter(jax.random.split(jax.random.key(4), 99))
    made = model.net.init(next(keys))
    return jax.tree.map(lambda z: z + 0.4 * jax.random.normal(next(keys), z.shape) / max(1, z.ndim), made)


def by_loops(model, params, program=PLAIN, marks=MARKS):
    """The outputs, by loops over time."""
    zeros = model.net.initial_carry(params, (B,))
    hs = jax.tree.map(jnp.nan_to_num, model.encoded(params, _read(model.xs)))
    for layer, plain, p, zero in zip(model.net.layers, model.layers, params.cells, zeros, strict=True):
        if zero == ():
            outputs = plain(p, hs)
        else:
            s_0 = initial(None, jnp, p._asdict(), zero._asdict())
            _, outputs = scan_one_way(plain, p, s_0, hs, marks, False, program)
        hs = outputs + hs if layer.residual else outputs
    return model.outputs(params, hs)


def _read(xs):
    """The inputs with zeros in place of padding."""
    return jax.tree.map(
        lambda z: jnp.where(MASK.reshape(MASK.shape + (1,) * (z.ndim - 2)), z, jnp.zeros_like(z)), xs
    )


def error_by_loops(model, params, program=PLAIN):
    """E, by loops over time."""
    errors = model.each(by_loops(model, params, program), model.targets)
    counted = jnp.where(MASK, WEIGHT, 0.0)
    total = (counted * jnp.where(MASK, errors, 0.0)).sum()
    return total / counted.sum() if model.loss is jb.softmax_cross_entropy else total


NET = jb.network(
    [jb.elman(E, E)], jb.head(two_heads, MODELS["an agent"].net.readout.init), MODELS["an agent"].net.encoder
)
WORDS = jb.network([jb.elman(E, E)], jb.readout(E, V), jb.embedding(V, E))
XS = jax.tree.map(jnp.nan_to_num, MODELS["an agent"].xs)

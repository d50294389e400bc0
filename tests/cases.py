"""The one table of cells, shapes and marks over which every gradient method and every witness runs.

A new cell is one row of CELLS. Beside the library's cell stands `plain`, its step written again
without the library, in terms of `np`, which is jax.numpy (for jax.grad) or numpy (complex step).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from support.forms import of_heads, projected

import jax_bptt as jb

I, H, K = 3, 4, 2  # noqa: E741


class CellRow(NamedTuple):
    """A cell and its independent step (np, params, state, x) -> state; params and state as dicts."""

    cell: Any
    plain: Callable[[Any, dict, dict, Any], dict]


class Case(NamedTuple):
    """A cell with everything a gradient needs; nothing in it is zero."""

    row: CellRow
    params: Any
    carry: Any
    xs: jax.Array
    d_carry: Any  # cotangent on the final carry
    d_hs: jax.Array  # cotangent on every output
    marks: dict[str, Any]  # mask, reset, cut: those that are given
    reverse: bool = False

    def primals(self) -> tuple:
        return self.params, self.carry, self.xs


def _z(np, p, s, x):
    return _plus(np, x @ p["w_x"] + s["h"] @ p["w_h"], p, "b")


def _plus(np, z, p, name):
    """z plus a bias, where there is one."""
    return z + np.broadcast_to(p[name], z.shape) if name in p else z


def _plain_elman(g):
    return lambda np, p, s, x: {"h": g(np, _z(np, p, s, x))}


def _sigmoid(np, z):
    return 1 / (1 + np.exp(-z))


def _softsign_like(z):
    return z / (1 + z * z)


def _plain_lstm(np, p, s, x):
    i, f, g, o = np.split(_z(np, p, s, x), 4, axis=-1)
    c = _sigmoid(np, f) * s["c"] + _sigmoid(np, i) * np.tanh(g)
    return {"h": _sigmoid(np, o) * np.tanh(c), "c": c}


def _plain_peephole(np, p, s, x):
    i, f, g, o = np.split(_z(np, p, s, x), 4, axis=-1)
    wide = {n: np.broadcast_to(p[n], i.shape) for n in ("p_i", "p_f", "p_o")}
    c = _sigmoid(np, f + wide["p_f"] * s["c"]) * s["c"] + _sigmoid(np, i + wide["p_i"] * s["c"]) * np.tanh(g)
    return {"h": _sigmoid(np, o + wide["p_o"] * c) * np.tanh(c), "c": c}


def _plain_gru(np, p, s, x):
    u, v = x @ p["w_x"], s["h"] @ p["w_h"]
    u_r, u_z, u_n = np.split(_plus(np, u, p, "b"), 3, axis=-1)
    v_r, v_z, v_n = np.split(_plus(np, v, p, "b_h"), 3, axis=-1)
    z, n = _sigmoid(np, u_z + v_z), np.tanh(u_n + _sigmoid(np, u_r + v_r) * v_n)
    return {"h": n - z * n + z * s["h"]}


def _plain_gru_reset_before(np, p, s, x):
    w_r, w_z, w_n = np.split(p["w_h"], 3, axis=-1)
    u_r, u_z, u_n = np.split(_plus(np, x @ p["w_x"], p, "b"), 3, axis=-1)
    r, z = _sigmoid(np, u_r + s["h"] @ w_r), _sigmoid(np, u_z + s["h"] @ w_z)
    n = np.tanh(u_n + (r * s["h"]) @ w_n)
    return {"h": n - z * n + z * s["h"]}


def _plain_leaky(np, p, s, x):
    z = _z(np, p, s, x)
    alpha = _sigmoid(np, np.broadcast_to(p["rho"], z.shape))
    return {"h": (1 - alpha) * s["h"] + alpha * np.tanh(z)}


def _plain_mgu(np, p, s, x):
    u, v = x @ p["w_x"], s["h"] @ p["w_h"]
    u_f, u_n = np.split(u + np.broadcast_to(p["b"], u.shape), 2, axis=-1)
    v_f, v_n = np.split(v, 2, axis=-1)
    f = _sigmoid(np, u_f + v_f)
    return {"h": s["h"] - f * s["h"] + f * np.tanh(u_n + f * v_n)}


def _plain_indrnn(np, p, s, x):
    u = x @ p["w_x"]
    return {"h": np.tanh(u + np.broadcast_to(p["b"], u.shape) + np.broadcast_to(p["w_h"], u.shape) * s["h"])}


# Cells of a user's own: a pointwise step left to jax.vjp, and steps of any kind.


class TwoStates(NamedTuple):
    h: jax.Array
    c: jax.Array


class OwnParams(NamedTuple):
    w_x: jax.Array
    w_h: jax.Array
    b: jax.Array
    b_h: jax.Array
    k: jax.Array


def _own_init(key):
    p = jb.make_cell(I, H, lambda *a: a[1], gates=2).init(key)
    return OwnParams(*p, p.b, p.b[:H])


def _own_step(units, s, u, v):
    """du differs from dv, two states that feed each other, a unit-wise parameter, a bias inside."""
    c = jnp.sin(u[0] + v[0] * s.c) + units["k"] * s.h
    return TwoStates(jnp.tanh(u[1] * c + v[1]), c)


def _plain_own(np, p, s, x):
    u, v = x @ p["w_x"], s["h"] @ p["w_h"]
    u_0, u_1 = np.split(u + np.broadcast_to(p["b"], u.shape), 2, axis=-1)
    v_0, v_1 = np.split(v + np.broadcast_to(p["b_h"], v.shape), 2, axis=-1)
    c = np.sin(u_0 + v_0 * s["c"]) + np.broadcast_to(p["k"], u_0.shape) * s["h"]
    return {"h": np.tanh(u_1 * c + v_1), "c": c}


def _norm_init(key):
    w_x, w_h, b = jb.elman(I, H).init(key)
    return {"w_x": w_x, "w_h": w_h, "gain": b + 1, "b": b}


def _norm_step(p, s, x):
    """Layer norm over the units: not pointwise."""
    z = x @ p["w_x"] + s.h @ p["w_h"]
    z = z - z.mean()
    return jb.Carry(jnp.tanh(p["gain"] * z / jnp.sqrt((z * z).mean() + 0.1) + p["b"]))


def _plain_norm(np, p, s, x):
    z = x @ p["w_x"] + s["h"] @ p["w_h"]
    z = z - np.broadcast_to(z.mean(-1, keepdims=True), z.shape)
    gain, b = (np.broadcast_to(p[n], z.shape) for n in ("gain", "b"))
    scale = np.sqrt((z * z).mean(-1, keepdims=True) + 0.1)
    return {"h": np.tanh(gain * z / np.broadcast_to(scale, z.shape) + b)}


class Memory(NamedTuple):
    h: jax.Array
    past: jax.Array  # [K, H], the last K states


def _attention_init(key):
    keys = jax.random.split(key, 4)
    shapes = {"w_x": (I, H), "w_q": (H, H), "w_r": (H, H), "start": (K, H)}
    return {n: jax.random.normal(k, s) * 0.7 for (n, s), k in zip(shapes.items(), keys, strict=True)}


def _attention_carry(p, rows):
    """The memory begins at a parameter."""
    h = jnp.zeros((*rows, H), p["start"].dtype)
    return Memory(h, jnp.broadcast_to(p["start"], (*rows, K, H)))


def _attention_step(p, s, u):
    """Attention over a memory in the carry; two products, of which neither is the other's."""
    scores = jnp.exp(s.past @ (s.h @ p["w_q"]))
    read = (scores / scores.sum()) @ s.past
    h = jnp.tanh(u + read @ p["w_r"])
    return Memory(h, jnp.concatenate([s.past[1:], h[None]]))


def _plain_attention(np, p, s, x):
    scores = np.exp(np.einsum("...kh,...h->...k", s["past"], s["h"] @ p["w_q"]))
    total = np.broadcast_to(scores.sum(-1, keepdims=True), scores.shape)
    h = np.tanh(x @ p["w_x"] + np.einsum("...k,...kh->...h", scores / total, s["past"]) @ p["w_r"])
    return {"h": h, "past": np.concatenate([s["past"][..., 1:, :], h[..., None, :]], -2)}


CELLS = {
    "elman-tanh": CellRow(jb.elman(I, H), _plain_elman(lambda np, z: np.tanh(z))),
    "elman-sigmoid": CellRow(jb.elman(I, H, activation="sigmoid"), _plain_elman(_sigmoid)),
    "elman-relu": CellRow(
        jb.elman(I, H, activation="relu"), _plain_elman(lambda np, z: np.where(np.real(z) > 0, z, 0 * z))
    ),
    "elman-identity": CellRow(jb.elman(I, H, activation="identity"), _plain_elman(lambda np, z: z)),
    "elman-callable": CellRow(
        jb.elman(I, H, activation=_softsign_like), _plain_elman(lambda np, z: z / (1 + z * z))
    ),
    "one-unit": CellRow(jb.elman(I, 1), _plain_elman(lambda np, z: np.tanh(z))),
    "lstm": CellRow(jb.lstm(I, H), _plain_lstm),
    "lstm-peephole": CellRow(jb.lstm(I, H, forget_bias=jb.chrono(9), peephole=True), _plain_peephole),
    "lstm-learned-carry": CellRow(jb.learn_carry(jb.lstm(I, H)), _plain_lstm),
    "gru": CellRow(jb.gru(I, H), _plain_gru),
    "gru-reset-before": CellRow(jb.gru(I, H, reset_after=False), _plain_gru_reset_before),
    "gru-before-learned": CellRow(
        jb.learn_carry(jb.gru(I, H, reset_after=False, update_bias=1.0)), _plain_gru_reset_before
    ),
    "gru-no-bias": CellRow(jb.gru(I, H, bias=False), _plain_gru),
    "gru-before-no-bias": CellRow(jb.gru(I, H, reset_after=False, bias=False), _plain_gru_reset_before),
    "peephole-no-bias-learned": CellRow(
        jb.learn_carry(jb.lstm(I, H, peephole=True, bias=False)), _plain_peephole
    ),
    "gru-heads": CellRow(jb.gru(I, H, heads=2), of_heads(_plain_gru, 3)),
    "lstm-projected": CellRow(jb.lstm(I, 6, projection=H), projected(_plain_lstm)),
    "leaky": CellRow(jb.leaky(I, H, rate=0.4), _plain_leaky),
    "mgu": CellRow(jb.mgu(I, H), _plain_mgu),
    "indrnn": CellRow(jb.indrnn(I, H, activation="tanh"), _plain_indrnn),
    "own-pointwise": CellRow(
        jb.make_cell(I, H, _own_step, gates=2, carry_type=TwoStates, init=_own_init), _plain_own
    ),
    "own-layer-norm": CellRow(jb.step_cell(I, H, _norm_step, _norm_init), _plain_norm),
    "own-attention": CellRow(
        jb.step_cell(
            I,
            H,
            _attention_step,
            _attention_init,
            carry_type=Memory,
            initial_carry=_attention_carry,
            project=lambda p, x: x @ p["w_x"],
        ),
        _plain_attention,
    ),
}

# Every kind of cell once: the others differ from one of these in the activation, or by a learned carry.
KINDS = [
    "elman-tanh",
    "lstm",
    "lstm-peephole",
    "gru",
    "gru-before-learned",
    "leaky",
    "mgu",
    "indrnn",
    "own-pointwise",
    "own-layer-norm",
    "own-attention",
]

# Forms of a kind: what is new in them is tested, and by mistakes of their own.
FORMS = ["gru-heads", "lstm-projected"]

VARIED = ("elman-tanh", "lstm", "own-attention")  # one field, two, and a step of any kind

SHAPES = [(1, ()), (2, (3,)), (3, (2, 2)), (7, ()), (13, (1,))]  # T, batch axes

METHODS = {"full": jb.full(), "autodiff": jb.autodiff()}

# Every exact method, with chunks that divide no T, and windows that no T outgrows.
EXACT = {
    "full": jb.full(),
    "full in chunks": jb.full(chunk=3),
    "full, half recomputed": jb.full(chunk=2, recompute=0.5),
    "checkpointed": jb.checkpointed(slots=2, chunk=2),
    "checkpointed, a slot for each leaf": jb.checkpointed(),
    "truncated, chunked": jb.truncated(window=13),
    "truncated, sliding": jb.truncated(window=13, stride=1),
    "rtrl": jb.rtrl(),
    "parallel": jb.parallel(),
    "autodiff": jb.autodiff(),
}

MARKS = [(), ("mask",), ("reset",), ("mask", "reset"), ("mask", "reset", "cut")]


def initial(row: CellRow, np: Any, p: dict, state: dict) -> dict:
    """The initial carry of every row, by the table and not by the library."""
    if "start" in p:
        past = state["past"]
        return {"h": 0 * state["h"], "past": np.broadcast_to(p["start"], past.shape)}
    return {n: np.broadcast_to(p[f"{n}_0"], s.shape) if f"{n}_0" in p else 0 * s for n, s in state.items()}


def make(
    name: str,
    steps: int,
    batch: tuple[int, ...],
    dtype: str = "float64",
    marks: tuple[str, ...] = (),
    reverse: bool = False,
) -> Case:
    """A case that keeps the gradient alive: orthogonal W_h, random biases, carry and cotangents.

    Under a mask the first row has no valid step, the others have holes, and padding is NaN.
    """
    row = CELLS[name]
    keys = iter(jax.random.split(jax.random.key(len(name) + 31 * steps + len(batch)), 64))
    params = row.cell.init(next(keys))

    def randomised(leaf):
        return leaf if leaf.ndim > 1 else leaf + 0.5 * jax.random.normal(next(keys), leaf.shape)

    def normal(shape):
        return jax.random.normal(next(keys), shape)

    params = jax.tree.map(randomised, params)
    zeros = row.cell.initial_carry(params, batch)
    carry, d_carry = (jax.tree.map(lambda z: normal(z.shape), zeros) for _ in range(2))
    xs, d_hs = normal((steps, *batch, I)), normal((steps, *zeros.h.shape))
    cast = jax.tree.map(lambda z: z.astype(dtype), (params, carry, xs, d_carry, d_hs))
    drawn = {n: jax.random.bernoulli(next(keys), p, (steps, *batch)) for n, p in SHARES.items()}
    drawn["mask"] = drawn["mask"].at[:, 0].set(False) if batch and batch[0] > 1 else drawn["mask"]
    drawn["mask"] = drawn["mask"].at[-1, ..., -1].set(True) if batch else drawn["mask"].at[-1].set(True)
    drawn["reset"] = drawn["reset"].at[0].set(True)
    given = {n: drawn[n] for n in marks}
    case = Case(row, *cast, given, reverse)
    if "mask" in given:
        case = case._replace(xs=jnp.where(given["mask"][..., None], case.xs, jnp.asarray(jnp.nan, dtype)))
    return case


SHARES = {"mask": 0.6, "reset": 0.3, "cut": 0.3}


def every_case(f):
    """Run a test for VARIED at all shapes but the last, for all others at it; it takes name, steps, batch."""
    every = [(name, *shape) for name in VARIED for shape in SHAPES[:-1]]
    every += [(name, *SHAPES[-1]) for name in CELLS if name not in VARIED]
    names = ("name", "steps", "batch")
    return pytest.mark.parametrize(names, every, ids=lambda v: str(v).replace(" ", ""))(f)

"""The one table: cells x shapes, over which every gradient method and every witness runs.

A new cell is one row of CELLS. Beside the library's cell stands `plain`, its step written again
without the library, in terms of `np`, which is jax.numpy (for jax.grad) or numpy (complex step).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

import jax_bptt as jb

I, H = 3, 4  # noqa: E741


class CellRow(NamedTuple):
    """A cell and its independent step (np, params, state, x) -> state; params and state as dicts."""

    cell: jb.Cell
    plain: Callable[[Any, dict, dict, Any], dict]


class Case(NamedTuple):
    """A cell with everything a gradient needs; nothing in it is zero."""

    row: CellRow
    params: Any
    carry: Any
    xs: jax.Array
    d_carry: Any  # cotangent on the final carry
    d_hs: jax.Array  # cotangent on every output

    def primals(self) -> tuple:
        return self.params, self.carry, self.xs


def _z(np, p, s, x):
    z = x @ p["w_x"] + s["h"] @ p["w_h"]
    return z + np.broadcast_to(p["b"], z.shape)


def _plain_elman(g):
    return lambda np, p, s, x: {"h": g(np, _z(np, p, s, x))}


def _sigmoid(np, z):
    return 1 / (1 + np.exp(-z))


def _softsign_like(z):
    return z / (1 + z * z)


# Cells that the library does not have yet, so that the engine is tested in general.


class GatedCarry(NamedTuple):
    h: jax.Array
    c: jax.Array


class GatedParams(NamedTuple):
    w_x: jax.Array
    w_h: jax.Array
    b: jax.Array
    p_i: jax.Array
    p_o: jax.Array


class ResetParams(NamedTuple):
    w_x: jax.Array
    w_h: jax.Array
    b: jax.Array
    b_h: jax.Array


class LeakyParams(NamedTuple):
    w_x: jax.Array
    w_h: jax.Array
    b: jax.Array
    rate: jax.Array


def _init(params_type, gates, hidden=H):
    """The default parameters and, for each further field, zeros of the right shape."""

    def init(key):
        p = jb.make_cell(I, hidden, lambda *a: a[1], gates=gates).init(key)
        extra = {n: p.b if n == "b_h" else p.b[:hidden] for n in params_type._fields[3:]}
        return params_type(*p, **extra)

    return init


def _gated(units, s, u, v):
    """Four gates, two states, peepholes: an LSTM, its adjoint left to jax.vjp."""
    i, f, g, o = (a + b for a, b in zip(u, v, strict=True))
    i = jax.nn.sigmoid(i + units["p_i"] * s.c)
    c = jax.nn.sigmoid(f) * s.c + i * jnp.tanh(g)
    return GatedCarry(jax.nn.sigmoid(o + units["p_o"] * c) * jnp.tanh(c), c)


def _plain_gated(np, p, s, x):
    i, f, g, o = np.split(_z(np, p, s, x), 4, axis=-1)
    wide = {n: np.broadcast_to(p[n], i.shape) for n in ("p_i", "p_o")}
    c = _sigmoid(np, f) * s["c"] + _sigmoid(np, i + wide["p_i"] * s["c"]) * np.tanh(g)
    return {"h": _sigmoid(np, o + wide["p_o"] * c) * np.tanh(c), "c": c}


def _reset(units, s, u, v):
    """du differs from dv and there is a bias on the recurrent side: a GRU, reset after."""
    r, z = jax.nn.sigmoid(u[0] + v[0]), jax.nn.sigmoid(u[1] + v[1])
    n = jnp.tanh(u[2] + r * v[2])
    return jb.Carry((1 - z) * n + z * s.h)


def _plain_reset(np, p, s, x):
    u, v = x @ p["w_x"], s["h"] @ p["w_h"]
    u_r, u_z, u_n = np.split(u + np.broadcast_to(p["b"], u.shape), 3, axis=-1)
    v_r, v_z, v_n = np.split(v + np.broadcast_to(p["b_h"], v.shape), 3, axis=-1)
    z, n = _sigmoid(np, u_z + v_z), np.tanh(u_n + _sigmoid(np, u_r + v_r) * v_n)
    return {"h": n - z * n + z * s["h"]}


def _leaky(units, s, u, v):
    """A unit-wise parameter and a way past v, its adjoint by hand."""
    return jb.Carry(s.h + units["rate"] * (jnp.tanh(u[0] + v[0]) - s.h))


def _leaky_linearise(units, s_prev, u, v, s):
    return jnp.tanh(u[0] + v[0]), s_prev.h


def _leaky_adjoint(units, a, lam):
    g, h_prev = a
    d_z = lam.h * units["rate"] * (1 - g * g)
    d_rate = lam.h * (g - h_prev)
    return jb.StepCotangent(jb.Carry(lam.h * (1 - units["rate"])), (d_z,), (d_z,), {"rate": d_rate})


def _plain_leaky(np, p, s, x):
    z = _z(np, p, s, x)
    return {"h": s["h"] + np.broadcast_to(p["rate"], z.shape) * (np.tanh(z) - s["h"])}


CELLS = {
    "elman-tanh": CellRow(jb.elman(I, H), _plain_elman(lambda np, z: np.tanh(z))),
    "elman-sigmoid": CellRow(jb.elman(I, H, "sigmoid"), _plain_elman(_sigmoid)),
    "elman-relu": CellRow(
        jb.elman(I, H, "relu"), _plain_elman(lambda np, z: np.where(np.real(z) > 0, z, 0 * z))
    ),
    "elman-identity": CellRow(jb.elman(I, H, "identity"), _plain_elman(lambda np, z: z)),
    "elman-callable": CellRow(jb.elman(I, H, _softsign_like), _plain_elman(lambda np, z: z / (1 + z * z))),
    "one-unit": CellRow(jb.elman(I, 1), _plain_elman(lambda np, z: np.tanh(z))),
    "gated-by-vjp": CellRow(
        jb.make_cell(I, H, _gated, gates=4, carry_type=GatedCarry, init=_init(GatedParams, 4)), _plain_gated
    ),
    "reset-by-vjp": CellRow(jb.make_cell(I, H, _reset, gates=3, init=_init(ResetParams, 3)), _plain_reset),
    "leaky-by-hand": CellRow(
        jb.make_cell(
            I, H, _leaky, init=_init(LeakyParams, 1), linearise=_leaky_linearise, adjoint=_leaky_adjoint
        ),
        _plain_leaky,
    ),
}

SHAPES = [(1, ()), (2, (3,)), (3, (2, 2)), (7, ()), (13, (1,))]  # T, batch axes

METHODS = {"full": jb.full(), "autodiff": jb.autodiff()}


def make(name: str, steps: int, batch: tuple[int, ...], dtype: str = "float64") -> Case:
    """A case that keeps the gradient alive: orthogonal W_h, random biases, carry and cotangents."""
    row = CELLS[name]
    keys = iter(jax.random.split(jax.random.key(len(name) + 31 * steps + len(batch)), 64))
    params = row.cell.init(next(keys))

    def randomised(path, leaf):
        return leaf if path[0].name in ("w_x", "w_h") else 0.5 * jax.random.normal(next(keys), leaf.shape)

    def normal(shape):
        return jax.random.normal(next(keys), shape)

    params = jax.tree_util.tree_map_with_path(randomised, params)
    zeros = row.cell.initial_carry(params, batch)
    carry, d_carry = (jax.tree.map(lambda z: normal(z.shape), zeros) for _ in range(2))
    xs, d_hs = normal((steps, *batch, I)), normal((steps, *zeros.h.shape))
    cast = jax.tree.map(lambda z: z.astype(dtype), (params, carry, xs, d_carry, d_hs))
    return Case(row, *cast)


def every_case(f):
    """Run a test for every cell and shape; it takes name, steps and batch."""
    f = pytest.mark.parametrize(("steps", "batch"), SHAPES, ids=lambda v: str(v).replace(" ", ""))(f)
    return pytest.mark.parametrize("name", CELLS)(f)

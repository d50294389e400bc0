"""A cell with recurrent noise and zoneout: its carry holds a PRNG key and a counter for each row."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from cases import H, I

import jax_bptt as jb


class Noisy(NamedTuple):
    h: jax.Array
    c: jax.Array
    key: jax.Array
    count: jax.Array


def init(key):
    return jb.elman(I, H).init(key)


def start(p, rows, impl="threefry2x32"):
    zeros = jnp.zeros((*rows, H), p.w_x.dtype)
    return Noisy(zeros, zeros, jax.random.split(jax.random.key(3, impl=impl), rows), jnp.zeros(rows, "int32"))


def step(p, s, x):
    """Noise on the sum, a slow trace c of h, and units that are held at random (zoneout)."""
    key, of_noise, of_units = jax.random.split(s.key, 3)
    z = x @ p.w_x + s.h @ p.w_h + p.b + 0.3 * jax.random.normal(of_noise, s.h.shape, s.h.dtype)
    c = 0.7 * s.c + jnp.sin(s.h) / (1 + s.count).astype(s.h.dtype)
    held = jax.random.bernoulli(of_units, 0.3, s.h.shape)
    return Noisy(jnp.where(held, s.h, jnp.tanh(z + c)), c, key, s.count + 1)


CELL = jb.step_cell(I, H, step, init, carry_type=Noisy, initial_carry=start)


def plain(_, p, s, x):
    """The step of any number of rows, of dicts."""
    of_rows = step
    for _ in range(x.ndim - 1):
        of_rows = jax.vmap(of_rows, (None, 0, 0))
    return of_rows(jb.Params(**p), Noisy(**s), x)._asdict()

"""The reaction that `simulator` simulates: two substances on a torus, after Gray & Scott."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

TIME_STEP = 0.1
NAMES = "F", "k", "D_u", "D_v"
TRUE = np.array([0.035, 0.060, 0.16, 0.08], np.float32)
UNIT = 0.05  # an unknown of 1 is a rate that is too large by 5 %
GUESS = np.array([2.0, -1.6, 2.0, -2.0], np.float32)

Fields = tuple[Array, Array]  # u and v, [N, N]


class Scan(Protocol):
    """jax.lax.scan, or what takes its place."""

    def __call__(
        self, f: Callable[[Fields, Any], tuple[Fields, Any]], init: Fields, xs: None, length: int
    ) -> tuple[Fields, Any]: ...


class Problem(NamedTuple):
    """(u_0, v_0), the last state that is known, and the steps between."""

    begin: Fields
    last: Fields
    steps: int

    def loss(self, scan: Scan) -> Callable[[Array, Fields], Array]:
        """E by the unknowns [4] and (u_0, v_0), where scan runs the simulation."""

        def error(unknown: Array, begin: Fields) -> Array:
            found = simulate(scan, rates(unknown), begin, self.steps)
            return sum((jnp.mean((a - b) ** 2) for a, b in zip(found, self.last, strict=True)), jnp.zeros(()))

        return error


def problem(cells: int, steps: int) -> Problem:
    """Two spots of v, and what becomes of them at the true rates."""
    begin = spots(cells)
    last = jax.jit(simulate, static_argnums=(0, 3))(jax.lax.scan, TRUE, begin, steps)
    return Problem(begin, last, steps)


def spots(cells: int) -> Fields:
    """u and v before the first step."""
    y, x = jnp.meshgrid(*2 * [jnp.arange(cells) * (64 / cells)], indexing="ij")
    both = jnp.exp(-((x - 30) ** 2 + (y - 34) ** 2) / 30) + 0.9 * jnp.exp(
        -((x - 40) ** 2 + (y - 26) ** 2) / 20
    )
    return 1 - 0.5 * both, 0.25 * both


def rates(unknown: ArrayLike) -> Array:
    """(F, k, D_u, D_v) of the unknowns, which are logarithms in units of 5 %."""
    return jnp.asarray(TRUE) * jnp.exp(UNIT * jnp.asarray(unknown))


def simulate(scan: Scan, p: Array, begin: Fields, steps: int) -> Fields:
    """The state after some steps."""
    last, _ = scan(lambda fields, _: (react(p, fields), None), begin, None, steps)
    return last


def react(p: Array, fields: Fields) -> Fields:
    """One step."""
    (feed, kill, spread_u, spread_v), (u, v) = p, fields
    made = u * v * v
    du = spread_u * laplacian(u) - made + feed * (1 - u)
    dv = spread_v * laplacian(v) + made - (feed + kill) * v
    return u + TIME_STEP * du, v + TIME_STEP * dv


def laplacian(z: Array) -> Array:
    """∇²z on a torus."""
    return sum((jnp.roll(z, way, axis) for way in (1, -1) for axis in (-2, -1)), -4 * z)


def nested(
    f: Callable[[Fields, Any], tuple[Fields, Any]], init: Fields, xs: None, length: int
) -> tuple[Fields, Any]:
    """Two scans of about √T steps: jax.checkpoint keeps the states between the inner ones, none in them."""
    inner = next(n for n in range(int(length**0.5), 0, -1) if length % n == 0)

    @jax.checkpoint
    def some(fields: Fields, _: None) -> tuple[Fields, Any]:
        return jax.lax.scan(f, fields, None, inner)

    return jax.lax.scan(some, init, None, length // inner)

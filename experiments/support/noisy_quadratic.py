"""SGD on the noisy quadratic of `learned_optimizer` in closed form: the second moments of its parameters.

θ ← θ − α h (θ − ε),  E ε² = 1/h, independent of θ      E θ² ← (1 − α h)² E θ² + α² h
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

CURVATURES = np.logspace(-3, 0, 20)  # h
NOISE = START = 1 / np.sqrt(CURVATURES)  # the deviation of ε, and θ_0
EARLY = 20.0  # steps after which the learning rate falls
PLANE = (-2.4, 1.0), (-0.5, 1.8)  # log α_0 and β of the maps
FINE = 81  # points of a map in each direction


def rates(schedule: Array, t: ArrayLike) -> Array:
    """α_t of the schedule (log α_0, β)."""
    return jnp.exp(schedule[0]) * (1 + jnp.asarray(t, schedule.dtype) / EARLY) ** -schedule[1]


def expected(steps: int, schedule: Array, window: int | None = None) -> Array:
    """E L_1..E L_T, [T]; with a window the moments at its beginning are constants for jax.grad."""

    def step(moments: Array, t: Array) -> tuple[Array, Array]:
        if window is not None:
            moments = jnp.where(t % window == 0, jax.lax.stop_gradient(moments), moments)
        rate = rates(schedule, t) * CURVATURES
        moments = (1 - rate) ** 2 * moments + rate**2 / CURVATURES
        return moments, jnp.mean(CURVATURES * moments)

    _, losses = jax.lax.scan(step, jnp.asarray(START**2, schedule.dtype), jnp.arange(steps))
    return losses


class Known(NamedTuple):
    """The expected meta loss at a schedule, its gradient, and the expected last loss."""

    mean: Array
    slope: Array
    last: Array


@functools.partial(jax.jit, static_argnums=(0, 2))
def exact(steps: int, schedule: Array, window: int | None = None) -> Known:
    """What is known of a schedule; the slope is that of truncation where there is a window."""

    def mean(schedule: Array) -> tuple[Array, Array]:
        losses = expected(steps, schedule, window)
        return losses.mean(), losses[-1]

    (value, last), slope = jax.value_and_grad(mean, has_aux=True)(schedule)
    return Known(value, slope, last)


class Exact(NamedTuple):
    """The expected meta loss over the plane, [β, log α_0], and its minimum."""

    losses: np.ndarray
    best: Array

    @classmethod
    def of(cls, steps: int) -> Exact:
        """The map, and from its lowest point Newton's method."""

        def mean(schedule: Array) -> Array:
            return expected(steps, schedule).mean()

        across, up = (np.linspace(*ends, FINE) for ends in PLANE)
        points = np.stack(np.meshgrid(across, up), -1).reshape(-1, 2)
        losses = np.asarray(jax.jit(jax.vmap(mean))(points))
        slope, curvature = jax.jit(jax.grad(mean)), jax.jit(jax.hessian(mean))
        best = jnp.asarray(points[np.nanargmin(losses)])
        for _ in range(20):
            best -= jnp.linalg.solve(curvature(best), slope(best))
        return cls(losses.reshape(FINE, FINE), best)

"""The body of a scan as a recurrence: it reads and returns a carry, and hands out outputs of its own.

    (s_t, y_t) = step(params, s_{t−1}, x_t)        params: what the body reads from outside, such as weights

Unlike the step of a cell it is not mapped over rows: it is called with the whole carry. Carry, inputs and
parameters are tuples of arrays of any dtype; the arrays have the order of the leaves of the user's trees.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple, TypeAlias

from jax import Array

Leaves: TypeAlias = tuple[Array, ...]


class Body(NamedTuple):
    """A body is a step of any kind, made by `jb.scan` for one call.

    Attributes:
      step: (params, s_prev, x) -> (s, own); own are those outputs that are not leaves of s.
      branches: whether it chooses between branches by what differs from step to step (jax.lax.cond). Mapped
        over steps it would run all of them, and a derivative of a branch not taken may be infinite.
      emission: the `Emission` that says which outputs are leaves of s.
      engine: as for `Cell`.
    """

    step: Callable[[Leaves, Leaves, Leaves], tuple[Leaves, Leaves]]
    branches: bool
    emission: Hashable
    engine: Hashable | None = None

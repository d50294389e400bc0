"""The body of a scan is a recurrence: it reads and returns a carry, and hands out outputs of its own.

    (s_t, o_t) = step(params, s_{t−1}, x_t)        params: what the body reads from outside, such as weights

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
      step: (params, s_prev, x) -> (s, own); own is o_t, the outputs that are not leaves of s.
      silent_step: the same without what only prints or calls the host, for the backward pass, which runs
        steps again.
      in_order: whether its steps must run one at a time, because jax.vmap over steps would change them. It
        would run all branches of a jax.lax.cond on what differs from step to step, and the derivative of a
        branch that is not taken may be infinite. Keys of another kind than threefry would draw other numbers.
      calls_host: whether silent_step still has an effect, such as a jax.experimental.io_callback whose result
        it uses, or reads a jax.new_ref; the backward pass must not repeat that.
      is_small: whether a step is few operations without effects, so that a program may hold several steps.
      emission: the `Emission` that says which outputs are leaves of s.
      engine: as for `Cell`.
    """

    step: Callable[[Leaves, Leaves, Leaves], tuple[Leaves, Leaves]]
    silent_step: Callable[[Leaves, Leaves, Leaves], tuple[Leaves, Leaves]]
    in_order: bool
    calls_host: bool
    is_small: bool
    emission: Hashable
    engine: Hashable | None = None

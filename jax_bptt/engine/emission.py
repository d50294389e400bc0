"""An emission says what a step hands out: a part of its state, or outputs of its own beside the state.

    y_t = parts of s_t, and o_t                         (s_t, o_t) = step(s̃_{t−1}, x_t)
    dE/dy_t is a part of G_t where y_t is a part of s_t, and of dE/do_t elsewhere

o_t feeds no later step, so its derivative goes back through step t alone. In the code o_t is called own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Protocol

from jax_bptt.base.trees import add_to_h, plus
from jax_bptt.base.types import ArrayTree


class Emitting(Protocol):
    """A cell, or the body of a scan."""

    @property
    def emission(self) -> Hashable | None:
        """This is its `Emission`, or None."""


class Emission(NamedTuple):
    """These functions work on one step, or on arrays with one more axis in front.

    Attributes:
      read: (s_t, o_t) -> y_t.
      to_state: (λ_t, dE/dy_t) -> λ_t with what it gets of dE/dy_t, which is G_t.
      to_own: dE/dy_t -> dE/do_t.
    """

    read: Callable[[Any, ArrayTree], Any]
    to_state: Callable[[Any, Any], Any]
    to_own: Callable[[Any], Any]


def _nothing(d_y: ArrayTree) -> tuple[()]:
    """A cell has no outputs beside its state."""
    return ()


H = Emission(lambda s, own: s.h, add_to_h, _nothing)
STATES = Emission(lambda s, own: s, plus, _nothing)


def emission_of(cell: Emitting) -> Emission:
    """What does a step of this cell hand out? h, if the cell says nothing else."""
    found: Emission = cell.emission or H  # type: ignore[assignment]
    return found


def of_leaves(places: tuple[int | None, ...]) -> Emission:
    """The outputs are a tuple; places says which leaf of the state each one is, or None for a part of o_t."""

    def read(s: tuple[Any, ...], own: tuple[Any, ...]) -> tuple[Any, ...]:
        rest = iter(own)
        return tuple(next(rest) if place is None else s[place] for place in places)

    def to_state(lam: tuple[Any, ...], d_y: tuple[Any, ...]) -> tuple[Any, ...]:
        found = list(lam)
        for place, d in zip(places, d_y, strict=True):
            if place is not None and d is not None:
                found[place] = found[place] + d
        return tuple(found)

    def to_own(d_y: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(d for place, d in zip(places, d_y, strict=True) if place is None)

    return Emission(read, to_state, to_own)

"""The types of what travels, each named once.

A tree is anything that jax.tree can take apart: a NamedTuple of arrays, a dict of them, one array. Most
functions of the house take trees whose exact type the user chose, so a type says what a tree is for; where
a function returns the same kind of tree that it was given, a type variable says so.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
from chex import ArrayTree as ArrayTree
from chex import PRNGKey as PRNGKey
from jax import Array

Tree = TypeVar("Tree")  # a tree that comes back as the same kind of tree
P = TypeVar("P")  # the parameters of a cell
S = TypeVar("S", bound="State")  # the carry of a cell

Shape: TypeAlias = tuple[int, ...]  # of the batch axes, such as (32,), or () for none
Mark: TypeAlias = Array | None  # bool [T, ...] or [...]; None where it is the same everywhere
Gates: TypeAlias = tuple[Array, ...]  # G arrays, one per gate, each shaped like h
Units: TypeAlias = dict[str, Array]  # unit-wise parameters by name, shaped to broadcast against h
Slopes: TypeAlias = ArrayTree  # a_t: what the derivative of a step needs, as arrays
Targets: TypeAlias = Any  # whatever the loss takes
Foreign: TypeAlias = Any  # what a user passed, before it is checked
DType: TypeAlias = np.dtype[Any]


class State(Protocol):
    """The carry of a cell: a NamedTuple of arrays whose field h is what the cell emits."""

    @property
    def h(self) -> Array:
        """h_t, [..., H]."""


class PointwiseParams(Protocol):
    """The parameters of a cell with a pointwise step: a NamedTuple; more fields are unit-wise."""

    @property
    def w_x(self) -> Array:
        """[I, G*H]."""

    @property
    def w_h(self) -> Array:
        """[H, G*H], or [H] where there is no recurrent product."""

    @property
    def b(self) -> Array:
        """[G*H]."""

    def _asdict(self) -> dict[str, Any]: ...

"""These are the types that many modules share.

A tree is anything that jax.tree can take apart: a NamedTuple of arrays, a dict of them, one array. The user
chooses the exact type of most trees, so a type name here says what a tree is for. A type variable marks a
function that returns the same kind of tree that it was given.
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

Shape: TypeAlias = tuple[int, ...]  # the batch axes, such as (32,), or () for none
Mark: TypeAlias = Array | None  # bool [T, ...] or [...]; None means the default at every step
Weight: TypeAlias = Array | None  # floating [T, ...] or [...]: how much a step counts in a loss; None means 1
Gates: TypeAlias = tuple[Array, ...]  # G arrays, one per gate, each shaped like h
Units: TypeAlias = dict[str, Array]  # unit-wise parameters by name, shaped to broadcast against h
Slopes: TypeAlias = ArrayTree  # a_t: the arrays that the derivative of a step needs
Targets: TypeAlias = Any  # whatever the loss takes
Foreign: TypeAlias = Any  # what a user passed, before it is checked
DType: TypeAlias = np.dtype[Any]


class State(Protocol):
    """The carry of a cell is a NamedTuple of arrays whose field h is the output of the cell."""

    @property
    def h(self) -> Array:
        """The output h_t is [..., H]."""


class PointwiseParams(Protocol):
    """The parameters of a pointwise cell are a NamedTuple, whose other fields its `Layout` explains."""

    @property
    def w_x(self) -> Array:
        """The input weights are [I, G*H]."""

    @property
    def w_h(self) -> Array:
        """The recurrent weights are [H, G*H], or of heads [n, H/n, G*H/n], or [H] without a product."""

    def _asdict(self) -> dict[str, Any]: ...

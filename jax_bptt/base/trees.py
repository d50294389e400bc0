"""Arithmetic on trees of arrays, and on the carry of a cell, leaf by leaf.

A function here returns the type of tree that it was given, which those of optax.tree do not say.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.types import ArrayTree, DType, Mark, S, State, Tree

_R = TypeVar("_R")


def zeros_like(tree: Tree) -> Tree:
    """Zeros of the shapes and dtypes of a tree."""
    return jax.tree.map(jnp.zeros_like, tree)


def plus(a: Tree, b: Tree) -> Tree:
    """a + b, leaf by leaf."""
    return jax.tree.map(jnp.add, a, b)


def dot(a: ArrayTree, b: ArrayTree) -> Array:
    """The inner product of two trees, a scalar."""
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)), jnp.zeros((), jax.tree.leaves(a)[0].dtype))


def num_parameters(weights: ArrayTree) -> int:
    """How many numbers there are in all arrays of a tree, or in their shapes."""
    return sum(w.size for w in jax.tree.leaves(weights))


def sum_over_first_axis(tree: Tree) -> Tree:
    """Each leaf summed over its first axis."""
    return jax.tree.map(lambda z: z.sum(0), tree)


def select(where: Mark, chosen: Tree, other: Tree) -> Tree:
    """chosen in the rows where it is True, other elsewhere, leaf by leaf; chosen where there is None."""
    if where is None:
        return chosen
    return jax.tree.map(lambda a, b: jnp.where(trailing(where, a), a, b), chosen, other)


def trailing(where: Array, like: Array) -> Array:
    """where with axes of length one after its own, up to the rank of like."""
    return where.reshape(where.shape + (1,) * (like.ndim - where.ndim))


def vmap_leading(axes: int, f: Callable[..., _R]) -> Callable[..., _R]:
    """f mapped over this many leading axes of all its arguments."""
    return functools.reduce(lambda g, _: jax.vmap(g), range(axes), f)


def flipped(tree: Tree) -> Tree:
    """Arrays [T, ...] with the last step first."""
    return jax.tree.map(lambda z: jnp.flip(z, 0), tree)


def last_step(tree: Tree) -> Tree:
    """Step T of arrays [T, ...]."""
    return jax.tree.map(lambda z: z[-1], tree)


def wide(dtype: DType) -> DType:
    """The dtype itself, or float32 for a shorter one: for sums of many parts and for decompositions."""
    return jnp.dtype(jnp.float32) if jnp.dtype(dtype).itemsize < 4 else dtype


def with_fields(tree: Tree, **fields: Any) -> Tree:
    """A NamedTuple with some of its fields replaced."""
    return tree._replace(**fields)  # type: ignore[attr-defined]


def add_to_h(state: S, d_h: Array) -> S:
    """The state with d_h added to its field h."""
    return with_fields(state, h=state.h + d_h)


def only_h(h: Array, like: S) -> S:
    """A state of zeros but for this h."""
    return with_fields(zeros_like(like), h=h)


def squares_of_rows(state: State) -> Array:
    """‖s‖² of each row, [...] from leaves [..., *]."""
    axes = state.h.ndim - 1
    squares = (jnp.square(z).sum(tuple(range(axes, z.ndim))) for z in jax.tree.leaves(state))
    return sum(squares, jnp.zeros(state.h.shape[:axes], state.h.dtype))


def norm_of_rows(state: State) -> Array:
    """‖s‖ of each row over all fields of the state: [...] from leaves [..., *].

    Of s over its largest number: the square of one that explodes would be infinite.
    """
    axes = state.h.ndim - 1
    largest = [jnp.abs(z).max(tuple(range(axes, z.ndim)), initial=0) for z in jax.tree.leaves(state)]
    scale = jax.lax.stop_gradient(functools.reduce(jnp.maximum, largest))
    scale = jnp.where((scale > 0) & jnp.isfinite(scale), scale, jnp.ones_like(scale))
    return scale * root(squares_of_rows(jax.tree.map(lambda z: z / trailing(scale, z), state)))


def root(squares: Array) -> Array:
    """The square root, with derivative zero at zero, where it has none: norms are differentiated, too."""
    above = squares > 0
    return jnp.where(above, jnp.sqrt(jnp.where(above, squares, jnp.ones_like(squares))), squares)

"""These functions do arithmetic on trees of arrays, and on the carry of a cell, leaf by leaf.

Their types say that a function returns the kind of tree that it was given; the types of optax.tree do not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_bptt.base.types import ArrayTree, DType, Mark, S, State, Tree

_R = TypeVar("_R")


def zeros_like(tree: Tree) -> Tree:
    """The result has zeros in the shapes and dtypes of a tree."""
    return jax.tree.map(jnp.zeros_like, tree)


def differentiable(tree: ArrayTree) -> Any:
    """The tree with None in place of each leaf that has no derivative: integers, bools and PRNG keys."""
    return jax.tree.map(lambda z: z if jnp.issubdtype(z.dtype, jnp.inexact) else None, tree)


def fixed_part(tree: ArrayTree) -> Any:
    """The tree with None in place of each leaf that has a derivative, the others of `differentiable`."""
    return jax.tree.map(lambda z: None if jnp.issubdtype(z.dtype, jnp.inexact) else z, tree)


def merged(tree: ArrayTree, others: Tree) -> Tree:
    """The tree, with the leaf of others in place of each None."""
    found: Tree = jax.tree.map(
        lambda z, other: other if z is None else z, tree, others, is_leaf=lambda z: z is None
    )
    return found


def plus(a: Tree, b: Tree) -> Tree:
    """The sum a + b is taken leaf by leaf."""
    return jax.tree.map(jnp.add, a, b)


def dot(a: ArrayTree, b: ArrayTree) -> Array:
    """The inner product of two trees is a scalar."""
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)), jnp.zeros((), jax.tree.leaves(a)[0].dtype))


def num_parameters(weights: ArrayTree) -> int:
    """How many numbers do all arrays of a tree hold? Their shapes are enough to know."""
    return sum(w.size for w in jax.tree.leaves(weights))


def sum_over_first_axis(tree: Tree) -> Tree:
    """Each leaf is summed over its first axis."""
    return jax.tree.map(lambda z: z.sum(0), tree)


def select(where: Mark, chosen: Tree, other: Tree) -> Tree:
    """Each row comes from chosen where `where` is True, else from other; None stands for True."""
    if where is None:
        return chosen
    return jax.tree.map(lambda a, b: jnp.where(trailing(where, a), a, b), chosen, other)


def spread(mark: Array, like: Tree) -> Tree:
    """A mark of rows becomes one for each number of a tree."""
    return jax.tree.map(lambda z: jnp.broadcast_to(trailing(mark, z), z.shape), like)


def times_rows(factor: Array, tree: Tree) -> Tree:
    """Each row of every leaf is multiplied by its factor."""
    return jax.tree.map(lambda z: trailing(factor, z).astype(z.dtype) * z, tree)


def trailing(where: Array, like: Array) -> Array:
    """`where` gets axes of length one at its end, up to the rank of like."""
    return where.reshape(where.shape + (1,) * (like.ndim - where.ndim))


def vmap_leading(axes: int, f: Callable[..., _R]) -> Callable[..., _R]:
    """The result maps f over this many leading axes of all its arguments."""
    return functools.reduce(lambda g, _: jax.vmap(g), range(axes), f)


def apart(tree: Tree, others: ArrayTree) -> Tree:
    """The tree, with a copy of each array that is itself one of others: a step may overwrite both."""
    taken = set(map(id, jax.tree.leaves(others)))
    return jax.tree.map(lambda z: jnp.copy(z) if id(z) in taken else z, tree)


def flipped(tree: Tree) -> Tree:
    """Arrays [T, ...] are reversed in time: the last step comes first."""
    return jax.tree.map(lambda z: jnp.flip(z, 0), tree)


def common_dtype(tree: ArrayTree) -> DType:
    """This is the narrowest dtype that holds the numbers of all leaves; float32 without leaves."""
    dtypes = [z.dtype for z in jax.tree.leaves(tree)] or [jnp.dtype(jnp.float32)]
    with jax.numpy_dtype_promotion("standard"):  # the cast to this dtype is explicit
        return functools.reduce(jnp.promote_types, dtypes)


def to_vector(tree: ArrayTree, axes: int = 0, dtype: DType | None = None) -> Array:
    """Leaves [..., *] with this many leading axes become one array [..., n], of their `common_dtype`."""
    leaves, dtype = jax.tree.leaves(tree), dtype or common_dtype(tree)
    if not leaves:
        return jnp.zeros(0, dtype)
    flat = (z.reshape(*z.shape[:axes], math.prod(z.shape[axes:])) for z in leaves)
    return jnp.concatenate([z.astype(dtype) for z in flat], -1)


def from_vector(z: Array, like: Tree) -> Tree:
    """An array [..., n] becomes a tree again; the leaves of like end in the shapes that they had."""
    leaves, structure = jax.tree.flatten(like)
    shapes = [leaf.shape[z.ndim - 1 :] for leaf in leaves]
    parts = jnp.split(z, np.cumsum([math.prod(shape) for shape in shapes])[:-1], -1) if leaves else []
    made = (
        part.reshape(*z.shape[:-1], *shape).astype(leaf.dtype)
        for part, shape, leaf in zip(parts, shapes, leaves, strict=True)
    )
    found: Tree = jax.tree.unflatten(structure, made)
    return found


def last_step(tree: Tree) -> Tree:
    """The result is step T of arrays [T, ...]."""
    return jax.tree.map(lambda z: z[-1], tree)


def wide(dtype: DType) -> DType:
    """A dtype shorter than float32 becomes float32, for sums of many terms and for decompositions."""
    return jnp.dtype(jnp.float32) if jnp.dtype(dtype).itemsize < 4 else dtype


def with_fields(tree: Tree, **fields: Any) -> Tree:
    """The result is a NamedTuple with some of its fields replaced."""
    return tree._replace(**fields)  # type: ignore[attr-defined]


def add_to_h(state: S, d_h: Array) -> S:
    """d_h is added to the field h of the state."""
    return with_fields(state, h=state.h + d_h)


def only_h(h: Array, like: S) -> S:
    """The result is a state with this h and zeros in all other fields."""
    return with_fields(zeros_like(like), h=h)


def norm_of(tree: ArrayTree, axes: int = 0) -> Array:
    """The result is ‖z‖ over all leaves of a tree and all but their first axes: [...] from leaves [..., *].

    m = max |z|,   ‖z‖ = m √Σ (z/m)²

    Unlike z², the square of z/m neither overflows nor vanishes where ‖z‖ is a float. The norm of a dtype
    shorter than float32 is a float32. At zero its derivative is zero.
    """
    parts = [p for z in jax.tree.leaves(tree) for p in ((z.real, z.imag) if jnp.iscomplexobj(z) else (z,))]
    dtype = wide(common_dtype(parts))
    leaves = [z.astype(dtype) for z in parts]
    inner = [tuple(range(axes, z.ndim)) for z in leaves]
    # the norm does not depend on m, so no derivative needs to go through it
    largest = [
        jnp.abs(jax.lax.stop_gradient(z)).max(a, initial=0) for z, a in zip(leaves, inner, strict=True)
    ]
    m = functools.reduce(jnp.maximum, largest)
    m = jnp.where((m > 0) & jnp.isfinite(m), m, jnp.ones_like(m))
    squares = [jnp.square(z / trailing(m, z)).sum(a) for z, a in zip(leaves, inner, strict=True)]
    return m * _root(functools.reduce(jnp.add, squares))


def norm_of_rows(state: State) -> Array:
    """The result is ‖s‖ of each row over all fields of the state: [...] from leaves [..., *]."""
    # the carry of a scan's body is a plain tuple, and all of it counts as one row
    return norm_of(state, state.h.ndim - 1 if hasattr(state, "h") else 0)


def norm_of_both(a: Array, b: Array) -> Array:
    """The result is √(a² + b²), entry by entry: the norm of two parts is made from their norms."""
    return norm_of(jnp.stack([a, b], -1), a.ndim)


def divided(tree: Tree, norm: Array) -> Tree:
    """The tree is divided by its norm, [...] for leaves [..., *]; a tree of zeros stays as it is."""
    above = jnp.where(norm > 0, norm, jnp.ones_like(norm))
    return jax.tree.map(lambda z: z.astype(norm.dtype) / trailing(above, z), tree)


def _root(squares: Array) -> Array:
    """This square root has derivative zero at zero, where √ has none: norms are differentiated, too."""
    above = squares > 0
    # the inner where keeps the infinite slope of √0 out of the gradient: 0 times infinity is NaN
    return jnp.where(above, jnp.sqrt(jnp.where(above, squares, jnp.ones_like(squares))), squares)

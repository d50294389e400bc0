"""Checks of single arguments: each returns the value as the library uses it, or raises a ValueError."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jax_bptt.base.errors import bad, describe, shown
from jax_bptt.base.types import DType, Foreign, Tree

_T = TypeVar("_T")


def size(argument: str, value: object) -> int:
    """A size as a Python int of at least 1."""
    fix = "pass a positive Python integer, of 31 bits"
    return _integer(argument, "an integer >= 1", value, 1, 2**31 - 1, fix)


def integer(argument: str, value: object, least: int, most: int) -> int:
    """An integer from least to most as a Python int."""
    expected = f"an integer from {least} to {most}"
    return _integer(argument, expected, value, least, most, "pass a Python integer in this range")


def _integer(argument: str, expected: str, value: Foreign, least: int, most: int, fix: str) -> int:
    try:
        found = operator.index(value)
    except TypeError:
        raise bad(argument, expected, value, "pass a Python integer") from None
    if not least <= found <= most or isinstance(value, bool):
        raise bad(argument, expected, value, fix)
    return found


def number(argument: str, expected: str, value: Foreign) -> float:
    """A finite number as a Python float."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    try:
        found = float(value) if is_number else math.nan
    except OverflowError:  # a huge int
        found = math.inf
    if not math.isfinite(found):
        raise bad(argument, expected, value, "pass a finite Python number")
    return found


def or_none(check: Callable[[str, Foreign], _T]) -> Callable[[str, Foreign], _T | None]:
    """The check of an argument that may be None."""
    return lambda argument, value: None if value is None else check(argument, value)


def flag(argument: str, value: object) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise bad(argument, "True or False", value, "pass a bool")
    return value


def is_function(value: object) -> bool:
    """Whether it is a hashable function; a cell is none, though its call says how it is run."""
    return callable(value) and isinstance(value, Hashable) and not hasattr(value, "made_by")


def function(argument: str, value: Foreign) -> Callable[..., Any]:
    """A function that can be a key of a cache."""
    found: Callable[..., Any] = value
    if not is_function(value):
        raise bad(argument, "a hashable function", value, "see jb.Cell and jb.StepCell for what it takes")
    return found


def is_array(value: object) -> bool:
    """Whether it is an array, and not only a shape."""
    return isinstance(value, (jax.Array, np.ndarray))


def is_floating(value: Foreign) -> bool:
    """Whether it is an array of a floating dtype."""
    return is_array(value) and jnp.issubdtype(value.dtype, jnp.floating)


def is_numeric(value: Foreign) -> bool:
    """Whether it is an array of numbers or bools."""
    return is_array(value) and (jnp.issubdtype(value.dtype, jnp.number) or value.dtype == bool)


def as_arrays(tree: Tree) -> Tree:
    """NumPy arrays of numbers as JAX arrays, in JAX's precision; everything else as it is."""

    def as_array(z: object) -> Foreign:
        return jnp.asarray(z) if isinstance(z, np.ndarray) and is_numeric(z) else z

    return jax.tree.map(as_array, tree)


def check_key(key: Foreign) -> None:
    """ValueError unless key is one PRNG key, of jax.random.key or the older raw kind."""
    dtype = key.dtype if is_array(key) else None
    if dtype is None or not (jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == jnp.uint32):
        raise bad("key", "a PRNG key", key, "make one by jax.random.key(seed)")
    if key.ndim != (1 if dtype == jnp.uint32 else 0):
        raise bad("key", "one PRNG key", key, "pass one of the keys of jax.random.split")


def check_batch_shape(batch_shape: object) -> None:
    """ValueError unless batch_shape is a tuple of positive ints."""
    if not isinstance(batch_shape, tuple):
        expected = "a tuple such as (32,), or () for no batch axis"
        raise bad("batch_shape", expected, batch_shape, "wrap it in a tuple")
    for n in batch_shape:
        size("batch_shape", n)


def check_like(argument: str, tree: object, expected: object, dtype: DType | None, fix: str) -> None:
    """ValueError unless tree is like expected in structure and shapes, and of this dtype if not None."""
    came: Any = jax.tree.structure(tree)
    structure: Any = jax.tree.structure(expected)
    if came != structure:
        raise bad(argument, describe(expected), tree, fix)
    for (path, leaf), wanted in zip(
        jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(expected), strict=True
    ):
        name = argument + jax.tree_util.keystr(path)
        if not (is_array(leaf) or leaf is wanted) or leaf.shape != wanted.shape:
            raise bad(name, f"shape [{shown(wanted.shape)}]", leaf, fix)
        if dtype is not None and leaf.dtype != dtype:
            raise bad(name, f"{dtype}, one dtype throughout", leaf, f"cast it by astype({str(dtype)!r})")

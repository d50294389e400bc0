"""Each check here takes one argument and returns it as the library uses it, or raises a ValueError."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim

from jax_bptt.base.errors import bad, describe, shown
from jax_bptt.base.types import DType, Foreign, Tree

_T = TypeVar("_T")


def size(argument: str, value: object) -> int:
    """A size is a Python int from 1 to 2**31 - 1."""
    fix = "pass a Python integer from 1 to 2**31 - 1"
    return _integer(argument, "an integer >= 1", value, 1, 2**31 - 1, fix)


def is_known(size: Foreign) -> bool:
    """Is the length of an axis a number? In jax.export it may be a symbol, which stands for any number."""
    return not is_symbolic_dim(size)


def integer(argument: str, value: object, least: int, most: int) -> int:
    """The argument must be an integer from least to most; it is returned as a Python int."""
    expected = f"an integer from {least} to {most}"
    return _integer(argument, expected, value, least, most, "pass a Python integer in this range")


def _integer(argument: str, expected: str, value: Foreign, least: int, most: int, fix: str) -> int:
    try:
        found = operator.index(value)
    except TypeError:
        raise bad(argument, expected, _quoted(value), "pass a Python integer") from None
    if not least <= found <= most or isinstance(value, bool):
        raise bad(argument, expected, value, fix)
    return found


def number(argument: str, expected: str, value: Foreign) -> float:
    """The argument must be a finite number; it is returned as a Python float."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    try:
        found = float(value) if is_number else math.nan
    except OverflowError:  # an int that is too large for a float
        found = math.inf
    if not math.isfinite(found):
        raise bad(argument, expected, _quoted(value), "pass a finite Python number")
    return found


def positive(argument: str, expected: str, value: Foreign, fix: str) -> float:
    """The argument must be a finite number above 0; it is returned as a Python float."""
    found = number(argument, expected, value)
    if found <= 0:
        raise bad(argument, expected, value, fix)
    return found


def _quoted(value: object) -> object:
    """A word in quotes, so that it is not taken for a number; anything else as it is."""
    return repr(value) if isinstance(value, str) else value


def or_none(check: Callable[[str, Foreign], _T]) -> Callable[[str, Foreign], _T | None]:
    """The returned check lets None pass and gives every other value to `check`."""
    return lambda argument, value: None if value is None else check(argument, value)


def flag(argument: str, value: object) -> bool:
    """A flag is True or False; numbers and words are refused."""
    if not isinstance(value, bool):
        raise bad(argument, "True or False", value, "pass a Python bool, not a number or a word")
    return value


def is_hashable(value: object) -> bool:
    """Whether it can be a key of a cache, and all that it holds."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


def is_function(value: object) -> bool:
    """Whether it is a hashable function; a cell is none, though its call says how it is run."""
    return callable(value) and not hasattr(value, "made_by") and is_hashable(value)


def function(argument: str, value: Foreign) -> Callable[..., Any]:
    """The argument must be a function that is hashable, so that it can be a key of the cache."""
    found: Callable[..., Any] = value
    if not is_function(value):
        raise bad(argument, "a hashable function", value, "jb.Cell and jb.StepCell list its arguments")
    return found


def is_array(value: object) -> bool:
    """Is this a JAX array, or one of NumPy that JAX takes? A jax.ShapeDtypeStruct is not."""
    return isinstance(value, jax.Array) or (isinstance(value, np.ndarray) and not _cure(value))


def _cure(value: Foreign) -> str:
    """How does one make an array that JAX takes? The answer is empty where nothing is to be done."""
    if isinstance(value, np.ma.MaskedArray):
        return "fill in what is masked: x.filled(0)"
    if isinstance(value, jax.ShapeDtypeStruct):
        return "pass an array; jax.eval_shape runs a function on shapes alone"
    if not isinstance(value, (np.ndarray, np.generic)):
        is_foreign = hasattr(value, "__array__") and not isinstance(value, (jax.Array, type))
        return "convert it by jnp.asarray(x)" if is_foreign else ""
    if value.dtype.char in "gG":  # what NumPy calls longdouble and clongdouble
        return f"cast it by x.astype({'float64' if value.dtype.char == 'g' else 'complex128'!r})"
    if not (jnp.issubdtype(value.dtype, jnp.number) or value.dtype == bool):
        return "pass numbers or bools of one dtype, such as x.astype('float32')"
    return "" if value.dtype.isnative else f"change its byte order by x.astype({value.dtype.name!r})"


def check_arrays(argument: str, tree: object) -> None:
    """A ValueError names an array in the tree that JAX cannot take, and says how to make one that it can."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if fix := _cure(leaf):
            kind = type(leaf)
            of_kind = "" if kind is np.ndarray else f"{kind.__module__}.{kind.__name__} "
            came = of_kind + describe(leaf)
            raise bad(argument + jax.tree_util.keystr(path), "an array that JAX takes", came, fix)


REUSED = (
    "a training step reuses the memory of the state that it is given: go on from the one that it returned; "
    "to keep a state, copy it by jax.tree.map(jnp.copy, state); to differentiate a step, give it donate=False"
)


def check_not_deleted(argument: str, tree: object) -> None:
    """A ValueError names an array in the tree whose memory a training step has reused."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer) and leaf.is_deleted():
            name = argument + jax.tree_util.keystr(path)
            raise bad(name, "an array", f"a deleted {describe(leaf)}", REUSED)


def is_floating(value: Foreign) -> bool:
    """Is this an array of a floating dtype?"""
    return is_array(value) and jnp.issubdtype(value.dtype, jnp.floating)


def is_other_key(dtype: Foreign) -> bool:
    """Are these PRNG keys of another kind than threefry? Under jax.vmap they draw other numbers."""
    return jnp.issubdtype(dtype, jax.dtypes.prng_key) and str(dtype) != "key<fry>"


def is_numeric(value: Foreign) -> bool:
    """Is this an array of numbers or bools?"""
    return is_array(value) and (jnp.issubdtype(value.dtype, jnp.number) or value.dtype == bool)


def as_arrays(argument: str, tree: Tree) -> Tree:
    """Arrays and scalars of NumPy become JAX arrays, in JAX's precision; everything else stays as it is.

    An array that JAX cannot take raises a ValueError, see `check_arrays`.
    """
    check_arrays(argument, tree)
    check_not_deleted(argument, tree)
    of_numpy = (np.ndarray, np.generic)
    return jax.tree.map(lambda z: jnp.asarray(z) if isinstance(z, of_numpy) else z, tree)


def check_key(key: Foreign) -> None:
    """key must be one PRNG key, of jax.random.key or of the older raw kind, or a ValueError is raised."""
    check_arrays("key", key)
    dtype = key.dtype if is_array(key) else None
    if dtype is None or not (jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == jnp.uint32):
        raise bad("key", "a PRNG key", key, "make one by jax.random.key(0)")
    if key.ndim != (1 if dtype == jnp.uint32 else 0):
        raise bad("key", "one PRNG key", key, "pass a single key, such as keys[0]")


def check_batch_shape(batch_shape: object) -> None:
    """batch_shape must be a tuple of sizes, which may be zero, or a ValueError is raised."""
    if not isinstance(batch_shape, tuple):
        expected = "a tuple such as (32,), or () for no batch axis"
        raise bad("batch_shape", expected, batch_shape, "write 32 rows as (32,)")
    for n in filter(is_known, batch_shape):
        integer("batch_shape", n, 0, 2**31 - 1)


def check_like(argument: str, tree: object, expected: object, dtype: DType | None, fix: str) -> None:
    """tree must have the structure and shapes of expected, and this dtype unless that is None.

    Leaves of expected that are no floating numbers keep their own dtype, such as that of a counter.

    Otherwise a ValueError is raised, which names the leaf.
    """
    came: Any = jax.tree.structure(tree)
    structure: Any = jax.tree.structure(expected)
    if came != structure:
        raise bad(argument, describe(expected), tree, fix)
    for (path, leaf), wanted in zip(
        jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(expected), strict=True
    ):
        name = argument + jax.tree_util.keystr(path)
        # a leaf filled in from expected is the same object; it is a shape, not an array
        if not (is_array(leaf) or leaf is wanted) or leaf.shape != wanted.shape:
            raise bad(name, f"shape [{shown(wanted.shape)}]", leaf, fix)
        if dtype is None:
            continue
        if not jnp.issubdtype(wanted.dtype, jnp.inexact):
            if leaf.dtype != wanted.dtype:
                raise bad(name, str(wanted.dtype), leaf, fix)
        elif leaf.dtype != dtype:
            raise bad(name, f"{dtype}, one dtype throughout", leaf, f"cast it by astype({str(dtype)!r})")

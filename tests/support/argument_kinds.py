"""For each kind of argument: how it is spoiled, and which spoiled values are right all the same."""

import math
import numbers
import operator
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jax_bptt as jb
from support import bad_values


class Kind(NamedTuple):
    """A kind of argument.

    Attributes:
      spoilt: from the right value, a strategy of spoiled ones.
      takes: (right value, spoiled one) -> whether a spoiled one may be taken.
      plain: what a value that is taken stands for.
      is_data: arrays, whose values change nothing in a compiled program.
    """

    spoilt: Callable[[Any], Any]
    takes: Callable[[Any, Any], bool]
    plain: Callable[[Any], Any] = lambda value: value
    is_data: bool = False


def only_wrong(kind: Kind) -> Kind:
    """The same, spoiled beyond use: where an answer takes long."""

    def spoilt(right):
        return kind.spoilt(right).filter(lambda value: not kind.takes(right, value))

    return kind._replace(spoilt=spoilt)


def or_none(kind: Kind) -> Kind:
    """The same, or None."""
    return kind._replace(
        takes=lambda right, value: value is None or kind.takes(right, value),
        plain=lambda value: None if value is None else kind.plain(value),
    )


def either(one: Kind, other: Kind) -> Kind:
    """What either of them takes."""
    return Kind(one.spoilt, lambda right, value: one.takes(right, value) or other.takes(right, value))


# Numbers, choices and objects


def number(within=lambda value: True) -> Kind:
    """A finite number."""

    def takes(right, value):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return False
        try:
            return math.isfinite(value) and within(float(value))
        except OverflowError:
            return False

    return Kind(bad_values.junk, takes, float)


def integer(least=1, most=2**31 - 1) -> Kind:
    """An integer, in whatever stands for one."""

    def takes(right, value):
        try:
            return not isinstance(value, bool) and least <= operator.index(value) <= most
        except TypeError:
            return False

    return Kind(bad_values.junk, takes, operator.index)


def thing(*types, within=lambda value: True) -> Kind:
    """An object of some types: any other of them is as right."""
    return Kind(bad_values.junk, lambda right, value: isinstance(value, types) and within(value))


def _is_function(right, value):
    return callable(value) and isinstance(value, Hashable)


def _is_number_of_rows(n):
    return isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**31


def _has_shapes(right, value):
    shaped = (jax.Array, np.ndarray, jax.ShapeDtypeStruct)
    return all(isinstance(leaf, shaped) for leaf in jax.tree.leaves(value))


def _is_dtype(right, value):
    return value is None or any(value is dtype for dtype in FLOATING)


FLOATING = ["bfloat16", "float32", float, jnp.bfloat16, jnp.float32]
SIZE, FLAG, SHARE = integer(), thing(bool), either(thing(bool), number(lambda share: 0 <= share <= 1))
SHAPES = Kind(bad_values.junk, _has_shapes)
MESH, STATE = thing(jax.sharding.Mesh), thing(jb.TrainState)
SHAPE = thing(tuple, within=lambda shape: all(map(_is_number_of_rows, shape)))
CELL, NET, LAYER = thing(type(jb.elman(3, 4)), jb.StepCell), thing(jb.Network), thing(jb.Layer)
READOUT, GRADIENT, NEWTON = thing(jb.Readout), thing(jb.GradientMethod), thing(jb.Newton)
FUNCTION, OPTIMIZER = Kind(bad_values.junk, _is_function), thing(optax.GradientTransformation)
ACTIVATION = either(FUNCTION, thing(str, within=("tanh", "relu", "sigmoid", "identity").__contains__))
BIAS = either(number(), thing(type(jb.chrono(9))))
CARRY_TYPE = thing(type, within=lambda value: "h" in getattr(value, "_fields", ()))
DTYPE = Kind(bad_values.junk, _is_dtype, lambda dtype: None if dtype is None else jnp.dtype(dtype))
NAMES = thing(tuple, list, within=lambda names: all(isinstance(name, str) for name in names))
LEVELS = Kind(
    bad_values.lists,
    lambda right, value: (
        isinstance(value, (list, tuple))
        and len(value) == len(right)
        and all(number(lambda level: 0 < level < 1).takes(None, level) for level in value)
    ),
)
CELLS = Kind(
    bad_values.lists,
    lambda right, value: (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(CELL.takes(None, c) or LAYER.takes(None, c) for c in value)
    ),
)


# Arrays and trees of them


def _array(value, *dtypes):
    is_array = isinstance(value, (np.ndarray, jax.Array)) and not isinstance(value, np.ma.MaskedArray)
    return is_array and any(jnp.issubdtype(value.dtype, dtype) for dtype in dtypes)


def _is_like(right, value):
    return _array(value, right.dtype)


def _is_key(right, value):
    old = _array(value, jnp.uint32) and value.shape == (*right.shape, 2)
    return old or (_array(value, jax.dtypes.prng_key) and value.shape == right.shape)


def _are_lengths(right, value):
    try:
        value = value if isinstance(value, jax.Array) else np.asarray(value)
    except ValueError:
        return False
    return _array(value, jnp.integer)


def _is_tree(right, value, leaf_takes=_is_like):
    leaves = jax.tree.leaves(right), jax.tree.leaves(value)
    same = jax.tree.structure(right) == jax.tree.structure(value)
    return same and all(map(leaf_takes, *leaves))


def _is_floating_tree(right, value):
    return _is_tree(right, value, lambda _, leaf: _array(leaf, jnp.floating))


def _has_numbers(right, value):
    leaves = jax.tree.leaves(value)
    floating = all(_array(leaf, jnp.float64) for leaf in leaves)
    return floating and sum(leaf.size for leaf in leaves) == sum(leaf.size for leaf in jax.tree.leaves(right))


def _has_leaves(right, value):
    """An RTRLState of the same leaves: without the cell no more is known."""
    same = _is_tree(jax.tree.leaves(right), jax.tree.leaves(value))
    return same and isinstance(value, jb.RTRLState) and _array(getattr(value.carry, "h", None), jnp.float64)


def _begins_floating(right, value):
    return any(_array(leaf, jnp.floating) for leaf in jax.tree.leaves(value)[:1])


def _is_batch(right, value):
    if not isinstance(value, jb.Batch):
        return False
    xs, targets, *marks, key, weight, starts = value
    data = _is_like(right.xs, xs) and _is_like(right.targets, targets) and MARK.takes(right.weight, weight)
    data = data and all(MARK.takes(right.mask, m) for m in marks) and CARRY.takes(right.starts, starts)
    return data and or_none(KEY).takes(right.key, key)


def _are_weights(right, value):
    """Floating numbers at the same names or places; a bias may be absent."""
    if isinstance(right, np.ndarray):
        try:
            return jnp.issubdtype(np.asarray(value).dtype, jnp.floating)
        except (TypeError, ValueError):
            return False
    if isinstance(right, dict):
        absent = {n for n in right if n.startswith("b") and isinstance(value, dict) and value.get(n) is None}
        names = right.keys() - absent
        return isinstance(value, dict) and all(_are_weights(right[n], value.get(n)) for n in names)
    is_list = isinstance(value, type(right) if hasattr(right, "_fields") else (list, tuple))
    return is_list and len(value) == len(right) and all(map(_are_weights, right, value))


def _data(spoilt, takes):
    return Kind(spoilt, takes, is_data=True)


def _some_count(right):
    return MARK.spoilt(right).filter(lambda mask: not _is_like(right, mask) or bool(mask.any()))


ARRAY, MARK = _data(bad_values.arrays, _is_like), or_none(_data(bad_values.arrays, _is_like))
FLOATS = _data(bad_values.arrays, lambda right, value: _array(value, jnp.floating))
MARK_OF_SOME = MARK._replace(spoilt=_some_count)  # of no step the mean is NaN
CLASSES = _data(bad_values.arrays, lambda right, value: _array(value, jnp.integer))
NUMBERS = _data(bad_values.arrays, lambda right, value: _array(value, jnp.number, jnp.bool_))
LENGTHS = Kind(bad_values.arrays, _are_lengths, jnp.asarray, True)
KEY = _data(bad_values.keys, _is_key)
TREE, CARRY = _data(bad_values.trees, _is_tree), or_none(_data(bad_values.trees, _is_tree))
COUNT, LEAVES = _data(bad_values.trees, _has_numbers), _data(bad_values.trees, _has_leaves)
DTYPE_OF = _data(bad_values.trees, _begins_floating)  # only their dtype is read
PARTS = Kind(bad_values.trees, lambda right, value: isinstance(value, tuple) and len(value) == len(right))
BATCH = _data(bad_values.trees, _is_batch)
FLOATING_TREE = or_none(Kind(bad_values.trees, _is_floating_tree))
WEIGHTS = Kind(bad_values.trees, _are_weights)

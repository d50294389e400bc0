"""Public functions that are compiled inside, so that a call without jax.jit is not slow.

Run operation by operation, a sequence of a small cell takes thousands of times as long as compiled. So each
public function that runs something is a jax.jit, one program for each shape; within a transformation of the
user's it is inlined, and leaves no trace there.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np

_P = ParamSpec("_P")
_R = TypeVar("_R")


def compiled(*static: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """A function as a jax.jit that is inlined in any other.

    Args:
      static: names of the arguments that are no arrays, such as a cell.

    Returns:
      The decorator. A call with anything but arrays in the other arguments, or with a static argument
      that cannot be hashed, runs the function as it is, so that its own checks can say what is wrong.

    >>> @compiled("power")
    ... def norm(x, power):
    ...     return (x**power).sum() ** (1 / power)
    >>> float(norm(jnp.array([3.0, 4.0]), power=2))
    5.0
    """

    def decorator(f: Callable[_P, _R]) -> Callable[_P, _R]:
        signature = inspect.signature(f)
        jitted = jax.jit(f, static_argnames=static, inline=True)

        @functools.wraps(f)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            arguments = signature.bind(*args, **kwargs).arguments
            arrays = [value for name, value in arguments.items() if name not in static]
            settings = [value for name, value in arguments.items() if name in static]
            is_ready = _are_hashable(settings) and all(map(_is_ready, jax.tree.leaves(arrays)))
            return (jitted if is_ready else f)(*args, **kwargs)

        return call

    return decorator


def _are_hashable(values: list[Any]) -> bool:
    try:
        hash(tuple(values))
    except TypeError:
        return False
    return True


def _is_ready(leaf: object) -> bool:
    """Whether jax.jit takes it: an array of numbers, bools or keys in the byte order of the machine."""
    if isinstance(leaf, np.ndarray):
        return leaf.dtype.kind in "biufc" and leaf.dtype.isnative
    return isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)

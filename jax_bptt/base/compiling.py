"""Public functions that are compiled inside, so that a call without jax.jit is not slow.

Run operation by operation, a sequence of a small cell takes thousands of times as long as compiled. So each
public function that runs something is a jax.jit, one program for each shape. Inside a transformation of the
user's (jit, grad, vmap, scan, shard_map) the function runs as it is, and nothing changes there.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Hashable
from typing import Any, Generic, ParamSpec, TypeVar

import jax
import numpy as np

from jax_bptt.base.checks import check_arrays, check_not_deleted, is_array
from jax_bptt.base.errors import named

_P = ParamSpec("_P")
_R = TypeVar("_R")

PROGRAMS = 32  # of each function: a program keeps its loss, and the arrays that the loss closes over


def compiled(*static: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """A function as a jax.jit, where it is given arrays and not traced values.

    Args:
      static: names of the arguments that are no arrays, such as a cell.

    Returns:
      The decorator. A call with anything but arrays in the other arguments, or with a static argument
      that cannot be hashed, runs the function as it is, so that its own checks can say what is wrong.
      What a loss or a cell reads from outside, such as a global, is fixed at its first call, as in any jit.

    >>> @compiled("power")
    ... def norm(x, power):
    ...     return (x**power).sum() ** (1 / power)
    >>> float(norm(jnp.array([3.0, 4.0]), power=2))
    5.0
    """

    def decorator(f: Callable[_P, _R]) -> Callable[_P, _R]:
        signature = inspect.signature(f)
        parameters = signature.parameters
        by_place = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
        defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
        settings = [name for name in parameters if name in static]
        arrays = [name for name in parameters if name not in static]

        @functools.lru_cache(maxsize=PROGRAMS, typed=True)  # with their types, since True == 1
        def program(*values: Hashable) -> Callable[..., _R]:
            fixed = dict(zip(settings, values, strict=True))
            return jax.jit(lambda *data: f(**fixed, **dict(zip(arrays, data, strict=True))))  # type: ignore

        @functools.wraps(f)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            # as signature.bind does, which takes as long as a small program
            given = {**defaults, **dict(zip(by_place, args, strict=False)), **kwargs}
            is_twice = not kwargs.keys().isdisjoint(by_place[: len(args)])
            if given.keys() != parameters.keys() or len(args) > len(by_place) or is_twice:
                signature.bind(*args, **kwargs)  # raises the TypeError of this call
            data = [given[name] for name in arrays]
            if not all(map(_is_ready, jax.tree.leaves(data))):
                return f(*args, **kwargs)
            try:
                run = program(*[given[name] for name in settings])
            except TypeError:  # one of them cannot be hashed
                return f(*args, **kwargs)
            return run(*data)

        return call

    return decorator


class Jitted(Generic[_P, _R]):
    """A function of arrays as a jax.jit, which names an array that JAX cannot take, or one that is deleted.

    Args:
      f: the function.
      options: those of jax.jit.
    """

    def __init__(self, f: Callable[_P, _R], **options: Any) -> None:
        self._jitted = jax.jit(f, **options)
        functools.update_wrapper(self, f)

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            found: _R = self._jitted(*args, **kwargs)
        except (TypeError, ValueError, RuntimeError) as error:  # of f, or of jax.jit before f ran
            given = dict(zip(inspect.signature(self).parameters, args, strict=False))
            # a run that failed for another reason has deleted what it was given, too
            checks = (check_arrays, check_not_deleted) if "deleted" in str(error) else (check_arrays,)
            for check in checks:
                for name, tree in (given | kwargs).items():
                    named(self.__name__)(check)(name, tree)
            raise
        return found

    def __getattr__(self, name: str) -> Any:
        """What else a jax.jit has, such as `lower`."""
        if name.startswith("__"):  # asked by copy, before there is a `_jitted`
            raise AttributeError(name)
        return getattr(self._jitted, name)


def _is_ready(leaf: object) -> bool:
    """Whether jax.jit takes it: an array, not traced or deleted, or a bool of NumPy (a mark of one row)."""
    if isinstance(leaf, jax.Array):
        return not isinstance(leaf, jax.core.Tracer) and not leaf.is_deleted()
    return isinstance(leaf, np.bool_) or is_array(leaf)

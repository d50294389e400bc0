"""Factories that return the same object for the same arguments, so that nothing is traced anew."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Hashable
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")


def cached(**checks: Callable[[str, Any], Any]) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """The same object for the same arguments, whether they are given by name or by place.

    Args:
      checks: for each argument that needs one a function (its name, its value) -> the value as the factory
        and the cache see it; it raises the ValueError of a wrong value.

    Returns:
      The decorator of a factory. Arguments that cannot be hashed go to the factory uncached.

    >>> @cached(size=lambda name, value: int(value))
    ... def box(size, lid=None):
    ...     return object()
    >>> box(3) is box(size=3.0, lid=None)
    True
    """

    def decorator(factory: Callable[_P, _R]) -> Callable[_P, _R]:
        signature = inspect.signature(factory)
        remembered = functools.lru_cache(maxsize=256, typed=True)(factory)

        @functools.wraps(factory)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError:
                return factory(*args, **kwargs)  # so that Python itself says what is missing, and of what
            bound.apply_defaults()
            bound.arguments |= {name: check(name, bound.arguments[name]) for name, check in checks.items()}
            hashable = all(isinstance(v, Hashable) for v in bound.arguments.values())
            return (remembered if hashable else factory)(*bound.args, **bound.kwargs)

        return call

    return decorator

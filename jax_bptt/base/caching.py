"""Factories that give the same object for the same arguments, so that nothing is traced anew."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Hashable
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")


def cached(factory: Callable[_P, _R]) -> Callable[_P, _R]:
    """The same object for the same arguments, given by name or by place, so that nothing recompiles."""
    signature = inspect.signature(factory)
    remembered = functools.lru_cache(maxsize=256, typed=True)(factory)

    @functools.wraps(factory)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        hashable = all(isinstance(v, Hashable) for v in bound.arguments.values())
        return (remembered if hashable else factory)(*bound.args, **bound.kwargs)

    return call

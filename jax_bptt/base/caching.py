"""Factories that return the same object for the same arguments, so that nothing is traced anew."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from jax_bptt.base.checks import is_hashable
from jax_bptt.base.errors import named
from jax_bptt.base.made import Call

_P = ParamSpec("_P")
_R = TypeVar("_R")


def cached(**checks: Callable[[str, Any], Any]) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """The same object for the same arguments, whether they are given by name or by place.

    An object with a field `made_by` remembers the call, see `made`; of factories that call each other it
    is that of the outermost.

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

        def defaults() -> dict[str, Any]:
            given = {n: p.default for n, p in signature.parameters.items() if p.default is not p.empty}
            return {n: checks[n](n, value) if n in checks else value for n, value in given.items()}

        def make(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            result = factory(*args, **kwargs)
            if "made_by" not in getattr(result, "_fields", ()):
                return result  # of a class that remembers no call
            before: Call | None = result.made_by  # type: ignore[attr-defined]
            if before is not None and before.factory is call and not before.replaced:
                return result  # this factory has made it for other arguments, which mean the same
            arguments = signature.bind(*args, **kwargs).arguments
            made_by = Call(call, tuple(arguments.items()), tuple(defaults().items()))
            return result._replace(made_by=made_by)  # type: ignore[attr-defined]

        remembered = functools.lru_cache(maxsize=256, typed=True)(make)

        @named()
        @functools.wraps(factory)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            bound.arguments |= {name: check(name, bound.arguments[name]) for name, check in checks.items()}
            make_or_remember = remembered if is_hashable(tuple(bound.arguments.values())) else make
            return make_or_remember(*bound.args, **bound.kwargs)

        return call

    return decorator

"""A value that remembers the call that made it: so it is printed, copied and pickled.

A cell is a tuple of sizes and functions, most of them made inside a factory: to print them says nothing, and
they cannot be pickled. Its call, `lstm(3, 5)`, says all, and called again it returns the same object.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from jax_bptt.base.errors import describe

_T = TypeVar("_T")


class Call(NamedTuple):
    """A call of a cached factory, and what has been replaced in its result since.

    Attributes:
      factory: the function.
      arguments: every argument by its name, as the factory saw it.
      defaults: the default of each argument that has one.
      replaced: fields of the result with their new values.
    """

    factory: Callable[..., Any]
    arguments: tuple[tuple[str, Any], ...]
    defaults: tuple[tuple[str, Any], ...]
    replaced: tuple[tuple[str, Any], ...] = ()

    def __repr__(self) -> str:
        optional = dict(self.defaults)
        given = [
            f"{name}={_shown(value)}" if name in optional else _shown(value)
            for name, value in self.arguments
            if name not in optional or value != optional[name]
        ]
        replaced = ", ".join(f"{name}={_shown(value)}" for name, value in self.replaced)
        return f"{self.factory.__name__}({', '.join(given)})" + (replaced and f"._replace({replaced})")


def made(*, run: str = "", remark: Callable[[Any], str] | None = None) -> Callable[[type[_T]], type[_T]]:
    """Class decorator: a NamedTuple with a field `made_by`, which is a `Call` or None.

    It is printed, compared, pickled and copied as the call, also when the cache has forgotten the call. For
    JAX it is static, a tree without arrays, so that a cell may be an argument of a jitted function.

    Args:
      run: what to do instead, for whoever calls an object as a function.
      remark: what is printed behind the call.

    Returns:
      The decorator.
    """

    def decorator(cls: type[_T]) -> type[_T]:
        face: Any = cls
        plain_replace = face._replace

        def replace(self: Any, **fields: Any) -> Any:
            changed = {n: z for n, z in fields.items() if z is not getattr(self, n) and z != getattr(self, n)}
            if self.made_by is not None and changed and "made_by" not in fields:
                replaced = tuple((dict(self.made_by.replaced) | changed).items())
                fields["made_by"] = self.made_by._replace(replaced=replaced)
            return plain_replace(self, **fields)

        def call(self: Any, *args: object, **kwargs: object) -> None:
            raise TypeError(f"{_written(self)} is not a function; {run}")

        def equal(self: Any, other: Any) -> bool:
            if type(self) is not type(other):
                return False
            by_call = self.made_by is not None and other.made_by is not None
            return bool(self.made_by == other.made_by if by_call else tuple.__eq__(self, other))

        face._replace = replace
        face.__eq__ = equal
        face.__ne__ = lambda self, other: not equal(self, other)
        face.__hash__ = lambda self: tuple.__hash__(self) if self.made_by is None else hash(self.made_by)
        face.__repr__ = lambda self: _written(self) + (f"  # {remark(self)}" if remark else "")
        face.__reduce__ = _reduce
        face.__copy__ = face.__deepcopy__ = lambda self, memo=None: self
        if run:
            face.__call__ = call
        return jax.tree_util.register_static(cls)

    return decorator


def by_shape(cls: type[_T]) -> type[_T]:
    """Class decorator: a NamedTuple of arrays that is printed by their dtypes and shapes, not their numbers.

    >>> @by_shape
    ... class Pair(NamedTuple):
    ...     a: jax.Array
    ...     b: jax.Array
    >>> Pair(jnp.zeros((2, 3), "float32"), jnp.zeros(4, "int32"))
    Pair(a=float32[2,3], b=int32[4])
    """
    face: Any = cls
    face.__repr__ = describe
    return cls


def _written(value: Any) -> str:
    if value.made_by is not None:
        return repr(value.made_by)
    fields = (f"{name}={_shown(z)}" for name, z in value._asdict().items() if z is not None)
    return f"{type(value).__name__}({', '.join(fields)})"


def _reduce(value: Any) -> tuple[Any, ...]:
    if value.made_by is None:
        return type(value), tuple(value)
    factory, arguments, _, replaced = value.made_by
    return _make_again, (factory, arguments, replaced)


def _make_again(factory: Callable[..., Any], arguments: Any, replaced: Any) -> Any:
    made = factory(**dict(arguments))
    return made._replace(**dict(replaced)) if replaced else made


def _shown(value: object) -> str:
    """An argument as one writes it: a function by its name, an array by its shape."""
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, (jax.Array, np.ndarray)):
        return describe(value)
    is_printed = isinstance(value, (str, int, float, tuple, np.dtype))
    name = None if is_printed else getattr(value, "__name__", None)
    return repr(value) if name is None else str(name)

"""One shape for every error message: argument, what was expected, what came, what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator


def bad(argument: str, expected: str, got: object, fix: str) -> ValueError:
    """The ValueError for a bad argument.

    Args:
      argument: name of the argument, as the caller wrote it.
      expected: what would have been right.
      got: what came; see `describe`.
      fix: what to do about it.

    Returns:
      The exception, for the caller to raise.

    >>> raise bad("xs", "[T, ..., 3] with T >= 1", np.zeros((0, 3)), "give at least one time step")
    Traceback (most recent call last):
    ValueError: xs: expected [T, ..., 3] with T >= 1, got float64[0,3]; give at least one time step
    """
    return ValueError(f"{argument}: expected {expected}, got {describe(got)}; {fix}")


@contextlib.contextmanager
def naming(argument: str, expected: str = "a function without errors") -> Iterator[None]:
    """What goes wrong inside, such as in a function of the user's, as a ValueError that names it."""
    try:
        yield
    except Exception as error:
        came = f"{type(error).__name__}: {error}".splitlines()[0]
        raise bad(argument, expected, came, "see the error above, and the docs for what it is") from error


def shown(shape: Iterable[object]) -> str:
    """The sizes of a shape, for a message."""
    return ",".join(map(str, shape))


def describe(value: object) -> str:
    """A short text for any value: arrays as dtype and shape, small containers of them, the rest by type.

    >>> describe({"w": np.zeros((3, 2)), "b": None})
    '{w: float64[3,2], b: None}'
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, type) and hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}[{shown(value.shape)}]"
    if value is None or isinstance(value, (int, float)):
        return repr(value)
    name = type(value).__name__
    if isinstance(value, (dict, list, tuple)) and len(value) <= 8 and not any(map(callable, value)):
        if isinstance(value, dict):
            return "{" + ", ".join(f"{k}: {describe(v)}" for k, v in value.items()) + "}"
        fields = getattr(value, "_fields", None)
        if fields is not None:
            return f"{name}({', '.join(f'{k}={describe(v)}' for k, v in zip(fields, value, strict=True))})"
        return f"{name} of {', '.join(map(describe, value)) or 'nothing'}"
    return name

"""One shape for every error message: function, argument, what was expected, what came, what to do."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")

ELSEWHERE = {  # arguments of other libraries, and what stands for them here
    "num_layers": "stack layers by jb.network([cell, next_cell], readout)",
    "bidirectional": "read both ways by jb.layer(cell, backward=other_cell)",
    "batch_first": "time is always the first axis: xs is [T, *batch, I]",
    "merge_mode": "add or average two directions by jb.layer(cell, backward=other_cell, merge=...)",
    "dropout": "drop outputs by jb.layer(cell, dropout=p)",
    "recurrent_dropout": "drop units of h in W_h by jb.layer(cell, recurrent_dropout=p)",
    "nonlinearity": "the activation is called activation",
    "use_bias": "the option is called bias",
    "sample_weight": "how much a step and row counts in the loss is called weight",
    "ignore_index": "give the targets to be ignored the weight 0, by weight=(targets >= 0).astype(xs.dtype)",
    "return_sequences": "for one output a sequence wrap the readout: jb.last(jb.readout(...))",
}


def bad(argument: str, expected: str, got: object, fix: str) -> ValueError:
    """The ValueError for a bad argument.

    Args:
      argument: name of the argument, as the caller wrote it.
      expected: what would have been right.
      got: what came; see `describe`.
      fix: what to do about it.

    Returns:
      The exception, for the caller to raise. `named` writes the function in front.

    >>> raise bad("xs", "[T, ..., 3] with T >= 1", np.zeros((0, 3)), "give at least one time step")
    Traceback (most recent call last):
    ValueError: xs: expected [T, ..., 3] with T >= 1, got float64[0,3]; give at least one time step
    """
    return _about_argument(f"{argument}: expected {expected}, got {describe(got)}; {fix}")


def _about_argument(message: str) -> ValueError:
    error = ValueError(message)
    error.without_function = message  # type: ignore[attr-defined]
    return error


def named(function: str = "") -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """A function whose errors begin with its name.

    Of public functions that call each other the outermost wins: it is the one that the user wrote.

    Args:
      function: its name, as the user writes it; empty for the name in its definition.

    Returns:
      The decorator.

    >>> @named("box")
    ... def box(size):
    ...     raise bad("size", "an integer", 1.5, "round it")
    >>> box(1.5)
    Traceback (most recent call last):
    ValueError: box: size: expected an integer, got 1.5; round it
    >>> box(size=1, lid=2)
    Traceback (most recent call last):
    TypeError: box() got an unexpected keyword argument 'lid'; write box(size)
    """

    def decorator(f: Callable[_P, _R]) -> Callable[_P, _R]:
        name = function or f.__name__

        @functools.wraps(f)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            try:
                return f(*args, **kwargs)
            except ValueError as error:
                message = getattr(error, "without_function", None)
                if message is not None:
                    error.args = (f"{name}: {message}",)
                raise
            except TypeError as error:
                explained = explain_call(name, inspect.signature(f), args, kwargs, error)
                if explained is None:
                    raise
            raise explained

        return call

    return decorator


def explain_call(
    name: str,
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    error: TypeError,
) -> TypeError | None:
    """What is wrong with the arguments of a call and how it is written; None if they fit the signature."""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as wrong:
        _, is_python, said = str(error).rpartition(f"{name}() ")
        cures = [cure for word, cure in ELSEWHERE.items() if word in kwargs]
        unknown = [word for word in kwargs if word not in signature.parameters and word not in ELSEWHERE]
        if unknown and repr(unknown[0]) not in f"{error}{wrong}":
            cures.append(f"it has no argument {unknown[0]!r}")
        if "too many positional" in str(wrong):
            cures.append("give options by their names")
        if "missing" in str(wrong) and is_array_like(_bound(signature, args, kwargs).get("carry")):
            cures.append("carry is None where a sequence begins at the initial carry")
        said = f"{name}() {said if is_python else wrong}"
        return TypeError("; ".join([said, *cures, f"write {written(name, signature)}"]))
    return None


def _bound(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    try:
        return signature.bind_partial(*args, **kwargs).arguments
    except TypeError:
        return {}


def written(name: str, signature: inspect.Signature) -> str:
    """A call as one writes it, such as lstm(input_size, hidden_size, *, peephole=False)."""
    empty = inspect.Parameter.empty
    bare = [p.replace(annotation=empty) for p in signature.parameters.values() if p.name != "self"]
    return name + str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


@contextlib.contextmanager
def naming(argument: str, expected: str, fix: str = "see the error above") -> Iterator[None]:
    """An error inside as a ValueError that says which argument it comes from, and what was expected."""
    try:
        yield
    except Exception as error:
        if hasattr(error, "is_explained"):
            raise
        raise bad(argument, expected, first_line(error), fix) from error


@contextlib.contextmanager
def running(argument: str, hint: str = "") -> Iterator[None]:
    """An error inside a function of the user's: its own message first, then the line, then what may help."""
    try:
        yield
    except Exception as error:
        line = _line_of(error)
        if hasattr(error, "is_explained") or (hasattr(error, "without_function") and not line):
            raise  # by a function that this one has called, or by this library, of an argument
        explained = ValueError(f"{first_line(error)}, raised by {argument}{line}" + (hint and f"; {hint}"))
        explained.is_explained = True  # type: ignore[attr-defined]
        raise explained from error


@contextlib.contextmanager
def adding(hint: str) -> Iterator[None]:
    """An error inside about an argument, with one more sentence about what may be meant."""
    try:
        yield
    except ValueError as error:
        message = getattr(error, "without_function", None)
        if message is None:
            raise
        raise _about_argument(f"{message}; {hint}") from error


def first_line(error: Exception) -> str:
    """Type and message of an error, in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".: ")


_LIBRARIES = tuple(os.path.dirname(place) + os.sep for place in (os.path.dirname(__file__), os.__file__))


def _line_of(error: Exception) -> str:
    """Where the code of the user stood: the last line outside this library and installed ones."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(_LIBRARIES) and "site-packages" not in frame.filename
    ]
    if not frames:
        return ""
    last = frames[-1]
    code = f": {last.line}" if last.line else ""
    return f" at {os.path.basename(last.filename)}, line {last.lineno}{code}"


def shown(shape: Iterable[object]) -> str:
    """The sizes of a shape, for a message."""
    return ",".join(map(str, shape))


def is_array_like(value: object) -> bool:
    """Whether it has a dtype and a shape."""
    return not isinstance(value, type) and hasattr(value, "shape") and hasattr(value, "dtype")


def describe(value: object, depth: int = 2) -> str:
    """A short text for any value: arrays as dtype and shape, small containers of them, the rest by type.

    >>> describe({"w": np.zeros((3, 2)), "b": None})
    '{w: float64[3,2], b: None}'
    """
    if isinstance(value, str):
        return value
    if is_array_like(value):
        return f"{value.dtype}[{shown(value.shape)}]"  # type: ignore[attr-defined]
    if value is None or isinstance(value, (int, float)):
        return repr(value)
    if hasattr(value, "made_by"):
        return repr(value).partition("  #")[0]
    name = type(value).__name__
    if not isinstance(value, (dict, list, tuple)) or len(value) > 8 or any(map(callable, value)):
        return name
    fields = getattr(value, "_fields", None)
    if fields is not None:
        parts = (f"{k}={describe(v, depth)}" for k, v in zip(fields, value, strict=True))
        return f"{name}({', '.join(parts)})"
    if depth == 0:
        return name
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {describe(v, depth - 1)}" for k, v in value.items()) + "}"
    return f"{name} of {', '.join(describe(v, depth - 1) for v in value) or 'nothing'}"

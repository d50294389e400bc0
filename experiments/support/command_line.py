"""What runs a script: it prints UTF-8 to every terminal, reads the options, and ends in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import tyro

from experiments.support.files import at_home

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")


def run_script(main: Callable[[C], None], config: type[C], description: str | None) -> None:
    """Run a script with the options of the command line.

    Args:
      main: what the script does.
      config: the dataclass of its options.
      description: what --help says first.

    Raises:
      SystemExit: an option is refused, a stop was asked for, or the memory is too small; with one line.
    """
    with lasting_output():
        refuse_empty(sys.argv[1:])
        options = tyro.cli(config, description=description)
        try:
            main(with_paths(options))
        except KeyboardInterrupt:
            raise SystemExit("stopped; run the same command again to do the rest") from None
        except (MemoryError, RuntimeError) as error:
            raise no_memory(error) or error from None


def no_memory(error: BaseException) -> SystemExit | None:
    """The line for an error of NumPy's or JAX's that says that the memory is too small; None for others."""
    if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
        return None
    said = " ".join(str(error).split())[:200]
    return SystemExit(f"the memory is too small ({said}); choose smaller sizes")


# The options.


def refuse_empty(words: list[str]) -> None:
    """SystemExit if an option is empty: as a path it would be the working directory."""
    for before, word in itertools.pairwise(["", *words]):
        if not word or (word.startswith("--") and word.endswith("=")):
            raise SystemExit(f'{word[:-1] or before} "" is empty: give a value, or leave the option out')


def with_paths(options: C) -> C:
    """The options with the home folder in the place of ~ in every path."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    return dataclasses.replace(options, **{n: at_home(v) for n, v in values.items() if isinstance(v, Path)})


# The output.


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Print in UTF-8, whatever the locale says, and go on where nobody reads what is printed.

    A stream that is not a terminal, a pipe or a file, such as that of a notebook, stays as it is.
    """
    with contextlib.ExitStack() as stack:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None:  # it was closed before Python began
                stream = stack.enter_context(nowhere())
            elif isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(encoding="utf-8", errors="backslashreplace")
                stream = Lasting(stream)
                stack.callback(stream.flush)
            stack.callback(setattr, sys, name, getattr(sys, name))
            setattr(sys, name, stream)
        yield


def nowhere() -> TextIO:
    """A file that forgets what is written."""
    return open(os.devnull, "w", encoding="utf-8")


class Lasting:
    """A text stream that forgets what is written from then on when its reader is gone or its disk is full."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As of any stream."""
        try:
            return self._stream.write(text)
        except OSError:
            self._forget()
            return len(text)

    def flush(self) -> None:
        """As of any stream."""
        try:
            self._stream.flush()
        except OSError:
            self._forget()

    def _forget(self) -> None:
        with nowhere() as file:
            os.dup2(file.fileno(), self._stream.fileno())
        self._stream.flush()  # what it still held

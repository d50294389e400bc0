"""Paths, and text files in UTF-8 whatever the locale; a kill leaves the old text or the new one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """SystemExit if the folder cannot be written or its disk is full."""
    try:
        yield
    except OSError as error:
        fix = "run the same command again when the cause is removed, or choose another folder with --out"
        raise SystemExit(f"cannot write to {folder}: {error.strerror or error}; {fix}") from None


def at_home(path: Path) -> Path:
    """The path with the home folder in the place of ~, as a shell writes it unless ~ is quoted."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise SystemExit(f"{path}: this home folder is not known; give the path without ~") from None


def read(path: Path) -> str:
    """A text without the byte-order mark that some editors write first; bytes that are no text become �."""
    return path.read_text(encoding="utf-8-sig", errors="replace")


def replace(path: Path, text: str) -> None:
    """Write a text file as a whole: at any moment it is the old one or the new one."""
    new = path.with_name(path.name + ".new")
    _write_through(new, "w", text)
    new.replace(path)


def append(path: Path, text: str) -> None:
    """Add to a text file."""
    _write_through(path, "a", text)


def _write_through(path: Path, mode: str, text: str) -> None:
    """Write, and wait until it is on the disk."""
    with path.open(mode, encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())

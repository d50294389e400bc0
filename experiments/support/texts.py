"""Texts that come with Python, and files.

They are the same wherever the Python is, up to what its distributor changed: the sha256 of a run's text
stands in its run.json.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

APART = {  # of the standard library: what not every installation has, and tables without sentences
    "distutils", "encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages",
    "dist-packages", "test", "tests", "tkinter", "turtledemo",
}  # fmt: skip


def read_text(path: Path) -> str:
    """A file in UTF-8, without a byte-order mark. SystemExit if it is none."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"cannot read --text {path} as UTF-8: {error}") from None


def topics() -> dict[str, str]:
    """The topics of Python's help(), by name."""
    from pydoc_data.topics import topics

    return {name: topics[name] for name in sorted(topics)}


def docstrings() -> dict[str, str]:
    """The docstrings of each module of the standard library, by its file."""
    library = Path(sysconfig.get_path("stdlib"))
    paths = {path.relative_to(library): path for path in sorted(library.rglob("*.py"))}
    return {
        inside.as_posix(): "\n\n".join(_docstrings(path))
        for inside, path in paths.items()
        if not APART & set(inside.parts)
    }


def each_paragraph_once(documents: dict[str, str]) -> dict[str, str]:
    """The documents without paragraphs that were in them before, so that none is in two parts of the text."""
    seen, found = set[str](), {}
    for name, document in documents.items():
        new = []
        for paragraph in document.strip().split("\n\n"):
            words = " ".join(paragraph.split())
            if words and words not in seen:
                seen.add(words)
                new.append(paragraph)
        if new:
            found[name] = "\n\n".join(new)
    return found


def mixed(documents: dict[str, str]) -> str:
    """All in one text, in an order that mixes them and depends only on their names."""
    names = sorted(documents, key=lambda name: hashlib.sha256(name.encode()).digest())
    return "\n\n\n".join(documents[name] for name in names)


def _docstrings(path: Path) -> Iterator[str]:
    """Of the module, its classes and its functions."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield text

"""The pages that are derived from the package, which is read for this and not imported.

* api/FOLDER.md has the names of `jax_bptt.__all__` that are defined in the folder, and those that one of its
  modules lists in an `__all__` of its own. A public module such as `jb.convert` is shown where its functions
  are defined.
* derivations/FOLDER.md has its modules whose docstrings hold equations; of each the docstring alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import griffe
from docstrings import is_equations

TITLES = {  # in the order of the pages; a folder that is not here comes last, under its own name
    "cells": "Cells",
    "cell": "Cells of your own",
    "engine": "Backpropagation Through Time",
    "gradients": "Gradient methods",
    "unrolling": "Unroll",
    "networks": "Network and losses",
    "training": "Training",
    "flow": "Seeing the gradient",
    "checking": "Checking",
    "weights": "Converting",
    "adapters": "Cells of other frameworks",
}
HEADS = {"derivations": "derivations", "api": "API"}  # behind the title, which both chapters have
SAYS = {  # on every page of a chapter, after what the docstring of the folder says
    "derivations": "Below is the text at the top of each module. A number such as (S3) marks an equation, "
    "and in the code the line that computes it.",
    "api": "Every name is in `jax_bptt`, here called `jb`.",
}
IMPORTED = "What follows is imported from `{folder}`, by the name of a file there, and needs its framework."


def pages(root: Path) -> dict[str, str]:
    """The Markdown of each page, by its place; `root` is the folder that jax_bptt is in."""
    package = griffe.load("jax_bptt", search_paths=[root], try_relative_path=False, allow_inspection=False)
    public = [package[name].final_target for name in package.exports]
    folders = {name: folder for name, folder in package.modules.items() if not folder.is_alias}
    out = {}
    for name in [*TITLES, *sorted(folders.keys() - TITLES.keys())]:
        if name in folders:
            text = re.sub(r"^Floor \d+: ", "", _docstring(folders[name]))
            api = list(_api(folders[name], public))
            derivations = list(_derivations(folders[name], shown="\n".join(api)))
            for chapter, entries in (("derivations", derivations), ("api", api)):
                if entries:
                    page = f"{chapter}/{name}.md"
                    introduction = f"{text[:1].upper()}{text[1:]} {SAYS[chapter]}"
                    head = f"# {title(page)}: {HEADS[chapter]}"
                    out[page] = "\n\n".join([head, introduction, *entries])
    return out


def title(page: str) -> str:
    """What a page is called within its chapter."""
    name = Path(page).stem
    return TITLES.get(name, name.capitalize())


def _api(folder: griffe.Module, public: list[griffe.Object]) -> Iterator[str]:
    """The public names of a folder: functions, then classes, by module and in the order of its lines."""
    inside = [name for name in public if f"{_home(name)}.".startswith(f"{folder.path}.")]
    for name in sorted(inside, key=lambda name: (not name.is_function, name.filepath, name.lineno)):
        if name.is_module:
            yield f"`jb.{name.name}` is a module, whose functions are those below."
            yield from _public_module(name, folder)
        else:
            yield f"::: {name.path}"
    listed = [module[name] for module in _modules(folder) for name in module.exports or []]
    imported = [name.path for name in listed if not name.is_alias]
    if imported:
        yield IMPORTED.format(folder=folder.path)
    for path in imported:
        yield f"::: {path}\n    options: {{show_root_full_path: true}}"


def _home(name: griffe.Object) -> str:
    """Where a name is defined; of a module, where its functions are."""
    return name[name.exports[0]].final_target.path if name.is_module else name.path


def _public_module(public: griffe.Module, folder: griffe.Module) -> Iterator[str]:
    """A public module, what those of the folder share, and each that defines names of its `__all__`."""
    yield _entry(public, "members: false")
    defined = {
        module: [name for name in module.members if name in public.exports and not module[name].is_alias]
        for module in _modules(folder)
    }
    for module in sorted(defined, key=lambda module: defined[module] != []):
        yield _entry(module, f"members: {defined[module]}")


def _derivations(folder: griffe.Module, shown: str) -> Iterator[str]:
    """The modules with equations that the API does not show already."""
    for module in _modules(folder):
        equations = any(is_equations(block) for block in _docstring(module).split("\n\n"))
        if equations and f"::: {module.path}\n" not in shown:
            yield _entry(module, "members: false, show_root_full_path: true")


def _entry(module: griffe.Module, options: str) -> str:
    return f"::: {module.path}\n    options: {{{options}}}"


def _modules(folder: griffe.Module) -> list[griffe.Module]:
    """The modules of a folder, each before those inside it."""
    inside = [module for _, module in sorted(folder.modules.items()) if not module.is_alias]
    return [found for module in inside for found in (module, *_modules(module))]


def _docstring(module: griffe.Module) -> str:
    return module.docstring.value if module.docstring else ""

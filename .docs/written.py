"""The pages that are written by hand, with the links of the repository, and the figures that they show."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

_LINK = re.compile(r"(?P<begin>!?\[(?P<words>[^\]]*)\]\()(?P<place>[^)\s#:]+)(?P<end>(?:#[^)\s]*)?\))")


def sources(root: Path) -> dict[str, Path]:
    """The file of each place on the site: README.md is its first page, and .docs/pages is its top."""
    experiments = [*root.glob("experiments/*.md"), *root.glob("experiments/figures/*.png")]
    return (
        {"index.md": root / "README.md"}
        | {path.relative_to(root).as_posix(): path for path in sorted(experiments)}
        | {path.name: path for path in sorted(root.glob(".docs/pages/*.md"))}
    )


def on_site(markdown: str, place: str, root: Path) -> str:
    """The Markdown of a page with links as the site has them; of those to other files the words remain."""
    files = sources(root)
    places = {path: place for place, path in files.items()}

    def link(found: re.Match[str]) -> str:
        path = Path(os.path.normpath(files[place].parent / found["place"]))
        if path in places:
            url = posixpath.relpath(places[path], posixpath.dirname(place) or ".")
            return f"{found['begin']}{url}{found['end']}"
        return found["words"] if path.exists() else found[0]

    return _LINK.sub(link, markdown)

"""The site's pages: derived from the package, or files of the repository."""

from __future__ import annotations

import re
from pathlib import Path

import derived
from docstrings import Docstrings
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]


def on_config(config: MkDocsConfig) -> None:
    """The two chapters get their pages; a name leads to its `::: path`, in the API before the derivations."""
    pages = derived.pages(ROOT)
    config.nav = [
        {title: [page for page in pages if page.startswith(f"{place}/")] or place}
        for entry in config.nav or []
        for title, place in entry.items()
    ]
    paths = [
        path
        for chapter in ("derivations", "api")
        for page, text in pages.items()
        if page.startswith(chapter)
        for path in re.findall(r"^::: (\S+)", text, re.M)
    ]
    config.markdown_extensions.append(Docstrings({path.rpartition(".")[2]: path for path in paths}))


def on_files(files: Files, config: MkDocsConfig) -> None:
    """README.md is the first page; the experiments' pages and figures are where it says."""
    for uri, text in derived.pages(ROOT).items():
        files.append(File.generated(config, uri, content=text))
    pages = [ROOT / "experiments" / name for name in ("RESULTS.md", "SCALING.md", "GPU.md")]
    shown = [*pages, *sorted((ROOT / "experiments" / "figures").glob("*.png"))]
    places = {"index.md": ROOT / "README.md"} | {str(path.relative_to(ROOT)): path for path in shown}
    for uri, path in places.items():
        files.append(File.generated(config, uri, abs_src_path=str(path)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> None:
    """The tables of the experiments take all room."""
    if page.file.src_uri.startswith("experiments"):
        page.meta["hide"] = ["navigation", "toc"]

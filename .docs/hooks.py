"""The site's pages: derived from the package, or files of the repository."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import derived
import labels
import written
from docstrings import Docstrings
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]


def on_config(config: MkDocsConfig) -> None:
    """The two chapters get their pages; a name leads to its `::: path`, in the API before the derivations."""
    pages = derived.pages(ROOT)
    config.nav = list(_nav(config.nav or [], pages))
    config.markdown_extensions.append(Docstrings(_places(pages, "derivations") | _places(pages, "api")))


def _places(pages: dict[str, str], chapter: str) -> dict[str, str]:
    """The path of each name that has one place in a chapter."""
    texts = (text for page, text in pages.items() if page.startswith(chapter))
    paths = [path for text in texts for path in re.findall(r"^::: (\S+)", text, re.M)]
    times = collections.Counter(path.rpartition(".")[2] for path in paths)
    return {name: path for path in paths if times[name := path.rpartition(".")[2]] == 1}


def _nav(nav: list[dict[str, Any]], pages: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The entries that have a page; in a chapter, pages go by the title of their folder."""
    there = written.sources(ROOT)
    for entry in nav:
        for title, place in entry.items():
            if isinstance(place, list):
                yield {title: place}
                continue
            chapter = {page: text for page, text in pages.items() if page.startswith(f"{place}/")}
            if chapter:
                yield {title: [{derived.title(page): page} for page in chapter]}
            elif place in there:
                yield {title: place}


def on_files(files: Files, config: MkDocsConfig) -> None:
    """The pages of the two chapters, and those written by hand that are not in this folder."""
    for uri, text in derived.pages(ROOT).items():
        files.append(File.generated(config, uri, content=text))
    for uri, path in written.sources(ROOT).items():
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, abs_src_path=str(path)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of pages written by hand are turned; the others are called what their head says."""
    place = page.file.src_uri
    if place not in written.sources(ROOT):
        page.meta["title"] = markdown.partition("\n")[0].removeprefix("# ")
        return markdown
    if page.parent is None:
        page.meta["hide"] = ["navigation"]  # for it has no neighbours to list
    return written.on_site(markdown, place, ROOT)


def on_env(env: object, config: MkDocsConfig, files: Files) -> None:
    """Equations get their anchors, in the derivations before the API, and their numbers lead there."""
    pages = [file.page for file in files.documentation_pages() if file.page]
    urls: dict[str, str] = {}
    for page in sorted(pages, key=lambda page: not page.url.startswith("derivations")):
        page.content, stated = labels.anchored(page.content or "", urls.keys())
        urls |= dict.fromkeys(stated, page.url)
    for page in pages:
        page.content = labels.linked(page.content, urls, page.url)

"""The site's pages that are files of the repository, and the Markdown of its docstrings."""

from __future__ import annotations

import re
from pathlib import Path

from docstrings import Docstrings
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]


def on_config(config: MkDocsConfig) -> None:
    """Names lead to the page that has `::: path.of.name`, those of the API before those of derivations."""
    paths = [
        path
        for chapter in ("derivations", "api")
        for page in sorted(Path(config.docs_dir, chapter).glob("*.md"))
        for path in re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.M)
    ]
    config.markdown_extensions.append(Docstrings({path.rpartition(".")[2]: path for path in paths}))


def on_files(files: Files, config: MkDocsConfig) -> None:
    """README.md is the first page; the experiments' results and figures are where it says."""
    pages = [ROOT / "experiments" / name for name in ("RESULTS.md", "SCALING.md")]
    shown = [*pages, *sorted((ROOT / "experiments" / "figures").glob("*.png"))]
    places = {"index.md": ROOT / "README.md"} | {str(path.relative_to(ROOT)): path for path in shown}
    for uri, path in places.items():
        files.append(File.generated(config, uri, abs_src_path=str(path)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A derivation is the top of its module, without the members; the table of results takes all room."""
    if page.file.src_uri.startswith("experiments"):
        page.meta["hide"] = ["navigation", "toc"]
    if not page.file.src_uri.startswith("derivations"):
        return markdown
    alone = r"\g<0>\n    options: {members: false, show_root_full_path: true}"
    return re.sub(r"^::: \S+", alone, markdown, flags=re.M)

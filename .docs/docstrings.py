"""Markdown as the docstrings need it: their sections, examples, equations, shapes and names.

* `Args:`, `Attributes:`, `Raises:` and `Returns:` become headed lists, and what begins with >>> code.
* An equation on a line of its own, or a block of them, is set by `equations`.
* In a sentence x_t, dE/dW_s and <g, v> become mathematics and [T, ..., H] code, which Markdown would read as
  emphasis, HTML and links; a name between backticks leads to what is written of it.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as etree
from collections.abc import Callable, Iterator
from typing import Any

import equations
from markdown import Extension, Markdown
from markdown.blockprocessors import BlockProcessor
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor

_TITLES = {"Args:": "Arguments", "Attributes:": "Fields", "Raises:": "Raises", "Returns:": "Returns"}
_ITEM = re.compile(r"  (\w[\w, ]*): (.*)")
_NUMBER = r"\s{3,}(\([A-Z]{1,2}\d[^()]*\))$"
_AXIS = r"(?:\.\.\.|\*?\w[\w*]*)"
_SHAPE = rf"\[{_AXIS}(?:, {_AXIS})*\]"

_END = r"(?=[.,:;]*(?:\s|$))"
_LETTER = "[A-Za-zα-ωΑ-Ω]"
_SCRIPT = r"(?:[_^](?:\{[^}]*\}|(?:max|[A-Za-z0-9α-ω]{1,2})(?![A-Za-z0-9_]))|[ᵀᵗʰᶜʲ²³₀₁₂′])"
_INK = r"[^\s`\x02]*"  # no blank, no code, nothing that is HTML already
_SURE = (  # a letter with an index, T·B·H, dE/dW, √T, <g, v>
    rf"(?:{_INK}(?<![A-Za-z0-9_.])(?:max|{_LETTER}{{1,2}})[\u0302-\u0304→←]?{_SCRIPT}{_INK}?"
    rf"|{_INK}(?:[A-Z²³]·[A-Z]|dE/d|√{_LETTER}){_INK}?|<[^<>\s]+, [^<>]+>){_END}"
)
_BESIDE = rf"(?:\(?(?![aAI]){_LETTER}\)?|[=+−≤≥·/<←-]|\d+)"  # mathematics where it stands beside that
_MATH = rf"(?<!\S)(?:{_BESIDE} )*{_SURE}(?: (?:{_SURE}|{_BESIDE}{_END}))*"


class Docstrings(Extension):
    """The extension; `pages` has the path of each name that has a heading, jax_bptt.cells.lstm.lstm say."""

    def __init__(self, pages: dict[str, str]) -> None:
        super().__init__()
        self.pages = pages

    def extendMarkdown(self, md: Markdown) -> None:
        """Sections before any other block; in a sentence after links, before emphasis and HTML."""

        def link(code: re.Match[str]) -> str:
            html = f"<code>{code[1]}</code>"
            path = self.pages.get(code[1])
            return f'<autoref identifier="{path}" optional>{html}</autoref>' if path else html

        md.preprocessors.register(_Sections(md), "sections", 40)
        md.parser.blockprocessors.register(_Equations(md.parser, link), "equations", 95)
        md.inlinePatterns.register(_Html(r"`(\w+)`", md, link), "names", 195)
        md.inlinePatterns.register(_Html(_MATH, md, lambda m: equations.sentence(m[0])), "mathematics", 110)
        md.inlinePatterns.register(_Html(_SHAPE, md, lambda m: f"<code>{m[0]}</code>"), "shapes", 105)
        number = _Html(_NUMBER, md, lambda m: f'<span class="number">{m[1]}</span>')
        md.inlinePatterns.register(number, "numbers", 104)


class _Html(InlineProcessor):
    """What matches, as the HTML that `make` makes of it."""

    def __init__(self, pattern: str, md: Markdown, make: Callable[[re.Match[str]], str]) -> None:
        super().__init__(pattern, md)
        self.make = make

    def handleMatch(self, m: re.Match[str], data: str) -> Any:
        return self.md.htmlStash.store(self.make(m)), *m.span()


class _Sections(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        return [out for block in _blocks(lines) for out in _section(block)]


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """Lines up to each empty one."""
    block: list[str] = []
    for text in lines:
        block.append(text)
        if not text.strip():
            yield block
            block = []
    yield block


def _section(block: list[str]) -> list[str]:
    if block[:1] and block[0].startswith(">>> "):
        return ["```pycon", *(text for text in block if text.strip()), "```", ""]
    if len(block) < 2 or block[0] not in _TITLES or not block[1].startswith("  "):
        return block
    out = [f"**{_TITLES[block[0]]}**{{ .section }}", ""]
    if block[0] == "Returns:":
        return out + [text.strip() for text in block[1:]]
    for text in block[1:]:
        item = _ITEM.match(text)
        names = ", ".join(f"<code>{name}</code>" for name in item[1].split(", ")) if item else ""
        out += ["", names, f":   {item[2]}"] if item else [text]
    return out


class _Equations(BlockProcessor):
    def __init__(self, parser: Any, link: Callable[[re.Match[str]], str]) -> None:
        super().__init__(parser)
        self.link = link

    def test(self, parent: etree.Element, block: str) -> bool:
        return is_equations(block)

    def run(self, parent: etree.Element, blocks: list[str]) -> None:
        lines = blocks.pop(0).split("\n")
        while blocks and lines[0].startswith("    ") and blocks[0].startswith("    "):
            lines += ["", *blocks.pop(0).split("\n")]
        html = re.sub(r"<code>(\w+)</code>", self.link, equations.table(lines))
        etree.SubElement(parent, "p").text = self.parser.md.htmlStash.store(html)


def is_equations(block: str) -> bool:
    lines = block.rstrip().split("\n")
    if lines[0].startswith("    "):
        return True
    if len(lines) > 1:
        return all(re.search(r"\S {2,}\S|^ {4}", text) for text in lines)
    left = re.split(" [=←] ", block)[0]
    prose = re.search(r"^[A-Za-z]{2,} (?! )|[A-Za-z]{2,} [A-Za-z]{2,}", left)
    return bool(equations.NUMBER.search(block)) or (left != block and not prose)

"""The number of an equation, such as (EF1), leads from wherever it stands to the equation."""

from __future__ import annotations

import re
from collections.abc import Collection

from mkdocs.utils import get_relative_url

_LABEL = r"[A-Z]{1,2}\d+"
_STATED = re.compile(  # a line of a table, or a paragraph that ends with its number
    rf'<(?P<tag>tr|p)>(?P<inner>(?:(?!</(?P=tag)>).)*class="number">\((?P<label>{_LABEL})\)</\w+></(?P=tag)>)',
    re.S,
)
_LEFT_ALONE = r"<(pre|a|code|math|svg)\b.*?</\1>|<[^>]*>"
_NAMED = rf"(?<=\()(?P<named>{_LABEL}(?:(?:-|, | to | and ){_LABEL})*)\b"  # EF1, EF2 and FL1-FL5 too


def anchored(html: str, elsewhere: Collection[str]) -> tuple[str, list[str]]:
    """The page with an anchor at every equation whose number has none `elsewhere`, and these numbers."""
    stated: list[str] = []

    def anchor(row: re.Match[str]) -> str:
        label = row["label"]
        if label in elsewhere or label in stated:
            return row[0]
        stated.append(label)
        return f'<{row["tag"]} id="{label}" class="stated">{row["inner"]}'

    return _STATED.sub(anchor, html), stated


def linked(html: str, urls: dict[str, str], here: str) -> str:
    """The page at `here` with a link at each number in brackets; `urls` has the page of its equation."""

    def link(label: re.Match[str]) -> str:
        url = urls.get(label[0])
        page = "" if url == here else get_relative_url(url or "", here)
        return f'<a href="{page}#{label[0]}">{label[0]}</a>' if url else label[0]

    def links(part: re.Match[str]) -> str:
        return re.sub(_LABEL, link, part["named"]) if part["named"] else part[0]

    return re.sub(f"{_LEFT_ALONE}|{_NAMED}", links, html, flags=re.S)

"""Equations as docstrings write them, in Unicode and aligned by blanks, as HTML with MathML.

* `line` sets x_t, h̃_{t−1}ᵀ, Σ_t, dE/dW_s and √n among words that stay words.
* `table` keeps what is aligned aligned; numbers such as (F1) stand at the right.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from html import escape
from typing import NamedTuple

NUMBER = re.compile(r"\s+\(([A-Z]{1,2}\d+(?:[-,] ?[A-Z]{1,2}\d+)*(?:, [\w ]+)?)\)$")

_LETTER = "[A-Za-zα-ωΑ-Ω]"
_ACCENTS = {"\u0302": "^", "\u0303": "~", "\u0304": "¯", "→": "→", "←": "←"}
_ACCENT = re.compile("[\u0302\u0303\u0304]|[→←](?=_)")
_SCRIPT = re.compile(
    rf"_\{{(?P<sub>[^}}]*)\}}|_(?P<sub_short>(?:{_LETTER}|\d|′|,(?={_LETTER}))+)"
    r"|(?P<sub_digit>[₀-₉]+)|(?<=\|)(?P<sub_norm>∞)"
    rf"|\^\{{(?P<sup>[^}}]*)\}}|\^\((?P<sup_power>[^)]*)\)|\^(?P<sup_short>{_LETTER})"
    r"|(?P<sup_small>[ᵀᵗʰᶜʲ²³]+)"
)
_TOKEN = re.compile(
    r"(?P<differential>∂|d(?=[A-Zα-ω]|[a-z][\u0302-\u0304_/]|[a-z]+/)|(?<=/)d(?=[a-z]))"
    r"|(?P<function>[a-z]{2,}(?:_[a-z]{2,})*(?=\()|[a-z]{2,}(?=_t\b)|(?:tanh|log|max|min|mod|lim|det)(?![a-z]))"
    r"|(?P<code>`[^`]+`|[A-Za-z]{2,}\w*[._]\w\w+(?:\.\w+)*|[a-z]{2,}_\w\b)"
    r"|(?P<sum>[ΣΠ])"
    r"|(?P<word>(?![a-z][A-Z]\b)[A-Za-z][A-Za-z0-9]+(?:['-][A-Za-z0-9]+)*|[aA](?= [A-Za-z]{2}))"
    rf"|(?P<letter>{_LETTER})"
    r"|(?P<number>\d+(?:\.\d+)?(?:e-?\d+)?|∞)"
    r"|(?P<root>√)"
    r"|(?P<sign>\.\.\.?|->|[<>]=|[+−=≤≥<>←→·/|‖()\[\]⟨⟩⌈⌉,×!*′'])"
    r"|(?P<gap>\s\s+)|(?P<space>\s)|(?P<other>.)"
)
_RELATION = re.compile(r"\s+([=≤←])(?:\s+|$)")  # however wide it stands
_ANGLES = re.compile(r"<(?=[^\s=])([^<>]*)(?<=[^\s-])>")
_LABEL = re.compile(r"[A-Za-z.'() -]{3,}$")
_SIGNS = {"->": "→", ">=": "≥", "<=": "≤", "...": "…", "..": "…", "*": "·", "'": "′"}
_SPACED = {*"=≤≥<>←→+−,"}  # operators that bring their own space
_BARE = {*"()[]⟨⟩⌈⌉|‖/!′'", "..", "..."}  # none, and of one height
_FIGURES = re.compile(r"[\d.]+(?:e-?\d+)?")
_JOINER = "\u2060"  # no line ends between an equation and the full stop behind it
_WORDS = {"max", "min", "prev"}  # subscripts that are no product of letters


class _Piece(NamedTuple):
    kind: str  # math, sign, space or text
    source: str
    html: str


def line(text: str) -> str:
    """One line as HTML: runs of mathematics as MathML, words and `names` between them."""
    out: list[str] = []
    run: list[_Piece] = []
    for piece in _pieces(unicodedata.normalize("NFD", _ANGLES.sub(r"⟨\1⟩", _RELATION.sub(r" \1 ", text)))):
        if piece.kind == "text":
            out += [_run(run), piece.html]
            run = []
        else:
            run.append(piece)
    return "".join([*out, _run(run)])


def sentence(text: str) -> str:
    """As `line`, in pieces that begin with a relation: text is broken between two <math>, and not in one."""
    text = re.sub(r"(?<= )-(?= )|(?<=\w)-(?=\d\})", "−", text)  # README has what is on a keyboard
    html = " ".join(line(part) for part in re.split(r" (?=[=≤≥←] )(?![^{]*\})", text))
    return html.replace("</math>\u2060 <math>", "</math><wbr><math>")


def table(lines: list[str]) -> str:
    """A block of lines as an HTML table, cut where two blanks stand or another line begins."""
    lines = [unicodedata.normalize("NFD", text.rstrip()) for text in lines]
    numbers = [NUMBER.search(text) for text in lines]
    stated = [NUMBER.sub("", text) for text in lines]
    begins = [len(text) - len(text.lstrip()) for text in [*stated[1:], ""]]  # of the line below
    rows = [dict(_chunks(text, below)) for text, below in zip(stated, begins, strict=True)]
    columns = sorted({at for row in rows for at in row})
    body = "".join(_row(row, columns, n[1] if n else "") for row, n in zip(rows, numbers, strict=True))
    return f'<div class="equations"><table class="equations">{body}</table></div>'


def _row(row: dict[int, str], columns: list[int], number: str) -> str:
    places = [columns.index(at) for at in sorted(row)]
    if not places:
        return f'<tr><td colspan="{len(columns) + 1}">&nbsp;</td></tr>'
    cells = [f'<td colspan="{places[0]}"></td>'] if places[0] else []
    for at, end in zip(places, [*places[1:], len(columns)], strict=True):
        text = row[columns[at]]
        label = ' class="label"' if at == 0 and end < len(columns) and _LABEL.match(text) else ""
        cells.append(f'<td{label} colspan="{end - at}">{line(text)}</td>')
    shown = f"({escape(number)})" if number else ""
    return f'<tr>{"".join(cells)}<td class="number">{shown}</td></tr>'


def _chunks(text: str, below: int) -> Iterator[tuple[int, str]]:
    """(column, text) of what stands apart: cut at two blanks, and after = or : where the line below begins.

    It is not cut after a comma, nor around a relation such as = that stands alone.
    """
    words = list(re.finditer(r"\S+", text))
    begin = 0
    for i, word in enumerate(words):
        after = words[i + 1] if i + 1 < len(words) else None
        joined = word[0][-1] in ",=≤←" or (after and after[0] in {*"=≤←"})
        apart = after and after.start() - word.end() > 1 and not joined
        if after is None or apart or (word[0][-1] in "=:" and _width(text[: after.start()]) == below):
            first = words[begin].start()
            yield _width(text[:first]), text[first : word.end()]
            begin = i + 1


def _width(text: str) -> int:
    return sum(not unicodedata.combining(c) for c in text)


def _pieces(text: str) -> Iterator[_Piece]:
    at = 0
    while at < len(text):
        piece, at = _piece(text, at)
        yield piece


def _piece(text: str, at: int) -> tuple[_Piece, int]:
    token = _TOKEN.match(text, at)
    assert token, text  # any character is at least `other`
    kind, source, end = token.lastgroup, token[0], token.end()
    if kind == "code":
        return _Piece("text", source, f"<code>{escape(source.strip('`'))}</code>"), end
    if kind == "gap":
        return _Piece("text", source, ' <span class="gap"></span>'), end
    if kind in ("word", "other"):
        return _Piece("text", source, escape(source)), end
    if kind == "space":
        return _Piece("space", source, '<mspace width="0.2em"/>'), end
    if kind == "root":
        inner, end = _piece(text, end)
        return _Piece("math", source, f"<msqrt>{inner.html}</msqrt>"), end
    base = _base(str(kind), source)
    while accent := _ACCENT.match(text, end) if kind == "letter" else None:
        mark = f'<mo stretchy="false">{_ACCENTS[accent[0]]}</mo>'
        base, end = f'<mover accent="true">{base}{mark}</mover>', accent.end()
    html, end = _with_scripts(base, text, end, under=kind == "sum")
    return _Piece("sign" if kind == "sign" else "math", source, html), end


def _base(kind: str, source: str) -> str:
    if kind == "sign":
        space = ' stretchy="false" lspace="0" rspace="0"' if source in _BARE else ""
        return f"<mo{space}>{escape(_SIGNS.get(source, source))}</mo>"
    if kind == "sum":
        return f"<mo>{'∑' if source == 'Σ' else '∏'}</mo>"
    if kind == "differential":
        return f'<mi mathvariant="normal">{source}</mi>'
    return f"<mn>{source}</mn>" if kind == "number" else f"<mi>{source}</mi>"


def _with_scripts(base: str, text: str, at: int, under: bool) -> tuple[str, int]:
    sub = sup = ""
    while script := _SCRIPT.match(text, at):
        kind = str(script.lastgroup)
        inner, at = _script(script[kind]), script.end()
        sub, sup = (sub + inner, sup) if kind.startswith("sub") else (sub, sup + inner)
    if sub and sup:
        tag = "munderover" if under else "msubsup"
    elif sub:
        tag = "munder" if under else "msub"
    else:
        tag = "msup"
    scripts = "".join(f"<mrow>{s}</mrow>" for s in (sub, sup) if s)
    return (f"<{tag}>{base}{scripts}</{tag}>" if scripts else base), at


def _script(text: str) -> str:
    if text in _WORDS:
        return f"<mi>{text}</mi>"
    html = ""
    for part in re.findall(rf"{_LETTER}|\d+|\S", unicodedata.normalize("NFKD", text)):
        if re.match(_LETTER, part):
            html += f"<mi>{part}</mi>"
        else:
            html += f"<mn>{part}</mn>" if part.isdigit() else f'<mo lspace="0" rspace="0">{escape(part)}</mo>'
    return html


def _run(run: list[_Piece]) -> str:
    """Neighbours as one <math>; numbers and signs alone, and commas before mathematics, are text."""
    if not any(piece.kind == "math" and not _FIGURES.fullmatch(piece.source) for piece in run):
        return escape("".join(piece.source for piece in run))
    before, inner, after = "", "", _JOINER
    while run[0].source in " ,":
        before, run = before + run[0].source, run[1:]
    if run[-1].kind == "space":
        after, run = " ", run[:-1]
    for i, piece in enumerate(run):
        last = run[i - 1].source if i else "="
        if piece.kind == "space":
            inner += "" if {last, run[i + 1].source} & _SPACED else piece.html
        elif piece.source in "+−" and (last in "([" or (last == " " and run[i - 2].source in _SPACED)):
            inner += piece.html.replace("<mo>", '<mo form="prefix">')
        else:
            inner += piece.html
    return f"{before}<math>{inner}</math>{after}"

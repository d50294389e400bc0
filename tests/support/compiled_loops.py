"""The loops in the text of a compiled program."""

import re
from typing import Any


def computations(compiled: Any) -> dict[str, str]:
    """The text of each computation, by its name."""
    blocks = re.split(r"\n(?=\S)", compiled.as_text())
    named = ((re.match(r"(?:ENTRY )?%([\w.\-]+) \(", block), block) for block in blocks)
    return {match[1]: block for match, block in named if match}


def loops(compiled: Any) -> list[str]:
    """The names of the bodies of all while loops."""
    return re.findall(r" while\(.*?body=%([\w.\-]+)", compiled.as_text())


def innermost(compiled: Any) -> list[str]:
    """The bodies of the while loops that hold no other: those over the steps."""
    bodies = computations(compiled)
    return [bodies[name] for name in loops(compiled) if " while(" not in bodies[name]]

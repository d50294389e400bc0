"""A report lists, for each part of each leaf of a gradient, its difference from each witness."""

from __future__ import annotations

from typing import NamedTuple

EXACT, DIFFERENCES = 1e-12, 1e-7
_WITNESSES = ("jax.grad", "differences", "forward mode")


class Line(NamedTuple):
    """A line is about one part of one leaf of the gradient.

    Attributes:
      case: the case that was run, such as "5 steps".
      leaf: the leaf, such as "params.w_h", "carry.c" or "xs".
      part: the part of it, such as "gate f" or "step 3"; "" for the whole leaf.
      ratios: the relative difference from jax.grad of the plain scan, from finite differences and from
        forward mode; None for one that does not apply.
      zero: whether the correct gradient is zero, so that this part proves nothing.
    """

    case: str
    leaf: str
    part: str
    ratios: tuple[float | None, ...]
    zero: bool

    @property
    def ok(self) -> bool:
        """This is True if the part agrees with every witness."""
        limits = (EXACT, DIFFERENCES, EXACT)
        return all(r is None or r < limit for r, limit in zip(self.ratios, limits, strict=True))


class Report(NamedTuple):
    """A `Report` holds the results of a check; print it.

    Attributes:
      lines: a `Line` for each part of each leaf.
    """

    lines: tuple[Line, ...]

    @property
    def ok(self) -> bool:
        """This is True if every part agrees with every witness and some parameter gradient is not zero."""
        proved = any(line.leaf.startswith("params") and not line.zero for line in self.lines)
        return proved and all(line.ok for line in self.lines)

    @property
    def wrong(self) -> tuple[str, ...]:
        """These are the names of the leaves that are wrong, each once."""
        return tuple(dict.fromkeys(line.leaf for line in self.lines if not line.ok))

    def __str__(self) -> str:
        head = f"{'case':<24} {'leaf':<28} {'part':<8}" + "".join(f"{w:>14}" for w in _WITNESSES)
        rows = [
            f"{line.case:<24} {line.leaf:<28} {line.part:<8}"
            + "".join(f"{'-' if r is None else f'{r:.1e}':>14}" for r in line.ratios)
            + ("" if line.ok else "  WRONG")
            for line in self.lines
        ]
        parts = [f"{x.leaf} {x.part}".strip() + f" ({x.case})" for x in self.lines if not x.ok]
        verdict = f"the gradient is WRONG: {', '.join(parts)}" if parts else "nothing is proved"
        verdict = "the gradient is right" if self.ok else verdict
        proved = {(line.leaf, line.part) for line in self.lines if not line.zero}
        unproved = dict.fromkeys((x.leaf, x.part) for x in self.lines if (x.leaf, x.part) not in proved)
        names = ", ".join(" ".join(name).strip() for name in unproved)
        note = f"; zero by right, so not proved: {names}" if unproved else ""
        return "\n".join([head, *rows, verdict + note])

"""Helpers to compare programs: the time of a call, the distance of gradients, a table in Markdown."""

from __future__ import annotations

import time
from collections.abc import Callable

import chex
import jax
import numpy as np


def farthest(grads: chex.ArrayTree, wanted: chex.ArrayTree) -> float:
    """The largest ‖difference‖ / ‖wanted‖ of an array; NaN if there is one."""
    pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True)
    return float(np.max([np.linalg.norm(g - w) / np.linalg.norm(w) for g, w in pairs]))


def seconds(call: Callable[[], object], calls: int) -> float:
    """Seconds that one call takes, the mean of some calls."""
    began = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(call())
    return (time.perf_counter() - began) / calls


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table, its columns as wide as they must be."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(row: list[str]) -> str:
        cells = (f"{text:{'>' if i else '<'}{widths[i]}}" for i, text in enumerate(row))
        return f"| {' | '.join(cells)} |"

    ruled = "|".join("-" * (width + 1) + (":" if i else "-") for i, width in enumerate(widths))
    return "\n".join([line(head), f"|{ruled}|", *map(line, rows)])

"""Helpers to compare programs: the time of a call, the distance of gradients, a table in Markdown."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import chex
import jax
import numpy as np

from experiments.support.runs import StopRequest

TURN = 0.03  # seconds


class Timed(Protocol):
    """A program that is called without arguments."""

    @property
    def call(self) -> Callable[[], object]:
        """The call."""


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


def take_turns(programs: Mapping[str, Timed], rounds: int, stop: StopRequest) -> dict[str, np.ndarray]:
    """Seconds of a call by contender, one number a round; ours has two turns."""
    turns = {name: program.call for name, program in programs.items()}
    turns["ours again"] = turns["ours"]
    calls = {name: min(1000, math.ceil(TURN / seconds(call, 1))) for name, call in turns.items()}
    times: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds):
        first = number % len(turns)
        moved = [*turns][first:] + [*turns][:first]
        for name in moved[:: -1 if number % 2 else 1]:
            stop.leave()
            seconds(turns[name], 1)
            times[name].append(seconds(turns[name], calls[name]))
    return {name: np.array(of_name) for name, of_name in times.items()}


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table, its columns as wide as they must be."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(row: list[str]) -> str:
        cells = (f"{text:{'>' if i else '<'}{widths[i]}}" for i, text in enumerate(row))
        return f"| {' | '.join(cells)} |"

    ruled = "|".join("-" * (width + 1) + (":" if i else "-") for i, width in enumerate(widths))
    return "\n".join([line(head), f"|{ruled}|", *map(line, rows)])

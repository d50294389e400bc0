"""Descents on few numbers, continued where they stopped: their whole state is in lines of metrics.jsonl."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.support.learning import Curve
from experiments.support.runs import Run, StopRequest


class Descent(NamedTuple):
    """One descent.

    Attributes:
      name: of its curve.
      begin: the state that it begins with, arrays of any dtypes.
      advance: state, number of the line from 0 on -> the next state, and what its line says of it.
      lines: how many lines at most.
      ended: lines -> whether to stop here.
    """

    name: str
    begin: chex.ArrayTree
    advance: Callable[[Any, int], tuple[Any, dict[str, Any]]]
    lines: int
    ended: Callable[[Curve], bool] = lambda lines: False


def descend(run: Run, stop: StopRequest, descent: Descent) -> Curve:
    """Go on to the end; SystemExit between two lines if a stop was asked for.

    Returns:
      Its lines of metrics.jsonl: curve, step (from 1 on), seconds since it began, state, and what `advance`
      said, the loss among it.
    """
    lines = [m for m in _lines(run) if m["curve"] == descent.name]
    state = _restored(descent.begin, lines[-1]["state"]) if lines else descent.begin
    before, began = (lines[-1]["seconds"] if lines else 0.0), time.monotonic()
    with tqdm(total=descent.lines, initial=len(lines), desc=f"{descent.name:16}") as bar:
        while len(lines) < descent.lines and not (lines and descent.ended(lines)):
            stop.leave()
            state, said = descent.advance(state, len(lines))
            numbers = [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(state)]
            seconds = round(before + time.monotonic() - began, 2)
            line = {
                "curve": descent.name,
                "step": len(lines) + 1,
                "seconds": seconds,
                **said,
                "state": numbers,
            }
            run.record(**line)
            lines.append(line)
            bar.update()
            bar.set_postfix_str(f"loss {said['loss']:.3g}", refresh=False)
    return lines


def seconds_of_descents(run: Run) -> float:
    """Seconds of all descents in this folder, also before an interruption."""
    return sum({m["curve"]: m["seconds"] for m in _lines(run)}.values())  # of each curve, the last


def _lines(run: Run) -> Curve:
    return run.metrics(curve=str, step=int, seconds=float, loss=float, state=list)


def _restored(like: chex.ArrayTree, numbers: list[Any]) -> chex.ArrayTree:
    """The state of a line; a number in JSON is the same float again."""
    leaves, tree = jax.tree.flatten(like)
    return jax.tree.unflatten(tree, [jnp.asarray(n, of.dtype) for n, of in zip(numbers, leaves, strict=True)])

"""Time and temporaries of compiled programs, called in turn; each round is kept in metrics.jsonl."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from experiments.support.comparisons import farthest, seconds
from experiments.support.runs import Run, StopRequest


class Cost(NamedTuple):
    """What one program costs. Time and memory are ratios to the first program, low and high its quartiles.

    `distance` is ‖difference to the first program's gradient‖ / ‖gradient‖, of the array where it is largest.
    """

    name: str
    milliseconds: float
    time: float
    low: float
    high: float
    temporaries: int
    memory: float
    distance: float


def measure(
    run: Run,
    stop: StopRequest,
    programs: dict[str, Callable[..., Any]],
    arguments: tuple[Any, ...],
    rounds: int,
) -> list[Cost]:
    """Compile each value and gradient, then time all in turn until there are so many rounds."""
    compiled = {m["program"]: m for m in run.metrics(program=str, temporaries=int, distance=float)}
    timed = [m["round"] for m in run.metrics(round=dict)]
    if len(timed) < rounds or compiled.keys() != programs.keys():
        calls = _compile(run, stop, programs, arguments, compiled)
        for _ in tqdm(range(len(timed), rounds), desc="rounds", initial=len(timed), total=rounds):
            stop.leave()
            timed.append({name: 1e3 * seconds(call, 1) for name, call in calls.items()})
            run.record(round=timed[-1])
    first = next(iter(programs))
    costs = []
    for name in programs:
        low, middle, high = np.quantile([one[name] / one[first] for one in timed], (0.25, 0.5, 0.75)).tolist()
        temporaries = compiled[name]["temporaries"]
        memory = temporaries / compiled[first]["temporaries"]
        ms = statistics.median(one[name] for one in timed)
        costs.append(Cost(name, ms, middle, low, high, temporaries, memory, compiled[name]["distance"]))
    return costs


def _compile(
    run: Run,
    stop: StopRequest,
    programs: dict[str, Callable[..., Any]],
    arguments: tuple[Any, ...],
    compiled: dict[str, dict[str, Any]],
) -> dict[str, Callable[[], object]]:
    """The calls; what is known of the programs goes into `compiled` and the metrics."""
    calls: dict[str, Callable[[], object]] = {}
    wanted: Any = None
    for name, value_and_grad in tqdm(programs.items(), desc="compile", unit="program"):
        stop.leave()
        program = jax.jit(value_and_grad).lower(*arguments).compile()
        calls[name] = functools.partial(program, *arguments)
        _, grads = jax.block_until_ready(program(*arguments))
        wanted = grads if wanted is None else wanted
        if name not in compiled:
            used = program.memory_analysis()
            assert used is not None
            about = {"temporaries": used.temp_size_in_bytes, "distance": farthest(grads, wanted)}
            compiled[name] = {"program": name, **about}
            run.record(**compiled[name])
    return calls

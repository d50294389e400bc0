"""What gradient methods cost at one size, for `gradient_methods`: time, temporaries and forward runs."""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tqdm import tqdm

import jax_bptt as jb
from experiments.support.comparisons import farthest, seconds
from experiments.support.gradient_costs_table import titled
from experiments.support.runs import StopRequest
from jax_bptt.engine.chunks import chunk_of, divisor_up_to, rows_of_a_step
from jax_bptt.engine.run import Run
from jax_bptt.engine.sequence import Sequence
from jax_bptt.gradients.autodiff import plain_scan
from jax_bptt.gradients.schedule import advances, schedule

BASELINE = "jax.grad of the scan"
AGREE = 1e-4
SLOTS = {"checkpointed(slots=4)": 4, "checkpointed(slots=16)": 16, "checkpointed()": None}
SCHEDULES = (10, 3), (100, 10), (1000, 10), (1000, 50)  # leaves n, slots m


class Size(NamedTuple):
    """What is measured: T steps of B rows, from I inputs through H units to O outputs."""

    cell: str
    steps: int
    rows: int
    inputs: int
    hidden: int
    outputs: int


Arguments = tuple[jb.NetworkParams, chex.ArrayTree, Array, Array]  # params, carry, xs, targets


class Program(NamedTuple):
    """A compiled value and gradient, and how far the gradient is from the baseline's."""

    name: str
    call: Callable[[], object]
    temporaries: int
    distance: float
    calls: int


def programs_of(size: Size, methods: tuple[jb.GradientMethod, ...], stop: StopRequest) -> list[Program]:
    """The baseline and the methods, compiled; SystemExit where an exact one has another gradient."""
    net, arguments = problem(size)
    net_and_loss = jb.value_and_grad(net, jb.squared_error)
    value_and_grads = {BASELINE: functools.partial(plain, net)}
    value_and_grads |= {repr(m): functools.partial(net_and_loss, gradient=m) for m in methods}
    programs: list[Program] = []
    wanted: chex.ArrayTree = None
    for name, value_and_grad in tqdm(value_and_grads.items(), desc=f"compile {size.cell:8}", unit="program"):
        stop.leave()
        compiled = jax.jit(value_and_grad).lower(*arguments).compile()
        call = functools.partial(compiled, *arguments)
        _, grads = jax.block_until_ready(call())
        wanted = grads if name == BASELINE else wanted
        distance = farthest(grads, wanted)
        if is_exact(name) and not distance < AGREE:
            raise SystemExit(
                f"{name}: gradient differs from the baseline's by {distance:.0e} ({titled(size._asdict())})"
            )
        used = compiled.memory_analysis()
        assert used is not None
        calls = min(100, math.ceil(0.02 / seconds(call, 1)))  # of some 20 ms at least
        programs.append(Program(name, call, used.temp_size_in_bytes, distance, calls))
    return programs


def is_exact(name: str) -> bool:
    """Whether a method of this name has the whole gradient."""
    return not name.startswith("truncated")


def problem(size: Size) -> tuple[jb.Network, Arguments]:
    """The network, and the arguments of its value and gradient."""
    cell = getattr(jb, size.cell)(size.inputs, size.hidden)
    net = jb.network([cell], jb.readout(size.hidden, size.outputs))
    keys = jax.random.split(jax.random.key(0), 3)
    params = net.init(keys[0])
    xs, targets = (
        jax.random.normal(key, (size.steps, size.rows, features))
        for key, features in zip(keys[1:], (size.inputs, size.outputs), strict=True)
    )
    return net, (params, net.initial_carry(params, (size.rows,)), xs, targets)


def plain(
    net: jb.Network, params: jb.NetworkParams, carry: chex.ArrayTree, xs: Array, targets: Array
) -> tuple[tuple[Array, chex.ArrayTree], jb.NetworkParams]:
    """The baseline: jax.value_and_grad of the plain scan, the readout and the squared error."""

    def loss(params: jb.NetworkParams) -> tuple[Array, chex.ArrayTree]:
        run = Run(params.cells[0], carry[0], None, Sequence(xs))
        last, hs = plain_scan(net.layers[0].cells[0], run)
        ys = hs @ params.readout.w_y
        ys = ys + jnp.broadcast_to(params.readout.b_y, ys.shape)
        return jnp.sum((targets - ys) ** 2), (last,)

    return jax.value_and_grad(loss, has_aux=True)(params)


def measure(
    size: Size, methods: tuple[jb.GradientMethod, ...], repeats: int, stop: StopRequest
) -> list[dict[str, Any]]:
    """A line of metrics for the baseline and for each method."""
    programs = programs_of(size, methods, stop)
    timed = [*programs, programs[0]]  # the baseline once more, to see the noise
    times: list[list[float]] = [[] for _ in timed]
    rounds = itertools.product(range(repeats), zip(timed, times, strict=True))
    total = repeats * len(timed)
    for _, (program, of_program) in tqdm(rounds, desc=f"measure {size.cell:8}", total=total, unit="run"):
        stop.leave()
        of_program.append(seconds(program.call, program.calls))
    base, *_, again = times
    ratios = [np.divide(again if t is base else t, base) for t in times[:-1]]
    return [
        {
            "size": size._asdict(),
            "method": program.name,
            "milliseconds": 1e3 * statistics.median(of_program),
            "time_ratio": float(np.median(ratio)),
            "quartiles": np.quantile(ratio, (0.25, 0.75)).tolist(),
            "temporaries": program.temporaries,
            "temporaries_ratio": program.temporaries / programs[0].temporaries,
            "forward_runs": forward_runs(size, program.name),
            "distance": program.distance,
        }
        for program, of_program, ratio in zip(programs, times, ratios, strict=False)
    ]


# How often a step is run forward.


def leaves(size: Size, slots: int | None) -> tuple[int, int]:
    """K and n: the steps of a leaf of `checkpointed`, and how many leaves there are."""
    params, _, xs, _ = jax.eval_shape(lambda: problem(size)[1])
    root = math.isqrt(size.steps)
    of_full = chunk_of(size.steps, rows_of_a_step(xs.shape[1:-1]), params)
    longest = root if slots is None else min(root, of_full)
    leaf = divisor_up_to(longest, size.steps)
    return leaf, size.steps // leaf


def forward_runs(size: Size, name: str) -> float | None:
    """Forward runs of a step by `checkpointed`, on average; None for other methods."""
    if name not in SLOTS:
        return None
    leaf, n = leaves(size, SLOTS[name])
    again = leaf * advances(n, min(n, SLOTS[name] or n)) + size.steps - leaf * n
    return 1 + again / size.steps  # once to be reversed


def closed_form(n: int, m: int) -> int:
    """t(n, m) = r n − C(m + r, r − 1), r the least with C(m + r, m) >= n (Griewank & Walther 2000)."""
    r = next(r for r in itertools.count() if math.comb(m + r, m) >= n)
    return r * n - (math.comb(m + r, r - 1) if r else 0)


def count_advances() -> list[dict[str, int]]:
    """For some n and m: `advances`, the advances that the schedule has, and the closed form."""
    return [
        {
            "leaves": n,
            "slots": m,
            "advances": advances(n, m),
            "counted": sum(not action.reverse for action in schedule(n, m)),
            "closed_form": closed_form(n, m),
        }
        for n, m in SCHEDULES
    ]

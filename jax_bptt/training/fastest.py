"""Which exact gradient method is the fastest on this machine, for this network and batch? It is measured.

    memory       the temporary arrays of a compiled program, as XLA reports them, before it runs
    agreement    ‖g − g′‖ / ‖g′‖ of each parameter, where g′ is the gradient of the first method that
                 fits: at most √ε, with ε of the dtype of the products                        (FM1)
    time         the methods take turns, and what is compared is t / t′ of the same round, so that a
                 machine that is busy for a while is so for all of them: the median of the rounds   (FM2)
    a tie        of the methods within 5 % of the least time, that with the fewest temporaries      (FM3)

Products are slow on one machine and memory on the next, and the order of the methods changes with it.
"""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from jax_bptt.base.checks import as_arrays, is_floating, or_none, positive
from jax_bptt.base.errors import bad, named
from jax_bptt.base.trees import norm_of
from jax_bptt.base.types import Foreign
from jax_bptt.engine.kernels.limits import kernels_run_here
from jax_bptt.gradients.autodiff import autodiff
from jax_bptt.gradients.checkpointed import checkpointed
from jax_bptt.gradients.full import full
from jax_bptt.gradients.fused import fused
from jax_bptt.gradients.method import GradientMethod
from jax_bptt.networks.losses import Loss, check_loss
from jax_bptt.networks.network import Network, check_network
from jax_bptt.networks.params import NetworkParams
from jax_bptt.networks.value_and_grad import Inputs, Objective, Result, run_value_and_grad
from jax_bptt.training.state import Batch

ROUNDS = 7
LEAST_ROUNDS = 5  # also where they take longer than SECONDS
SECONDS = 10.0  # for all rounds
TIE = 1.05  # a ratio up to which the order is left to chance
TURN = 0.03  # seconds that a method is timed in a round, or one call


class Tried(NamedTuple):
    """One method, and what was found of it.

    Attributes:
      gradient: the method.
      temporaries: bytes of temporary arrays; None where its program is that of another method.
      milliseconds: the time of one value and gradient; None where it was not timed.
      ratio: its time divided by that of the fastest; None where it was not timed.
      remark: why it was not timed; "" where it was.
    """

    gradient: GradientMethod
    temporaries: int | None
    milliseconds: float | None
    ratio: float | None
    remark: str


class Fastest(NamedTuple):
    """The fastest method, of a tie the leanest, and all that were tried; print it.

    Attributes:
      gradient: the fastest method, to be passed as gradient=found.gradient.
      tried: a `Tried` for each method, in the order of preference.
    """

    gradient: GradientMethod
    tried: tuple[Tried, ...]

    def __str__(self) -> str:
        width = max(len(repr(one.gradient)) for one in self.tried)
        lines = [f"{'gradient':<{width}} {'temporaries, MiB':>18} {'ms':>10} {'ratio':>8}"]
        for one in self.tried:
            memory = "" if one.temporaries is None else f"{one.temporaries / 2**20:.2f}"
            timed = "" if one.milliseconds is None else f"{one.milliseconds:.4g}"
            ratio = "" if one.ratio is None else f"{one.ratio:.2f}"
            line = f"{one.gradient!r:<{width}} {memory:>18} {timed:>10} {ratio:>8}  {one.remark}"
            lines.append(line.rstrip())
        return "\n".join(lines)


def exact_methods() -> tuple[GradientMethod, ...]:
    """These are tried; the gradients of the others must agree with that of the first one that fits."""
    by_loops = autodiff(), full(), full(recompute=False), full(recompute=True), checkpointed()
    return (*by_loops, fused()) if kernels_run_here() else by_loops


@named()
def fastest(
    net: Network, loss: Loss, batch: Batch, memory: float | None = None, *, dtype: DTypeLike | None = None
) -> Fastest:
    """This tries the exact gradient methods on one batch and returns the fastest of them.

    min over methods of the median of t / t′, where ‖g − g′‖ ≤ √ε ‖g′‖; of a tie the leanest (FM1, FM2, FM3)

    It compiles and times the value and gradient of `autodiff`, `full` in its forms, `checkpointed`, and
    `fused` where its kernels run, in turns, which takes from seconds to half a minute. Call it once, on a
    machine that does nothing else, with a batch of the size that you train with. A method that was slower
    here can be faster on another machine or at another size.

    Args:
      net: from `network`.
      loss: as for `value_and_grad`.
      batch: a `Batch` with all that your training batches have, such as a mask: it is part of the program.
      memory: how many bytes of temporary arrays a program may need; what needs more is left out before it
        runs. None for what the device has left, where it says so; a CPU does not.
      dtype: jnp.bfloat16 for mixed precision, see `unroll`.

    Returns:
      A `Fastest`: pass `found.gradient` on, and print `found` for the table of all methods. The methods run
      with new parameters of the network, from the initial carry.

    Raises:
      ValueError: an argument is wrong, the gradient of the batch is not finite, or no method fits into the
        memory.

    >>> net = jb.network([jb.elman(1, 4)], jb.readout(4, 1))
    >>> batch = jb.Batch(jnp.ones((30, 2, 1)), jnp.zeros((30, 2, 1)))
    >>> found = fastest(net, jb.squared_error, batch)
    >>> train_step = jb.make_train_step(net, jb.squared_error, optax.sgd(0.1), gradient=found.gradient)
    >>> found.tried[0].gradient is found.gradient
    True
    """
    check_network(net)
    check_loss(loss)
    limit = or_none(_bytes)("memory", memory)
    inputs = _inputs(net, batch)
    limit = _free_bytes(jax.tree.leaves(batch.xs)[0]) if limit is None else limit
    programs, left_out = _compiled(Objective(net, loss, full(), dtype), inputs, limit)
    if not programs:
        least = min(one.temporaries for one in left_out if one.temporaries is not None)
        fix = "allow more, or use jb.checkpointed(slots=m) or jb.truncated(h), which need less"
        raise bad("memory", f"at least {least} bytes", limit, fix)
    own: Array = jax.tree.leaves(inputs.params)[0]
    agreeing, wrong = _agreeing(programs, inputs, _tolerance(dtype or own.dtype))
    timed = _timed(agreeing, inputs)
    return Fastest(timed[0].gradient, (*timed, *wrong, *left_out))


class _Program(NamedTuple):
    gradient: GradientMethod
    run: Callable[[Inputs], Result]
    temporaries: int


def _bytes(argument: str, value: Foreign) -> float:
    fix = "2e9 are two gigabytes; None is no limit"
    return positive(argument, "a positive number of bytes, or None", value, fix)


def _free_bytes(xs: Foreign) -> float:
    """What the device has left; infinity where it does not say, as a CPU."""
    devices = xs.devices() if isinstance(xs, jax.Array) else set(jax.devices()[:1])
    found = [device.memory_stats() for device in devices if device.process_index == jax.process_index()]
    return min((m["bytes_limit"] - m["bytes_in_use"] for m in found if m), default=math.inf)


def _inputs(net: Network, batch: Foreign) -> Inputs:
    """The batch with new parameters, on the devices and in the dtype of the batch."""
    if not isinstance(batch, Batch):
        raise bad("batch", "a Batch", batch, "pass jb.Batch(xs, targets)")
    batch = as_arrays("batch", batch)
    if any(isinstance(z, jax.core.Tracer) for z in jax.tree.leaves(batch)):
        raise bad("batch", "arrays", "traced values", "call jb.fastest outside of jax.jit and jax.grad")
    params = net.init(jax.random.key(0))
    if net.encoder is None and is_floating(batch.xs):
        params = jax.tree.map(lambda p: p.astype(batch.xs.dtype), params)
    lies = getattr(jax.tree.leaves(batch.xs)[0], "sharding", None)
    if isinstance(lies, NamedSharding):
        params = jax.device_put(params, NamedSharding(lies.mesh, P()))
    return Inputs(params, None, batch.sequence, batch.targets, batch.key, batch.weight)


def _compiled(objective: Objective, inputs: Inputs, limit: float) -> tuple[list[_Program], list[Tried]]:
    """The programs that fit, and the methods that are left out; equal programs are compiled once."""
    programs, left_out = [], []
    methods: dict[str, GradientMethod] = {}
    for method in exact_methods():
        objective = objective._replace(gradient=method)
        lowered = jax.jit(functools.partial(run_value_and_grad, objective)).lower(inputs)
        same = methods.setdefault(lowered.as_text(), method)
        if same is not method:
            left_out.append(Tried(method, None, None, None, f"the same program as {same}"))
            continue
        compiled = lowered.compile()
        temporaries = getattr(compiled.memory_analysis(), "temp_size_in_bytes", 0)
        if temporaries > limit:
            left_out.append(Tried(method, temporaries, None, None, "needs more memory than it may"))
        else:
            programs.append(_Program(method, compiled, temporaries))
    return programs, left_out


def _tolerance(dtype: DTypeLike) -> float:
    """√ε (FM1), with the ε of 2⁻¹⁰ with which accelerators multiply float32 by default."""
    eps = float(jnp.finfo(dtype).eps)  # type: ignore[no-untyped-call]
    of_products = eps if jax.default_backend() == "cpu" else max(eps, 2**-10)
    return math.sqrt(of_products)


def _agreeing(
    programs: list[_Program], inputs: Inputs, tolerance: float
) -> tuple[list[_Program], list[Tried]]:
    """The programs whose gradients agree with that of the first one (FM1), and the methods that do not."""
    wanted = programs[0].run(inputs).grads
    whole = float(norm_of(wanted))
    if not math.isfinite(whole):
        fix = "look for NaN and infinity in it; they come out of every method"
        raise bad("batch", "a batch whose gradient is finite", f"one of norm {whole}", fix)
    agreeing, wrong = programs[:1], []
    for program in programs[1:]:
        distance = _distance(program.run(inputs).grads, wanted, tolerance * whole)
        if distance <= tolerance:  # (FM1)
            agreeing.append(program)
        else:  # also where it is NaN
            remark = f"its gradient differs from that of {programs[0].gradient} by {distance:.0e}"
            wrong.append(Tried(program.gradient, program.temporaries, None, None, remark))
    return agreeing, wrong


def _distance(grads: NetworkParams, wanted: NetworkParams, least: float) -> float:
    """The largest of ‖g − g′‖ / ‖g′‖ over the leaves; a leaf that is next to zero counts as `least` large."""

    def of_leaf(g: Array, w: Array) -> float:
        difference = float(norm_of(g - w))
        return difference / max(float(norm_of(w)), least, sys.float_info.min) if difference else 0.0

    ratios = list(map(of_leaf, jax.tree.leaves(grads), jax.tree.leaves(wanted)))
    return math.nan if any(map(math.isnan, ratios)) else max(ratios)


def _timed(programs: list[_Program], inputs: Inputs) -> list[Tried]:
    """The programs take turns (FM2); the best one comes first."""
    calls = [functools.partial(program.run, inputs) for program in programs]
    numbers = [max(1, math.ceil(TURN / seconds(call, 1))) for call in calls]
    rounds: list[list[float]] = []
    spent = 0.0
    while len(rounds) < LEAST_ROUNDS or (len(rounds) < ROUNDS and spent < SECONDS):
        rounds.append([seconds(call, n) for call, n in zip(calls, numbers, strict=True)])
        spent += float(np.dot(numbers, rounds[-1]))
    times = np.array(rounds)
    ratios = np.median(times / times[:, :1], axis=0)  # (FM2)
    milliseconds = 1e3 * np.median(times, axis=0)
    found = [
        Tried(program.gradient, program.temporaries, float(ms), float(ratio / ratios.min()), "")
        for program, ms, ratio in zip(programs, milliseconds, ratios, strict=True)
    ]
    return sorted(found, key=_rank)


def _rank(one: Tried) -> tuple[bool, float]:
    assert one.ratio is not None  # it was timed
    assert one.temporaries is not None
    return one.ratio > TIE, one.ratio if one.ratio > TIE else one.temporaries  # (FM3)


def seconds(call: Callable[[], Result], calls: int) -> float:
    """The time of one call, the mean of some."""
    began = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(call())
    return (time.perf_counter() - began) / calls

"""What one step costs where the next input depends on this output: microseconds a step.

    python -m experiments.acting                       about a minute on two CPU cores

The script measures `jb.step` for a GRU and an LSTM in float32, in two ways: called in a Python loop without
jax.jit, and inside a jitted jax.lax.scan. Beside it stand the cells of Flax (linen and nnx) and Equinox, each
under the jax.jit of its own users, where these packages are installed. All programs are compiled first, then
called in turn: A B C A B C. The number is the median over the rounds.

Expectation: with 64 rows `jb.step` takes in a Python loop at most 1.5 times as long as the fastest program.
With one row it takes longer, because it multiplies one row as many, and runs a loop, to have the numbers of a
sequence.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jax_bptt as jb
from experiments.support.command_line import run_script
from experiments.support.options import check_counts

SIZES = (1, 8, 64), (64, 64, 256)  # B, I, H


@dataclasses.dataclass(frozen=True)
class Config:
    """How often."""

    steps: int = 300
    """Steps of a loop that is timed."""
    repeats: int = 15
    """Rounds in which every program is timed."""


class Stepper(NamedTuple):
    """A cell of a library.

    Attributes:
      weights: its parameters.
      carry: the carry before the first step.
      step: (weights, carry, x) -> carry, as it is called in a Python loop.
      traced: the same for a jitted loop.
    """

    weights: Any
    carry: Any
    step: Callable[[Any, Any, Any], Any]
    traced: Callable[[Any, Any, Any], Any]


def ours(name: str, rows: int, inputs: int, hidden: int) -> Stepper:
    """`jb.step`, which is compiled inside."""
    cell: Any = jb.gru(inputs, hidden) if name == "gru" else jb.lstm(inputs, hidden)
    params = cell.init(jax.random.key(0))

    def step(params: Any, carry: Any, x: Any) -> Any:
        return jb.step(cell, params, carry, x)[0]

    return Stepper(params, cell.initial_carry(params, (rows,)), step, step)


def linen(name: str, rows: int, inputs: int, hidden: int) -> Stepper:
    """A cell of flax.linen under jax.jit."""
    from flax import linen as nn

    cell = {"gru": nn.GRUCell, "lstm": nn.OptimizedLSTMCell}[name](hidden)
    carry = cell.initialize_carry(jax.random.key(0), (rows, inputs))
    weights = cell.init(jax.random.key(0), carry, jnp.ones((rows, inputs)))

    def step(weights: Any, carry: Any, x: Any) -> Any:
        return cell.apply(weights, carry, x)[0]

    return Stepper(weights, carry, jax.jit(step), step)


def nnx(name: str, rows: int, inputs: int, hidden: int) -> Stepper:
    """A cell of flax.nnx under jax.jit, split into its graph and its state."""
    from flax import nnx

    rngs = nnx.Rngs(0)
    cell = {"gru": nnx.GRUCell, "lstm": nnx.OptimizedLSTMCell}[name](inputs, hidden, rngs=rngs)
    carry = cell.initialize_carry((rows, inputs), rngs)
    graph, weights = nnx.split(cell)

    def step(weights: Any, carry: Any, x: Any) -> Any:
        return nnx.merge(graph, weights)(carry, x)[0]

    return Stepper(weights, carry, jax.jit(step), step)


def equinox(name: str, rows: int, inputs: int, hidden: int) -> Stepper:
    """A cell of Equinox under jax.jit, mapped over rows."""
    import equinox as eqx

    cell = {"gru": eqx.nn.GRUCell, "lstm": eqx.nn.LSTMCell}[name](inputs, hidden, key=jax.random.key(0))
    zeros = jnp.zeros((rows, hidden))

    def step(cell: Any, carry: Any, x: Any) -> Any:
        return jax.vmap(cell)(x, carry)

    return Stepper(cell, zeros if name == "gru" else (zeros, zeros), jax.jit(step), step)


MAKERS = {
    "ours": (ours, "jax"),
    "linen": (linen, "flax"),
    "nnx": (nnx, "flax"),
    "equinox": (equinox, "equinox"),
}


def programs(stepper: Stepper, xs: jax.Array) -> dict[str, Callable[[], Any]]:
    """The loop in Python, and the loop in a program."""
    each = list(xs)

    def python() -> Any:
        carry = stepper.carry
        for x in each:
            carry = stepper.step(stepper.weights, carry, x)
        return carry

    @jax.jit
    def scan(weights: Any, carry: Any, xs: jax.Array) -> Any:
        return jax.lax.scan(lambda carry, x: (stepper.traced(weights, carry, x), None), carry, xs)[0]

    return {"python": python, "scan": lambda: scan(stepper.weights, stepper.carry, xs)}


def measure(config: Config, name: str, size: tuple[int, int, int]) -> dict[tuple[str, str], float]:
    """Microseconds a step of every library that is installed, by library and way, in one interleaved run."""
    rows, inputs, hidden = size
    xs = jax.random.normal(jax.random.key(1), (config.steps, rows, inputs))
    here = [
        (library, make) for library, (make, package) in MAKERS.items() if importlib.util.find_spec(package)
    ]
    timed = {
        (library, way): program
        for library, make in here
        for way, program in programs(make(name, rows, inputs, hidden), xs).items()
    }
    took: dict[tuple[str, str], list[float]] = {key: [] for key in timed}
    for _ in range(1 + config.repeats):  # the first round compiles
        for key, program in timed.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            took[key].append(1e6 * (time.perf_counter() - start) / config.steps)
    return {key: statistics.median(times[1:]) for key, times in took.items()}


def main(config: Config) -> None:
    """Measure both cells at both sizes and show the table."""
    check_counts(config, steps=1, repeats=1)
    worst = dict.fromkeys(SIZES, 0.0)
    with jax.enable_x64(False):
        for name in ("gru", "lstm"):
            for size in SIZES:
                took = measure(config, name, size)
                best = min(us for (_, way), us in took.items() if way == "python")
                worst[size] = max(worst[size], took["ours", "python"] / best)
                for way in ("python", "scan"):
                    row = (f"{library} {us:.1f}" for (library, its), us in took.items() if its == way)
                    print(f"{name} (B, I, H) = {size}, {way}: {', '.join(row)} us a step", flush=True)
    few, many = worst.values()
    met = "as expected" if many <= 1.5 else "EXPECTATION NOT MET"
    print(f"jb.step takes at most {few:.2f} of the fastest's time at one row, {many:.2f} at 64; {met}")


if __name__ == "__main__":
    run_script(main, Config, __doc__)

"""Copying memory: a network repeats ten symbols a hundred steps after it read them.

    python -m experiments.copy_memory             about four minutes on two CPU cores

The problem is that of Hochreiter & Schmidhuber 1997 in the form of Arjovsky, Shah & Bengio 2016. The network
reads ten symbols, each one of eight, then T − 1 blanks, a go-mark and ten blanks. The right answer is blank,
except in the last ten steps, which repeat the symbols in order:

    x = s_1 .. s_10  _ .. _  go  _ .. _          T + 20 steps, one-hot of 10
    d = _  ..  ..  ..  ..  _  s_1 .. s_10        one of 9; mean cross-entropy over all steps

A network that remembers nothing knows when to answer, but not what: its error is 10 ln 8 / (T + 20) nats a
step. The symbols are 30 bits, and no loss before the go-mark depends on them. The GRU begins with update
gates that remember for 1 to T + 20 steps (Tallec & Ollivier 2018), the tanh Elman network with an orthogonal
W. Both have the same size, optimizer, batches and largest number of updates.

Expectation: at T = 100 the GRU is below half of the baseline on test data from every seed; the Elman network
stays within 5 % of it. (At twice the learning rate the GRU needs two thirds of the updates, and the error
of the Elman network rises above the baseline.)
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from jax import Array
from matplotlib.figure import Figure

import jax_bptt as jb
from experiments.support.command_line import run_script
from experiments.support.curves import ends, plot, updates
from experiments.support.findings import Row
from experiments.support.learning import TEST_SEED, Curves, Learner
from experiments.support.options import check_counts, check_positive
from experiments.support.tasks import run_task
from jax_bptt.cell.step_cell import AnyCell

SYMBOLS, KEPT = 8, 10  # how many different symbols there are, and how many of them are kept
BLANK, GO = 8, 9


@dataclasses.dataclass(frozen=True)
class Config:
    """Length, networks, training."""

    steps: int = 100
    """Steps T between the last symbol and the first answer."""
    hidden: int = 128
    """Hidden units H."""
    updates: int = 2000
    """Most updates of each network; one whose error is a quarter of the baseline stops there."""
    rows: int = 32
    """Sequences of each update."""
    test_rows: int = 500
    """Sequences of the test data."""
    learning_rate: float = 5e-3
    """Learning rate of Adam."""
    clip: float = 1.0
    """Largest global norm of the gradient; a longer gradient is scaled down to it."""
    every: int = 100
    """Updates between two tests."""
    seeds: int = 3
    """How many seeds; each gives other initial parameters and other data."""
    out: Path = Path("results/copy_memory")
    """Folder of the results."""


def check(config: Config) -> None:
    """SystemExit if an option has a value that the script cannot use."""
    check_counts(config, steps=1, hidden=1, updates=1, rows=1, test_rows=1, every=1, seeds=1)
    check_positive(config, "learning_rate", "clip")


def baseline(steps: int) -> float:
    """Nats a step of a network that remembers nothing."""
    return KEPT * math.log(SYMBOLS) / (steps + 2 * KEPT)


@functools.partial(jax.jit, static_argnums=(1, 2))
def sequences(key: Array, rows: int, steps: int) -> jb.Batch:
    """x, one-hot [T + 20, B, 10], and what to answer, [T + 20, B]."""
    symbols = jax.random.randint(key, (KEPT, rows), 0, SYMBOLS)

    def times(n: int, symbol: int) -> Array:
        return jnp.full((n, rows), symbol, symbols.dtype)

    xs = jnp.concatenate([symbols, times(steps - 1, BLANK), times(1, GO), times(KEPT, BLANK)])
    return jb.Batch(jax.nn.one_hot(xs, 10), jnp.concatenate([times(steps + KEPT, BLANK), symbols]))


def learner(config: Config, name: str, cell: AnyCell) -> Learner:
    """A network that answers at every step."""
    net = jb.network([cell], jb.readout(config.hidden, 9))
    test = sequences(jax.random.key(TEST_SEED), config.test_rows, config.steps)

    def score(params: jb.NetworkParams) -> dict[str, Array]:
        ys = net.apply(params, None, test.xs)[1]
        right = ys[-KEPT:].argmax(-1) == test.targets[-KEPT:]
        return {"nats": jb.softmax_cross_entropy(ys, test.targets), "recalled": right.mean(dtype=ys.dtype)}

    return Learner(
        name=name,
        net=net,
        loss=jb.softmax_cross_entropy,
        optimizer=optax.chain(optax.clip_by_global_norm(config.clip), optax.adam(config.learning_rate)),
        draw=lambda key: sequences(key, config.rows, config.steps),
        score=score,
        steps=config.updates,
        every=config.every,
        solved=lambda scores: scores["nats"] < baseline(config.steps) / 4,
    )


def learners(config: Config) -> list[Learner]:
    """The gated network and the other one."""
    gru = jb.gru(10, config.hidden, update_bias=jb.chrono(config.steps + 2 * KEPT))
    return [learner(config, "GRU", gru), learner(config, "Elman", jb.elman(10, config.hidden))]


def judge(config: Config, curves: Curves) -> list[Row]:
    """The worst seed of the GRU, the best of the Elman network."""
    chance = baseline(config.steps)
    known = f"10 ln 8 / {config.steps + 2 * KEPT} = {chance:.4f} without memory"
    gru, elman = curves["GRU"], curves["Elman"]
    worst, best = ends(gru, "nats").max(), ends(elman, "nats").min()
    recalled = ends(gru, "recalled").min(), ends(elman, "recalled").max()
    what = f"T = {config.steps}, nats a step on test data"
    return [
        Row(
            f"{what}: GRU, highest of all seeds",
            f"below half of {known}",
            f"{worst:.4f} ({worst / chance:.2f} of it, {recalled[0]:.1%} recalled) after {updates(gru)}",
            bool(worst < chance / 2),
        ),
        Row(
            f"{what}: Elman, lowest of all seeds",
            known,
            f"{best:.4f} ({best / chance:.2f} of it, {recalled[1]:.1%} recalled) after {updates(elman)}",
            bool(abs(best / chance - 1) < 0.05),
        ),
    ]


def draw(config: Config, curves: Curves) -> Figure:
    """Nats and share of symbols recalled, over updates."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    plot(left, curves, "nats")
    chance = baseline(config.steps)
    left.axhline(chance, color="0.3", lw=1, ls="--")
    label = f"no memory: 10 ln 8 / {config.steps + 2 * KEPT}"
    left.text(config.updates, chance * 1.04, label, color="0.3", ha="right")
    left.axhline(chance / 2, color="0.6", lw=1, ls=":")
    left.text(config.updates, chance * 0.52, "half of it", color="0.5", ha="right")
    left.set(xlabel="updates", ylabel="cross-entropy on test data, nats a step", ylim=(0, 1.25 * chance))
    left.set_xlim(0, 1.02 * config.updates)
    left.set_title(f"copying memory over {config.steps} steps: one line a seed")
    left.legend(loc="lower left")

    plot(right, curves, "recalled", scale=100)
    right.axhline(100 / SYMBOLS, color="0.3", lw=1, ls="--")
    right.text(config.updates, 100 / SYMBOLS + 5, "guessing: 1 in 8", color="0.3", ha="right")
    right.set(xlabel="updates", ylabel="symbols recalled, %", ylim=(0, 102))
    right.set_xlim(0, 1.02 * config.updates)
    right.set_title(f"share of the {KEPT} symbols that are repeated rightly")
    return figure


def main(config: Config) -> None:
    """Train both, draw, judge."""
    check(config)
    run_task("copy_memory", config, learners, draw, judge)


if __name__ == "__main__":
    run_script(main, Config, __doc__)

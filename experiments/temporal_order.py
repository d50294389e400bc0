"""Temporal order: exploding gradients, and what clipping their norm does for a tanh network.

    python -m experiments.temporal_order             about two minutes on two CPU cores

The problem is 6a of Hochreiter & Schmidhuber 1997 as in Pascanu, Mikolov & Bengio 2013. Two letters in a
sequence of random letters count, one early and one in the middle; after the last letter the network says
which they were, in order:

    x_t one of {c, d, e, f}, but x_i, x_j one of {A, B},   i in [T/10, 2T/10), j in [5T/10, 6T/10)
    d = AA, AB, BA or BB

The same tanh Elman network is trained from the same seeds on the same batches by SGD, without and with
clipping:

    ĝ = dE/dθ,   ĝ ← ĝ · c / ‖ĝ‖ where ‖ĝ‖ > c

Where the network begins to keep a letter, ‖dE/dθ‖ grows from one to tens and hundreds, since it holds
products of T factors dS_t/dS_{t−1}. Taken in full, such steps leave most units saturated (|h| > 0.99 in 59 to
84 % of them at the end, with clipping in 1 to 9 %), and the gradient no longer depends on an early letter.

Expectation: at T = 50 clipping at 1 ends below 1 % error from every seed; without it every seed ends at
chance, 75 % error. (So did two seeds without clipping at learning rates of 0.03 and 0.01.)
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
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

LETTERS = "ABcdef"
CHANCE = 0.75
SOLVED = 0.01


@dataclasses.dataclass(frozen=True)
class Config:
    """Length, network, training."""

    steps: int = 50
    """Letters T of a sequence."""
    hidden: int = 50
    """Hidden units H."""
    updates: int = 20_000
    """Most updates of each network; one that solves the task earlier stops there."""
    rows: int = 20
    """Sequences of each update."""
    test_rows: int = 2000
    """Sequences of the test data."""
    learning_rate: float = 0.1
    """Learning rate of SGD, which has no momentum."""
    clip: float = 1.0
    """Largest global norm of the gradient, for the network that is trained with clipping."""
    every: int = 500
    """Updates between two tests."""
    seeds: int = 5
    """How many seeds; each gives other initial parameters and other data."""
    out: Path = Path("results/temporal_order")
    """Folder of the results."""


def check(config: Config) -> None:
    """SystemExit if an option has a value that the script cannot use."""
    check_counts(config, steps=10, hidden=1, updates=1, rows=1, test_rows=1, every=1, seeds=1)
    check_positive(config, "learning_rate", "clip")


@functools.partial(jax.jit, static_argnums=(1, 2))
def sequences(key: Array, rows: int, steps: int) -> jb.Batch:
    """x, one-hot [T, B, 6], and the class of each row, [B]: 2 · first + second, A = 0 and B = 1."""
    of_letters, of_pair, of_early, of_middle = jax.random.split(key, 4)
    letters = jax.random.randint(of_letters, (steps, rows), 2, 6)
    first, second = jax.random.randint(of_pair, (2, rows), 0, 2)
    early = jax.random.randint(of_early, (rows,), steps // 10, 2 * steps // 10)
    middle = jax.random.randint(of_middle, (rows,), 5 * steps // 10, 6 * steps // 10)
    t = jnp.arange(steps)[:, None]
    letters = jnp.where(t == early[None], first[None], letters)
    letters = jnp.where(t == middle[None], second[None], letters)
    return jb.Batch(jax.nn.one_hot(letters, len(LETTERS)), 2 * first + second)


def learner(config: Config, name: str, optimizer: optax.GradientTransformation) -> Learner:
    """The Elman network by some optimizer."""
    net = jb.network([jb.elman(len(LETTERS), config.hidden)], jb.last(jb.readout(config.hidden, 4)))
    test = sequences(jax.random.key(TEST_SEED), config.test_rows, config.steps)

    def score(params: jb.NetworkParams) -> dict[str, Array]:
        ys = net.apply(params, None, test.xs)[1]
        wrong = ys.argmax(-1) != test.targets
        return {"nats": jb.softmax_cross_entropy(ys, test.targets), "error": wrong.mean(dtype=ys.dtype)}

    return Learner(
        name=name,
        net=net,
        loss=jb.softmax_cross_entropy,
        optimizer=optimizer,
        draw=lambda key: sequences(key, config.rows, config.steps),
        score=score,
        steps=config.updates,
        every=config.every,
        solved=lambda scores: scores["error"] < SOLVED,
    )


def learners(config: Config) -> list[Learner]:
    """The two arms."""
    sgd = optax.sgd(config.learning_rate)
    clipped = optax.chain(optax.clip_by_global_norm(config.clip), sgd)
    return [learner(config, "clipped", clipped), learner(config, "not clipped", sgd)]


def judge(config: Config, curves: Curves) -> list[Row]:
    """How many seeds of each arm end as expected."""
    clipped, free = curves["clipped"], curves["not clipped"]
    errors, nats = ends(free, "error"), ends(free, "nats")
    lost = int((~np.isfinite(nats)).sum())
    sampling = math.sqrt(CHANCE * (1 - CHANCE) / config.test_rows)
    solved = int((ends(clipped, "error") < SOLVED).sum())
    chance = int((abs(errors - CHANCE) < 4 * sampling).sum())
    task = f"T = {config.steps}, tanh Elman by SGD"
    return [
        Row(
            f"{task}, norm clipped at {config.clip:g}: seeds below 1 % test error",
            "all (solved by clipping: Pascanu et al. 2013)",
            f"{solved} of {len(clipped)} within {updates(clipped)}",
            solved == len(clipped),
        ),
        Row(
            f"{task}, not clipped: seeds at chance in the end",
            "all; chance is 75 % error, ln 4 = 1.386 nats",
            f"{chance} of {len(free)} (error {errors.min():.1%} to {errors.max():.1%}, "
            f"{nats.min():.2f} to {nats.max():.2f} nats, {lost} not finite) after {updates(free)}",
            chance == len(free),
        ),
    ]


def draw(config: Config, curves: Curves) -> Figure:
    """Test error, and the largest gradient norm, over updates."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    plot(left, curves, "error", scale=100)
    left.axhline(100 * CHANCE, color="0.3", lw=1, ls="--")
    left.text(config.updates, 100 * CHANCE + 3, "chance", color="0.3", ha="right")
    left.set(xlabel="updates", ylabel="error on test data, %", ylim=(-2, 90))
    left.set_title(f"temporal order over {config.steps} steps: one line a seed")
    left.legend(loc="center right")

    plot(right, curves, "grad_norm")
    right.axhline(config.clip, color="0.3", lw=1, ls="--")
    right.text(config.updates, config.clip * 0.85, "threshold of clipping", color="0.3", ha="right", va="top")
    right.set(xlabel="updates", ylabel="‖dE/dθ‖ before clipping", yscale="log")
    right.set_ylim(config.clip / 2, None)
    right.set_title(f"largest gradient norm of each {config.every} updates")
    return figure


def main(config: Config) -> None:
    """Train both arms, draw, judge."""
    check(config)
    run_task("temporal_order", config, learners, draw, judge)


if __name__ == "__main__":
    run_script(main, Config, __doc__)

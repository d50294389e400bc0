"""The embedded Reber grammar: a network keeps one letter in memory while it reads a string.

    python -m experiments.embedded_reber                  about two minutes on two CPU cores

This is experiment 1 of Hochreiter & Schmidhuber 1997. A string is B, then T or P, then a string of the Reber
grammar, then the same T or P again, and E; where the grammar allows two letters, a coin decides:

    B T  BPVVE  T E            B P  BTSSXXTVVE  P E            (of 9 letters and more)

A network reads one letter a step, one of 7 as a unit vector, and predicts the next. There are 256 strings to
learn and 256 to test, all different. A prediction is right where the letters that the grammar allows are the
most active outputs; a network has solved the task once every prediction in all 512 strings is right. The
last letter but one, T or P, needs a memory over the whole string between.

The script counts the sequences that a network reads until then. Published counts (table 1 there) are means of
the runs that succeed: 8,440 for the best LSTM, 9,500 to 39,740 for other sizes and learning rates, 25,000 and
more for RTRL, of which only some runs succeed. No Elman network succeeded within 200,000.

The setting here differs: an LSTM with forget gates (not of 1997), 16 cells and softmax outputs with
cross-entropy (there 3 blocks of 2 cells or 4 of 1, logistic outputs, squared error), the full gradient
(there cut at the gates), Adam on batches of 4 strings (there one string an update), strings padded to the
longest and masked. So the published numbers and ours do not say which program learns faster. An
Elman network of 15 units, as in the table, is trained in the same way: with the full gradient, and with that
of one step, `truncated(1)`, which Elman used.

Expectation: the LSTM solves it in all seeds within 20,000 sequences (8 cells take up to twice as many as 16).
The Elman network with the gradient of one step solves it in none; with the full gradient it may solve it.
"""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from matplotlib.figure import Figure

import jax_bptt as jb
from experiments.support.command_line import run_script
from experiments.support.findings import Row
from experiments.support.learning import Curve, Curves, Learner, learn
from experiments.support.options import check_counts, check_positive
from experiments.support.runs import Run, StopRequest
from experiments.support.tasks import run_experiment
from jax_bptt.cell.step_cell import AnyCell

LETTERS = "BTPSXVE"
REBER = {  # state -> what may come, and the state after it; 7 is the end
    0: {"B": 1},
    1: {"T": 2, "P": 3},
    2: {"S": 2, "X": 4},
    3: {"T": 3, "V": 5},
    4: {"X": 3, "S": 6},
    5: {"P": 4, "V": 6},
    6: {"E": 7},
}
STRINGS = 256  # to learn, and to test
ROWS = 4  # of a batch
PUBLISHED = 8440  # sequences
KNOWN = {  # Hochreiter & Schmidhuber 1997, table 1
    "LSTM": "97 to 100 % of the runs, 8,440 sequences at best",
    "Elman": "not given (RTRL: some fraction of the runs, 25,000)",
    "Elman, one step": "0 % within 200,000",
}

KINDS: dict[str, tuple[AnyCell, jb.GradientMethod]] = {
    "LSTM": (jb.lstm(7, 16), jb.full()),
    "Elman": (jb.elman(7, 15), jb.full()),
    "Elman, one step": (jb.elman(7, 15), jb.truncated(1)),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """How long to train, and how fast."""

    sequences: int = 20_000
    """Sequences presented at most."""
    learning_rate: float = 0.01
    """Learning rate of Adam."""
    seeds: int = 5
    """How many seeds; each trains one network of each kind and has strings of its own."""
    out: Path = Path("results/embedded_reber")
    """Folder of the results."""


def check(config: Config) -> None:
    """SystemExit if an option has a value that the script cannot use."""
    check_counts(config, sequences=ROWS, seeds=1)
    check_positive(config, "learning_rate")


def embedded(rng: np.random.Generator) -> tuple[str, list[str]]:
    """A string, and after each letter but the last the letters that may come."""
    outer, string, allowed, state = "TP"[rng.integers(2)], "", [], 0
    while state != 7:
        allowed.append("".join(REBER[state]))
        letter = allowed[-1][rng.integers(len(allowed[-1]))]
        string, state = string + letter, REBER[state][letter]
    return "B" + outer + string + outer + "E", ["TP", *allowed, outer, "E"]


class Strings(NamedTuple):
    """Strings as arrays, time first, padded to the longest.

    Attributes:
      now: letters read, as numbers, [T, N].
      next: letters that come, [T, N].
      allowed: bool [T, N, 7], which may come.
      lengths: predictions in each string, [N].
    """

    now: Array
    next: Array
    allowed: Array
    lengths: Array


def strings(seed: int, count: int) -> Strings:
    """Different strings, in the order in which they came."""
    rng, found = np.random.default_rng(seed), dict[str, list[str]]()
    while len(found) < count:
        found.update([embedded(rng)])
    lengths = np.array([len(s) - 1 for s in found], np.int32)
    letters = np.zeros((lengths.max() + 1, count), np.int32)
    may = np.zeros((lengths.max(), count, 7), bool)
    for n, (string, allowed) in enumerate(found.items()):
        letters[: len(string), n] = [LETTERS.index(z) for z in string]
        may[: len(allowed), n] = [[z in some for z in LETTERS] for some in allowed]
    return Strings(*map(jnp.asarray, (letters[:-1], letters[1:], may, lengths)))


def unit_vectors(letters: Array) -> Array:
    """What the network reads, [T, N, 7]."""
    return jax.nn.one_hot(letters, 7, dtype=jnp.result_type(float))


def right(ys: Array, allowed: Array) -> Array:
    """Whether the letters that may come are the most active outputs, bool [T, N]."""
    lowest = jnp.min(jnp.where(allowed, ys, jnp.inf), -1)
    return lowest > jnp.max(jnp.where(allowed, -jnp.inf, ys), -1)


def learner(config: Config, kind: str, seed: int) -> Learner:
    """One network, of KINDS."""
    cell, gradient = KINDS[kind]
    net = jb.network([cell], jb.readout(cell.hidden_size, 7))
    data = strings(seed, 2 * STRINGS)
    mask = jb.mask_of_lengths(data.lengths, len(data.now))

    def draw(key: Array) -> jb.Batch:
        chosen = jax.random.randint(key, (ROWS,), 0, STRINGS)
        return jb.Batch(unit_vectors(data.now[:, chosen]), data.next[:, chosen], mask[:, chosen])

    def score(params: jb.NetworkParams) -> dict[str, Array]:
        _, ys = net.apply(params, None, unit_vectors(data.now), mask=mask)
        of_step = right(ys, data.allowed)
        of_string = jnp.all(of_step | ~mask, 0)
        memory = of_step[data.lengths - 2, jnp.arange(2 * STRINGS)]
        learnt, tested = of_string[:STRINGS], of_string[STRINGS:]
        return {"learnt": jnp.mean(learnt), "tested": jnp.mean(tested), "memory": jnp.mean(memory)}

    updates = config.sequences // ROWS
    return Learner(
        name=f"{kind} seed {seed}",
        net=net,
        loss=jb.softmax_cross_entropy,
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.learning_rate)),
        draw=draw,
        score=score,
        steps=updates,
        every=min(100, updates),
        solved=lambda scores: scores["learnt"] == scores["tested"] == 1,
        seed=seed,
        gradient=gradient,
    )


def train(config: Config, run: Run, stop: StopRequest) -> Curves:
    """The lines of every seed, by kind."""
    return {
        kind: [learn(run, stop, learner(config, kind, seed)) for seed in range(config.seeds)]
        for kind in KINDS
    }


def presented(lines: Curve) -> int | None:
    """Sequences until success, None without."""
    last = lines[-1]
    return ROWS * last["step"] if last["learnt"] == last["tested"] == 1 else None


def judge(config: Config, curves: Curves) -> list[Row]:
    """In how many seeds each kind solves the task, and after how many sequences."""
    rows = []
    for kind, of_seeds in curves.items():
        counts = sorted(n for n in map(presented, of_seeds) if n is not None)
        ours = f"{len(counts)} of {len(of_seeds)} seeds within {config.sequences:,}"
        ours += (
            f", {counts[0]:,} to {counts[-1]:,}, median {statistics.median(counts):,.0f}" if counts else ""
        )
        solved, unsolved = len(counts) == len(of_seeds), not counts
        met = {"LSTM": solved, "Elman, one step": unsolved}.get(kind, True)
        rows.append(Row(f"solved by {kind}", KNOWN[kind], ours, met))
    return rows


def draw_figure(curves: Curves) -> Figure:
    """For every kind the test strings that are right, and the letter that needs the memory."""
    figure = Figure(figsize=(12.5, 4.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    panels = {
        "tested": "every letter of a test string",
        "memory": "the last but one: T or P, as at the start",
    }
    for axis, (score, title) in zip(axes, panels.items(), strict=True):
        for kind, colour in zip(curves, ("C0", "C1", "C3"), strict=False):
            for seed, lines in enumerate(curves[kind]):
                points = [(ROWS * line["step"] / 1000, 100 * line[score]) for line in lines]
                axis.plot(
                    *zip(*points, strict=True),
                    color=colour,
                    lw=1,
                    alpha=0.8,
                    label=kind if not seed else None,
                )
                if score == "tested" and presented(lines):
                    axis.plot(*points[-1], "o", color=colour)
        axis.axvline(PUBLISHED / 1000, color="0.3", lw=1, ls="--")
        axis.text(PUBLISHED / 1000 + 0.3, 3, "LSTM of 1997: 8,440", color="0.3")
        axis.set(title=title, xlabel="thousand sequences presented", xlim=(0, None), ylim=(0, 103))
    axes[1].axhline(50, color="0.3", lw=1, ls="--")
    axes[1].text(0.3, 44, "chance", color="0.3", va="top")
    axes[0].set_ylabel("right, % of the strings")
    axes[1].legend(loc="lower right")
    figure.suptitle(
        f"Embedded Reber grammar: who keeps the letter in memory ({len(curves['LSTM'])} seeds; dots: solved)"
    )
    return figure


def main(config: Config) -> None:
    """Train, draw, judge."""
    check(config)
    run_experiment("embedded_reber", config, train, lambda _, curves: draw_figure(curves), judge)


if __name__ == "__main__":
    run_script(main, Config, __doc__)

"""The adding problem: a network keeps two numbers over hundreds of steps and adds them at the end.

    python -m experiments.adding             about four minutes on two CPU cores

The problem is that of Hochreiter & Schmidhuber 1997 in the form of Le, Jaitly & Hinton 2015 and Arjovsky,
Shah & Bengio 2016. Every step gives a value and a mark; a mark stands at one step of each half:

    x_t = (v_t, m_t),   v_t uniform in [0, 1),   m_i = m_j = 1,  0 ≤ i < T/2 ≤ j < T
    d = v_i + v_j,      asked after the last step

A network that remembers nothing says d = 1 and has an error of Var(d) = 2/12 = 1/6. The factor dS_t/dS_{t−1}
decides whether a network can remember: it is a gate in the LSTM and the GRU, and diag(g′) W in the Elman
network. All networks have the same size, optimizer and batches. A network whose error falls to 0.002 stops
there; all others make every update.

Expectation: at T = 100 GRU and LSTM are below 0.005 on test data from every seed, while the error of the
tanh Elman network, whose W begins orthogonal, is never below 0.8/6; at T = 400 GRU and LSTM are below
0.02. (More updates change this: with 3,000 of them, one seed of the Elman network reached 0.12.)
"""

from __future__ import annotations

import dataclasses
import functools
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
from experiments.support.options import check_counts, check_positive, refusal
from experiments.support.tasks import run_task
from jax_bptt.cell.step_cell import AnyCell

BASELINE = 1 / 6
SOLVED = 0.002


@dataclasses.dataclass(frozen=True)
class Config:
    """Lengths, networks, training."""

    short: int = 100
    """Steps T at which all networks are compared."""
    long: int = 400
    """Steps T at which the gated networks are trained as well."""
    hidden: int = 64
    """Hidden units H."""
    updates: int = 1600
    """Most updates of each network; one that solves the task earlier stops there."""
    rows: int = 32
    """Sequences of each update."""
    test_rows: int = 1000
    """Sequences of the test data."""
    learning_rate: float = 3e-3
    """Learning rate of Adam."""
    clip: float = 1.0
    """Largest global norm of the gradient; a longer gradient is scaled down to it."""
    every: int = 100
    """Updates between two tests."""
    seeds: int = 3
    """How many seeds; each gives other initial parameters and other data."""
    out: Path = Path("results/adding")
    """Folder of the results."""


def check(config: Config) -> None:
    """SystemExit if an option has a value that the script cannot use."""
    check_counts(config, short=4, long=4, hidden=1, updates=1, rows=1, test_rows=1, every=1, seeds=1)
    check_positive(config, "learning_rate", "clip")
    if config.short == config.long:
        raise refusal(config, "long", "another number than --short")


@functools.partial(jax.jit, static_argnums=(1, 2))
def sequences(key: Array, rows: int, steps: int) -> jb.Batch:
    """x [T, B, 2] and the sums [B, 1]."""
    of_values, of_first, of_second = jax.random.split(key, 3)
    values = jax.random.uniform(of_values, (steps, rows))
    first = jax.random.randint(of_first, (rows,), 0, steps // 2)
    second = jax.random.randint(of_second, (rows,), steps // 2, steps)
    t = jnp.arange(steps)[:, None]
    marks = ((t == first[None]) | (t == second[None])).astype(values.dtype)
    return jb.Batch(jnp.stack([values, marks], -1), jnp.sum(values * marks, 0)[:, None])


def mean_squared_error(ys: Array, targets: Array) -> Array:
    """Over rows: `jb.squared_error` is their sum."""
    return jb.squared_error(ys, targets) / len(ys)


def learner(config: Config, name: str, cell: AnyCell, steps: int) -> Learner:
    """A network that reads T steps."""
    net = jb.network([cell], jb.last(jb.readout(config.hidden, 1)))
    test = sequences(jax.random.key(TEST_SEED), config.test_rows, steps)

    def score(params: jb.NetworkParams) -> dict[str, Array]:
        return {"mse": mean_squared_error(net.apply(params, None, test.xs)[1], test.targets)}

    return Learner(
        name=f"{name}, T = {steps}",
        net=net,
        loss=mean_squared_error,
        optimizer=optax.chain(optax.clip_by_global_norm(config.clip), optax.adam(config.learning_rate)),
        draw=lambda key: sequences(key, config.rows, steps),
        score=score,
        steps=config.updates,
        every=config.every,
        solved=lambda scores: scores["mse"] < SOLVED,
    )


def learners(config: Config) -> list[Learner]:
    """All networks, the short ones first."""
    h, short, long = config.hidden, config.short, config.long
    return [
        learner(config, "GRU", jb.gru(2, h), short),
        learner(config, "LSTM", jb.lstm(2, h, forget_bias=jb.chrono(short)), short),
        learner(config, "Elman", jb.elman(2, h), short),
        learner(config, "GRU", jb.gru(2, h), long),
        learner(config, "LSTM", jb.lstm(2, h, forget_bias=jb.chrono(long)), long),
    ]


def judge(config: Config, curves: Curves) -> list[Row]:
    """The worst seed of a gated network, the best moment of the Elman network."""
    rows = []
    for name, of_seeds in curves.items():
        end = ends(of_seeds, "mse")
        if name.startswith("Elman"):
            best = np.min([m["mse"] for lines in of_seeds for m in lines])
            what = f"{name}: test MSE, lowest of all seeds and moments"
            known, met = f"1/6 = {BASELINE:.4f}, that of predicting 1", abs(best / BASELINE - 1) < 0.2
            ours = f"{best:.4f} ({end.min():.4f} to {end.max():.4f} after {updates(of_seeds)})"
        else:
            wanted = 0.005 if name.endswith(f" {config.short}") else 0.02
            what = f"{name}: test MSE at the end, highest of all seeds"
            known, met = f"below {wanted}; without memory 1/6", end.max() < wanted
            ours = f"{end.max():.4f} after {updates(of_seeds)}"
        rows.append(Row(what, known, ours, bool(met)))
    return rows


def draw(config: Config, curves: Curves) -> Figure:
    """Test error over updates, one panel for each length."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, steps in zip(panels, (config.short, config.long), strict=True):
        here = {n.split(",")[0]: lines for n, lines in curves.items() if n.endswith(f" {steps}")}
        plot(axes, here, "mse")
        axes.axhline(BASELINE, color="0.3", lw=1, ls="--")
        axes.text(config.updates, BASELINE * 0.87, "no memory: 1/6", color="0.3", ha="right", va="top")
        axes.axhline(SOLVED, color="0.6", lw=1, ls=":")
        axes.text(0, SOLVED * 0.93, " ends here", color="0.5", va="top")
        axes.set(yscale="log", xlim=(0, config.updates * 1.02), xlabel="updates")
        axes.set_title(f"adding problem over {steps} steps: one line a seed")
    panels[0].legend(loc="center right")
    panels[0].set_ylabel("mean squared error on test data")
    return figure


def main(config: Config) -> None:
    """Train all, draw, judge."""
    check(config)
    run_task("adding", config, learners, draw, judge)


if __name__ == "__main__":
    run_script(main, Config, __doc__)

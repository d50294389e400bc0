"""Sunspots of the next year: a small recurrent network beside persistence and linear autoregression.

    python -m experiments.sunspots

The yearly numbers of sunspots, 1700 to 2008 (of statsmodels). As in Weigend, Huberman & Rumelhart 1990
the years up to 1920 are learnt, and each later year is predicted from all before it:

    Y_t = network(y_1700..y_t)  for  y_{t+1},     ARV = mean of (y_{t+1} − Y_t)² over the years / 1535

where 1535 is their variance of the whole record, so that the average as a prediction has ARV 1. Theirs
is a feedforward network of the last 12 years with weight elimination: ARV 0.086 for 1921–1955 and 0.35
for 1956–1979; the threshold model (TAR) of Tong & Lim has 0.097 and 0.28.

Here a network reads one year a step, its whole past in 4 units, by the full gradient through 220 years.
220 numbers are few, so that a network learns them by heart: 4 units, noise on what it reads (of 0.4
standard deviations), and few updates. These were chosen by learning up to 1870 and predicting 1871–1920
(8 and 16 units, an LSTM, less noise and more updates were worse); no year of the tests took part.

Expectation: both networks have less than half the ARV of persistence (next year as this one) on both tests,
TODO
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import statsmodels.datasets.sunspots
import tyro
from jax import Array

import jax_bptt as jb
from experiments.learning import Learner, learn, learnt
from experiments.options import given, refuse, settings
from experiments.results import Row, conclude
from experiments.runs import Run, StopRequest

FIRST, LAST_LEARNT = 1700, 1920
VARIANCE = 1535.0  # of the record, as in the paper
PERIODS = {"1921–1955": (1921, 1955), "1956–1979": (1956, 1979)}
PUBLISHED = {  # ARV by period
    "TAR (Tong & Lim)": {"1921–1955": 0.097, "1956–1979": 0.28},
    "feedforward (Weigend et al.)": {"1921–1955": 0.086, "1956–1979": 0.35},
}
CELLS: dict[str, jb.Cell | jb.StepCell] = {"Elman": jb.elman(1, 4), "GRU": jb.gru(1, 4)}


@dataclasses.dataclass(frozen=True)
class Config:
    """How long to train, and how fast."""

    updates: int = 400
    """Updates, each of the whole series of the years learnt."""
    learning_rate: float = 5e-3
    """Of Adam."""
    noise: float = 0.4
    """Standard deviation of what is added to the inputs, in those of the series."""
    rows: int = 4
    """Copies of the series in a batch, each with its own noise."""
    seeds: int = 10
    """Networks of each kind."""
    out: Path = Path("results/sunspots")
    """Result folder."""


def check(config: Config) -> None:
    """SystemExit where an option cannot be meant."""
    refuse(
        config,
        *((name, getattr(config, name) >= 1, "number of at least 1") for name in ("updates", "rows", "seeds")),
        ("learning_rate", 0 < config.learning_rate < math.inf, "positive number"),
        ("noise", 0 <= config.noise < math.inf, "number of at least 0"),
    )


def series() -> np.ndarray:
    """Sunspots of each year from 1700 on, [309]."""
    return statsmodels.datasets.sunspots.load_pandas().data["SUNACTIVITY"].to_numpy()


def arv(predictions: np.ndarray, period: tuple[int, int]) -> float:
    """The ARV of predictions of the years from 1701 on, [308], over some of the years."""
    years = slice(period[0] - FIRST - 1, period[1] - FIRST)
    return float(np.mean((series()[1:] - predictions)[years] ** 2) / VARIANCE)


def autoregression(order: int) -> np.ndarray:
    """Linear predictions of the years from 1701 on by the last few, least squares on the years learnt."""
    y = series()
    lagged = [np.concatenate([np.full(lag, np.nan), y[:-lag]]) for lag in range(1, order + 1)]
    past = np.stack([*lagged, np.ones(len(y))], 1)
    learnt_years = slice(order, LAST_LEARNT - FIRST + 1)
    weights, *_ = np.linalg.lstsq(past[learnt_years], y[learnt_years])
    return (past @ weights)[1:]


def baselines() -> dict[str, np.ndarray]:
    """What needs no network, by name."""
    return {"persistence": series()[:-1], "AR(2)": autoregression(2), "AR(9)": autoregression(9)}


def standard() -> tuple[Array, float, float]:
    """The series in standard deviations of the years learnt, [309, 1], their mean and deviation."""
    y = series()
    some = y[: LAST_LEARNT - FIRST + 1]
    z = jnp.asarray((y - some.mean()) / some.std(), jnp.result_type(float))[:, None]
    return z, float(some.mean()), float(some.std())


def learner(config: Config, kind: str, seed: int) -> Learner:
    """One network, of CELLS."""
    cell = CELLS[kind]
    net = jb.network([cell], jb.readout(cell.hidden_size, 1))
    z, _, deviation = standard()
    known = jnp.repeat(z[: LAST_LEARNT - FIRST + 1, None], config.rows, 1)

    def draw(key: Array) -> jb.Batch:
        noise = config.noise * jax.random.normal(key, known[:-1].shape, known.dtype)
        return jb.Batch(known[:-1] + noise, known[1:])

    def score(params: jb.NetworkParams) -> dict[str, Array]:
        _, ys = net.apply(params, None, z[:-1])
        errors = jnp.square(deviation * (z[1:] - ys)) / VARIANCE
        periods = {"learnt": (FIRST + 1, LAST_LEARNT), **PERIODS}
        return {name: errors[a - FIRST - 1 : b - FIRST].mean() for name, (a, b) in periods.items()}

    return Learner(
        name=f"{kind} seed {seed}",
        net=net,
        loss=jb.squared_error,
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.learning_rate)),
        rows=config.rows,
        draw=draw,
        score=score,
        steps=config.updates,
        every=-(-config.updates // 10),
        seed=seed,
    )


def train(config: Config, run: Run, stop: StopRequest) -> dict[str, np.ndarray]:
    """The predictions of all networks for the years from 1701 on, [seeds, 308], by kind."""
    z, mean, deviation = standard()
    found: dict[str, list[np.ndarray]] = {kind: [] for kind in CELLS}
    for kind, predictions in found.items():
        for seed in range(config.seeds):
            one = learner(config, kind, seed)
            learn(run, stop, one)
            _, ys = one.net.apply(learnt(run, one), None, z[:-1])
            predictions.append(mean + deviation * np.asarray(ys[:, 0]))
    return {kind: np.array(predictions) for kind, predictions in found.items()}

"""Forecasts ten years ahead, with intervals: births per woman of 201 countries and groups of countries.

    python -m experiments.forecast                        about a minute on two CPU cores
    python -m experiments.forecast --head quantile        quantiles in the place of a normal distribution

The data are the yearly fertility rates y of the World Bank, 1960 to 2011 (from statsmodels), in rows of
unequal length with gaps. One network learns the years up to 1991 of all rows and stops when the loss on 1992
to 2001 no longer falls. From 2001 on it reads its own samples, so that it draws whole paths:

    reads       y_t and its last change Δ_t = y_t − y_{t−1}, each in standard deviations
    says        the distribution of Δ_{t+1} − Δ_t:  a mean and a log standard deviation, or seven quantiles
    samples     Δ_{t+1} from it, y_{t+1} = y_t + Δ_{t+1}, and reads them; ten years, 200 paths a row

A step at which y_t or y_{t−1} is not known is masked. A little noise on y (a tenth of the deviation of a
change) keeps the network from trusting the third decimal. The paths of all seeds are taken together.

It is compared with the last value, and with two autoregressions by least squares on five years, of y and of
the changes of log y. Each has the spread of the row's own errors, and reads all years up to 2001.

Expectation: lower CRPS than each of them at every horizon from 1 to 10 years. With one seed alone the mean
over the horizons is lower than theirs, too (with quantiles, one of five seeds was above). Of what happened,
85 to 95 % lie within the interval of 90 %, in the mean over the horizons. The reason: rates fall in an S,
slowly, fast, slowly, and stay near two. A linear map with the same weights for all rows cannot say at which
of these a row is; a network that reads the row from its beginning can. It can also tell a smoothed series
from a counted one, and is then surer.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import jax_bptt as jb
from experiments.support import forecasts
from experiments.support.command_line import run_script
from experiments.support.comparisons import markdown
from experiments.support.early_stopping import learn_best
from experiments.support.fertility import FIRST, LAST, LEARNT, VALIDATED, at, rates
from experiments.support.findings import Row
from experiments.support.forecast_figure import draw
from experiments.support.forecast_heads import HEADS, Head
from experiments.support.forecasts import Scores
from experiments.support.learning import Curves, Learner
from experiments.support.options import check_counts, check_positive, refusal
from experiments.support.runs import Run, StopRequest
from experiments.support.tasks import run_experiment

HORIZON = LAST - VALIDATED
ORDER = 5  # years that an autoregression reads
OURS = "GRU"


@dataclasses.dataclass(frozen=True)
class Config:
    """Network, training, samples."""

    head: Literal["gaussian", "quantile"] = "gaussian"
    """What the network says: a normal distribution or quantiles."""
    hidden: int = 32
    """Hidden units H of the GRU."""
    noise: float = 0.1
    """Standard deviation of the noise on y while learning, in standard deviations of a change."""
    learning_rate: float = 3e-3
    """Learning rate of Adam."""
    updates: int = 1500
    """Most updates; each reads all rows."""
    every: int = 25
    """Updates between two looks at the validation years."""
    patience: int = 300
    """Updates without a lower validation loss after which the training ends."""
    samples: int = 200
    """Sample paths of each seed and row."""
    seeds: int = 5
    """How many seeds; each trains one network."""
    out: Path = Path("results/forecast")
    """Folder of the results."""


def check(config: Config) -> None:
    """SystemExit if an option has a value that the script cannot use."""
    check_counts(config, hidden=1, updates=1, every=1, patience=1, samples=2, seeds=1)
    check_positive(config, "learning_rate")
    if not 0 <= config.noise < math.inf:
        raise refusal(config, "noise", "a number of at least 0")


class Scale(NamedTuple):
    """Mean and standard deviation of y, and the standard deviation of a change, of the years learnt."""

    mean: float
    deviation: float
    change: float

    def read(self, y: Array, before: Array) -> Array:
        """What the network reads of y_t and y_{t−1}, [..., 2]."""
        return jnp.stack([(y - self.mean) / self.deviation, (y - before) / self.change], -1)


@functools.cache
def scale() -> Scale:
    """Of all rows together."""
    some = rates().births[: at(LEARNT) + 1]
    return Scale(*(float(f) for f in (np.nanmean(some), np.nanstd(some), np.nanstd(np.diff(some, axis=0)))))


def batch(noise: Array | float, first: int, last: int) -> jb.Batch:
    """All rows at the steps 1961, 1962, ..; the next change of each is scored in the years first to last.

    Args:
      noise: on y, [years, N] or 0, in standard deviations of a change; the next y is without noise.
      first, last: years.
    """
    births = jnp.asarray(rates().births[: at(last) + 1], float)
    known = jnp.isfinite(births)
    births = jnp.where(known, births, scale().mean)
    seen = births + scale().change * noise
    before, now, after = seen[:-2], seen[1:-1], births[2:]
    turn = (after - now) - (now - before)
    changes = known[:-1] & known[1:]
    scored = changes[1:] & (jnp.arange(len(turn)) >= at(first) - 2)[:, None]
    xs, targets = scale().read(now, before), turn[..., None] / scale().change
    return jb.Batch(xs, targets, mask=changes[:-1], weight=scored.astype(turn.dtype))


def learner(config: Config, seed: int) -> Learner:
    """One network, with its loss in the years of validation."""
    head = HEADS[config.head]
    net = jb.network([jb.gru(2, config.hidden)], jb.readout(config.hidden, head.outputs))
    shape = (at(LEARNT) + 1, len(rates().names))
    valid = batch(0.0, LEARNT + 1, VALIDATED)

    def draw_batch(key: Array) -> jb.Batch:
        return batch(config.noise * jax.random.normal(key, shape), FIRST, LEARNT)

    def score(params: jb.NetworkParams) -> dict[str, Array]:
        _, said = net.apply(params, None, valid.xs, mask=valid.mask)
        return {"valid": head.loss(said, valid.targets, mask=valid.mask, weight=valid.weight)}

    return Learner(
        name=f"{OURS}, seed {seed}",
        net=net,
        loss=head.loss,
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.learning_rate)),
        draw=draw_batch,
        score=score,
        steps=config.updates,
        every=config.every,
        seed=seed,
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 4))
def closed_loop(net: jb.Network, head: Head, params: jb.NetworkParams, key: Array, samples: int) -> Array:
    """Paths [H, samples, N] of a network that reads the years up to 2001, and then its own samples."""
    known = batch(0.0, FIRST, VALIDATED)
    carry, _ = net.apply(params, None, known.xs, mask=known.mask)
    births = jnp.asarray(rates().births[: at(VALIDATED) + 1], known.xs.dtype)
    begin = jax.tree.map(lambda a: jnp.repeat(a[None], samples, 0), (carry, births[-1], births[-2]))

    def step(now: tuple[Any, Array, Array], key: Array) -> tuple[tuple[Any, Array, Array], Array]:
        carry, y, before = now
        carry, said = net.step(params, carry, scale().read(y, before))
        after = y + (y - before) + scale().change * head.draw(said, key)
        return (carry, after, y), after

    return jax.lax.scan(step, begin, jax.random.split(key, HORIZON))[1]


class Found(NamedTuple):
    """What was found.

    Attributes:
      curves: the lines of the training.
      paths: of each method, [H, S, N].
      scores: of each method, and of each seed alone.
    """

    curves: Curves
    paths: dict[str, np.ndarray]
    scores: dict[str, Scores]


def train(config: Config, run: Run, stop: StopRequest) -> Found:
    """Train all, and score their forecasts beside those without a network."""
    curves, alone = [], {}
    for seed in range(config.seeds):
        one = learner(config, seed)
        lines, params = learn_best(run, stop, one, "valid", config.patience)
        curves.append(lines)
        key = jax.random.key(seed)
        paths = closed_loop(one.net, HEADS[config.head], params, key, config.samples)
        alone[f"seed {seed} alone"] = np.asarray(paths, float)
    paths = {OURS: np.concatenate(list(alone.values()), 1), **simple(config.seeds * config.samples)}
    happened = rates().births[at(VALIDATED) + 1 :]
    rows = np.isfinite(happened) & np.all([np.isfinite(p).all((0, 1)) for p in paths.values()], 0)
    scores = {name: forecasts.score(p, happened, rows) for name, p in {**paths, **alone}.items()}
    run.write("table.md", table(scores))
    return Found({OURS: curves}, paths, scores)


def simple(samples: int) -> dict[str, np.ndarray]:
    """The forecasts without a network."""
    y, draw = rates().births[: at(VALIDATED) + 1], np.random.default_rng(0)
    linear = functools.partial(
        forecasts.autoregression, order=ORDER, horizon=HORIZON, samples=samples, draw=draw
    )
    return {
        "last value": forecasts.last_value(y, HORIZON, samples, draw),
        f"AR({ORDER})": linear(y),
        f"AR({ORDER}) of log changes": forecasts.of_log_changes(linear)(y),
    }


def table(scores: dict[str, Scores]) -> str:
    """All scores by horizon, as Markdown."""
    parts = []
    for what, title in zip(Scores._fields, ("error of the median", "CRPS", "share within 90 %"), strict=True):
        head = [title, *(f"{h + 1}" for h in range(HORIZON)), "mean"]
        rows = [
            [name, *(f"{z:.3f}" for z in getattr(of, what)), f"{getattr(of, what).mean():.4f}"]
            for name, of in scores.items()
        ]
        parts.append(markdown(head, rows))
    return "\n\n".join(parts) + "\n"


def judge(scores: dict[str, Scores]) -> list[Row]:
    """The CRPS beside each forecast without a network, and the share within the interval."""
    ours, rows = scores[OURS], []
    others = [name for name in scores if name != OURS and not name.endswith("alone")]
    for name in others:
        other = scores[name].crps
        lost = [h + 1 for h in range(HORIZON) if not ours.crps[h] < other[h]]
        pairs = (f"{ours.crps[h]:.3f} / {other[h]:.3f}" for h in (0, HORIZON // 2 - 1, HORIZON - 1))
        said = f"{HORIZON - len(lost)}" + (f", not at {', '.join(map(str, lost))} years" if lost else "")
        said += f"; after 1, {HORIZON // 2} and {HORIZON} years {', '.join(pairs)}"
        rows.append(Row(f"horizons of lower CRPS, {OURS} / {name}", f"all {HORIZON}", said, not lost))
    alone = np.array([of.crps.mean() for name, of in scores.items() if name.endswith("alone")])
    least = min(scores[name].crps.mean() for name in others)
    said = f"{alone.min():.3f} to {alone.max():.3f}"
    rows.append(Row("CRPS of one seed alone, mean", f"below {least:.3f}", said, bool(alone.max() < least)))
    mean, low, high = ours.covered.mean(), ours.covered.min(), ours.covered.max()
    said = f"{100 * mean:.0f} % ({100 * low:.0f} to {100 * high:.0f} by horizon)"
    rows.append(Row("share within the interval of 90 %, mean", "85 to 95 %", said, 0.85 <= mean <= 0.95))
    return rows


def main(config: Config) -> None:
    """Train, forecast, draw, judge."""
    check(config)
    run_experiment(
        "forecast",
        config,
        train,
        lambda _, found: draw(found.curves[OURS], found.paths, found.scores),
        lambda _, found: judge(found.scores),
    )


if __name__ == "__main__":
    run_script(main, Config, __doc__)

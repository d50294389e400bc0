"""A learning rate that is learnt through the training that it makes: short horizons make it too small.

    python -m experiments.learned_optimizer               about three minutes on two CPU cores

The inner problem is the noisy quadratic of Wu, Ren, Liao & Grosse 2018. Plain SGD with the learning rates α_t
makes T = 400 steps on 20 parameters, whose curvatures h lie between 1 and 1/1000:

    θ ← θ − α_t h (θ − ε),   ε ~ N(0, 1/h) anew in every step,   θ_0 = 1/√h,   L_t = mean of h θ²
    α_t = α_0 (1 + t/20)^−β,   meta loss = mean of L_1..L_T

α_0 and β are learnt. The training is a scan: θ and a key are its carry, L_t is its output, and its body reads
the schedule (α_0, β) from outside. So `jb.scan` gives the meta gradient of a draw of the noise by every
gradient method. With truncated(h) a loss sees only the learning rates of its own window. What a large rate
costs, more noise, comes at once, and what it gains along the flat directions comes late. So short windows
make the rate small and its decay fast: the short-horizon bias (also Metz et al. 2019; Vicol, Metz &
Sohl-Dickstein 2021).

The second moments of θ obey a linear recursion, so the expected meta loss is known in closed form, and so are
its gradient, its minimum, and the gradient that truncation has on average. The script shows

* the mean meta gradient over many draws, by each method, at (α_0, β) = (1, 1), beside the exact one, and the
  standard deviation of a draw; `artbp` cuts at random, with probability c before each step;
* what comes of meta training by Adam with each (the norm of the meta gradient is clipped at 1).

Expectation: the mean gradients of full() and of artbp are within 4 standard errors of the exact one, those of
truncated(h) within 4 of the closed form of truncation and more than 10 away from the exact one; windows of at
most 10 steps point away from it (cosine below 0). In meta training, full() and artbp end within 2 % of the
least expected meta loss; windows of at most 10 steps end with a last loss of at least 1.5 times that of the
optimum, and with less than half of its mean learning rate.

Each mean gradient and every ten updates are kept in metrics.jsonl. After an interruption, the same command
does the rest.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from tqdm import tqdm

import jax_bptt as jb
from experiments.support.command_line import run_script
from experiments.support.descents import Descent, descend, seconds_of_descents
from experiments.support.findings import Row, conclude
from experiments.support.learning import Curve
from experiments.support.noisy_quadratic import CURVATURES, NOISE, START, Exact, exact, rates
from experiments.support.options import check_counts, check_positive, check_seed, refusal, settings
from experiments.support.runs import Run, StopRequest
from experiments.support.schedules_figure import draw, window_of

POINT = np.array([0.0, 1.0])  # log α_0 and β where the mean gradients are compared
BEGIN = np.array([np.log(0.1), 0.5])  # where meta training begins
BLOCK = 10  # updates between two lines of metrics
SHORT = 10  # steps of a short window at most


@dataclasses.dataclass(frozen=True)
class Config:
    """How long to train, and how fast."""

    steps: int = 400
    """T, steps of the inner training."""
    windows: tuple[int, ...] = (1, 10, 50, 200)
    """Windows h of the truncated gradients, each below the number of steps."""
    cut_rates: tuple[float, ...] = (0.005, 0.02)
    """Probabilities c of a cut before each step for ARTBP; meta training takes the first."""
    draws: int = 4096
    """Draws of the noise over which the mean gradients are taken, rounded up to a multiple of 256."""
    updates: int = 400
    """Updates of each meta training, rounded up to a multiple of 10."""
    rows: int = 32
    """Draws of the noise in one update."""
    learning_rate: float = 0.05
    """Learning rate of Adam in meta training; it falls to zero along a cosine."""
    seed: int = 0
    """Seed of the noise and of the cuts."""
    out: Path = Path("results/learned_optimizer")
    """Folder of the results."""


def check(config: Config) -> None:
    """SystemExit if an option has a value that the script cannot use."""
    check_counts(config, steps=2, draws=2, updates=1, rows=1)
    check_positive(config, "learning_rate")
    check_seed(config)
    for h in config.windows:
        if not 1 <= h < config.steps:
            raise refusal(config, "windows", f"numbers from 1 to {config.steps - 1}")
    if not config.cut_rates or not all(0 < c < 1 for c in config.cut_rates):
        raise refusal(config, "cut_rates", "probabilities between 0 and 1, one at least")


# The meta gradient.


class Way(NamedTuple):
    """A gradient method, and the probability of the cuts that it asks for."""

    method: jb.GradientMethod
    cut_rate: float = 0.0


def ways(config: Config) -> dict[str, Way]:
    """All that are compared, by name."""
    found = [Way(jb.full()), *(Way(jb.artbp(c), c) for c in config.cut_rates)]
    found += [Way(jb.truncated(h)) for h in dict.fromkeys(config.windows)]
    return {repr(way.method): way for way in found}


def meta_loss(steps: int, way: Way, schedule: Array, key: Array) -> Array:
    """The mean of L_1..L_T for one draw of the noise."""
    of_noise, of_cuts = jax.random.split(key)

    def step(carry: tuple[Array, Array], t: Array) -> tuple[tuple[Array, Array], Array]:
        theta, key = carry
        key, now = jax.random.split(key)
        noise = NOISE * jax.random.normal(now, theta.shape, theta.dtype)
        theta = theta - rates(schedule, t) * CURVATURES * (theta - noise)
        return (theta, key), jnp.mean(CURVATURES * theta**2)

    begin, ts = (jnp.asarray(START, schedule.dtype), of_noise), jnp.arange(steps)
    cut = jax.random.bernoulli(of_cuts, way.cut_rate, (steps,)) if way.cut_rate else None
    _, losses = jb.scan(step, begin, ts, gradient=way.method, cut=cut)
    return jnp.mean(losses)


@functools.partial(jax.jit, static_argnums=(0, 1, 4))
def gradients(steps: int, way: Way, schedule: Array, key: Array, rows: int) -> Array:
    """The meta gradient of so many draws, [rows, 2]."""
    keys = jax.random.split(key, rows)
    return jax.vmap(jax.grad(meta_loss, argnums=2), (None, None, None, 0))(steps, way, schedule, keys)


class Mean(NamedTuple):
    """The mean meta gradient at POINT, its standard error, and the variance of one draw; of log α_0 and β."""

    mean: np.ndarray
    error: np.ndarray
    variance: np.ndarray

    def distance(self, wanted: np.ndarray) -> float:
        """How many standard errors the mean is off, in the worse of both numbers."""
        return float(np.max(np.abs(self.mean - wanted) / self.error))

    def cosine(self, wanted: np.ndarray) -> float:
        """The cosine of the mean and of the wanted gradient."""
        return float(self.mean @ wanted / np.linalg.norm(self.mean) / np.linalg.norm(wanted))


def means(config: Config, run: Run, stop: StopRequest) -> dict[str, Mean]:
    """The mean gradient of each method over the same draws of the noise."""
    found = {m["mean_of"]: m for m in run.metrics(mean_of=str, mean=list, error=list, variance=list)}
    blocks, key = -(-config.draws // 256), jax.random.key(config.seed)
    for name, way in ways(config).items():
        if name not in found:
            drawn, began = [], time.monotonic()
            for block in tqdm(range(blocks), desc=f"mean of {name:16}", unit_scale=256, unit="draw"):
                stop.leave()
                now = jax.random.fold_in(key, block)
                drawn.append(gradients(config.steps, way, jnp.asarray(POINT), now, 256))
            all_drawn = np.concatenate(drawn)
            variance = all_drawn.var(0, ddof=1)
            of_name = Mean(all_drawn.mean(0), np.sqrt(variance / len(all_drawn)), variance)
            found[name] = {"mean_of": name, "took": round(time.monotonic() - began, 2)}
            found[name] |= {part: numbers.tolist() for part, numbers in of_name._asdict().items()}
            run.record(**found[name])
    return {name: Mean(*(np.array(found[name][part]) for part in Mean._fields)) for name in ways(config)}


# Meta training.


def meta_training(config: Config, name: str, way: Way) -> Descent:
    """Adam on (log α_0, β), the norm clipped at 1; a line of metrics for ten updates."""
    blocks, key = -(-config.updates // BLOCK), jax.random.key(config.seed + 1)
    falling = optax.cosine_decay_schedule(config.learning_rate, blocks * BLOCK)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(falling))

    def update(state: tuple[Array, optax.OptState], key: Array) -> tuple[tuple[Array, optax.OptState], None]:
        schedule, inner = state
        slopes = gradients(config.steps, way, schedule, key, config.rows)
        change, inner = optimizer.update(slopes.mean(0), inner)
        return (schedule + change, inner), None

    @jax.jit
    def some(state: tuple[Array, optax.OptState], number: int) -> tuple[Array, optax.OptState]:
        keys = jax.random.split(jax.random.fold_in(key, number), BLOCK)
        return jax.lax.scan(update, state, keys)[0]

    def advance(state: tuple[Array, optax.OptState], number: int) -> tuple[Any, dict[str, Any]]:
        state = some(state, number)
        known = exact(config.steps, state[0])
        return state, {"loss": float(known.mean), "schedule": np.asarray(state[0]).tolist()}

    begin = jnp.asarray(BEGIN)
    return Descent(name, (begin, optimizer.init(begin)), advance, blocks)


def trained(config: Config, run: Run, stop: StopRequest) -> dict[str, Curve]:
    """The meta training by each method; of `artbp` by the first."""
    chosen = {name: w for name, w in ways(config).items() if w.cut_rate in (0.0, config.cut_rates[0])}
    return {name: descend(run, stop, meta_training(config, name, way)) for name, way in chosen.items()}


# What came out.


def judge(config: Config, found: dict[str, Mean], curves: dict[str, Curve], best: Array) -> list[Row]:
    """What the top of this file expects, and what came out."""
    wanted = np.asarray(exact(config.steps, jnp.asarray(POINT)).slope)
    rows = []
    for name, one in found.items():
        distance, cosine = one.distance(wanted), one.cosine(wanted)
        noise = np.sqrt(one.variance.sum() / found["full()"].variance.sum())
        ours = f"{distance:.{0 if distance > 10 else 1}f} standard errors off, cosine {cosine:.3f}, "
        ours += f"deviation of a draw {noise:.1f} times that of full()"
        what, window = f"mean meta gradient, {name}", window_of(name)
        if window is None:
            rows.append(Row(what, "exact: at most 4 standard errors off", ours, distance <= 4))
        else:
            closed = one.distance(np.asarray(exact(config.steps, jnp.asarray(POINT), window).slope))
            ours += f"; {closed:.1f} off the closed form of truncation"
            known = "biased: more than 10 off, at most 4 off truncation's closed form"
            known += ", cosine below 0" if window <= SHORT else ""
            met = distance > 10 and closed <= 4 and (cosine < 0 or window > SHORT)
            rows.append(Row(what, known, ours, met))
    optimum = exact(config.steps, best)
    for name, lines in curves.items():
        schedule = jnp.asarray(lines[-1]["schedule"])
        end = exact(config.steps, schedule)
        loss, last = float(end.mean / optimum.mean), float(end.last / optimum.last)
        rate = mean_rate(config, schedule) / mean_rate(config, best)
        ours = f"meta loss {loss:.3f}, last loss {last:.2f}, mean rate {rate:.2f} of the optimum's"
        what, window = f"learnt by {name}", window_of(name)
        if window is None:
            rows.append(Row(what, "meta loss at most 1.02 of the optimum's", ours, loss <= 1.02))
        elif window <= SHORT:
            known = "last loss at least 1.5 of the optimum's, mean rate below 0.5"
            rows.append(Row(what, known, ours, not last < 1.5 and rate < 0.5))
        else:
            rows.append(Row(what, "meta loss above the optimum's", ours, loss > 1))
    return rows


def mean_rate(config: Config, schedule: Array) -> float:
    """The mean learning rate over all steps."""
    return float(rates(schedule, jnp.arange(config.steps)).mean())


def main(config: Config) -> None:
    """Compare the gradients, train by each, draw, judge."""
    check(config)
    with jax.enable_x64(True):
        run = Run(config.out, settings(config))
        with StopRequest() as stop:
            found, curves = means(config, run, stop), trained(config, run, stop)
        known = Exact.of(config.steps)
        run.save_figure("learned_optimizer.png", draw(config.steps, known, found, curves, POINT), dpi=110)
        rows = judge(config, found, curves, known.best)
        conclude(run, "learned_optimizer", config, rows, 1, seconds_of_descents(run))


if __name__ == "__main__":
    run_script(main, Config, __doc__)

"""The Lorenz attractor in a closed loop: how often a network must see the data while it learns chaos.

    python -m experiments.lorenz                          about four minutes on two CPU cores

The data are states of a chaotic system (Lorenz 1963), 50 a time unit, in standard deviations, with noise:

    x' = σ (y − x),   y' = x (ρ − z) − y,   z' = x y − β z,        σ = 10, ρ = 28, β = 8/3

A network F with 50 hidden units is to become the same system. While it learns, the data replace its state at
every τ-th step (teacher forcing); between, it runs freely:

    s_t = F(s̃_{t−1}),   s̃_{t−1} = data_{t−1} if τ divides t − 1, else s_{t−1}        loss: of s_t − data_t

Where τ = 1, it never sees what becomes of its errors, and takes the noise for a part of the state. Where it
is never forced, errors and gradients grow by e^λ a step, λ the largest Lyapunov exponent of the system, and
teach nothing in the end. Mikhaeil, Monfared & Durstewitz 2022 take the steps in which an error doubles:

    τ = ln 2 / λ                                      λ by `jb.lyapunov_spectrum` of the system

Networks learn with several τ, all of them at once (jax.vmap). In the first quarter none runs freely for more
than a quarter of ln 2 / λ, since a free run of random weights teaches little. The loss is that of Huber: with
squares, the few sequences that end on the other wing of the attractor outweigh all others. Both were chosen
in trials with τ = ln 2 / λ and one seed: a largest exponent of 0.80 came of no such first quarter (10,000
updates), and of 0.07 to 0.50 of squares.

Then each network runs freely for 90 time units from 32 states. The states that it visits, and its power
spectrum, are compared with the system's by Hellinger distances, from 0 (equal) to 1; its Lyapunov exponents
with 0.9056, 0 and −14.5723 a time unit (Sprott 2003).

Expectation: networks forced every ln 2 / λ steps are nearer to the system, by both distances, than those
forced at every step and those never forced. Their largest exponent is within 10 % of 0.9056, the second
within 0.05 of 0. The third is not judged: the system's states lie on a thin sheet, and hardly tell how fast
it draws a state back.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from matplotlib.figure import Figure
from tqdm import tqdm

import jax_bptt as jb
from experiments.support import lorenz_figure
from experiments.support.attractors import Attractor, apart, attractor, free_run
from experiments.support.checkpoints import Checkpoints
from experiments.support.command_line import run_script
from experiments.support.findings import Row
from experiments.support.learning import seconds_of_training
from experiments.support.options import check_counts, check_positive, refusal
from experiments.support.runs import Run, StopRequest
from experiments.support.tasks import run_experiment

DT = 0.02  # time units a step
PUBLISHED = 0.9056, 0.0, -14.5723  # exponents a time unit
HIDDEN = 50
HUBER = 0.1  # standard deviations, from which on an error counts linearly
LEARNT, TESTED = 8, 32  # trajectories
STEPS = 4500  # of every trajectory, after a transient
LENGTH = 4  # a sequence that is learnt is so many τ = ln 2 / λ long
BLOCK = 100  # updates between two checkpoints


@dataclasses.dataclass(frozen=True)
class Config:
    """How long to train, and how fast."""

    updates: int = 6000
    """Updates of every network."""
    rows: int = 16
    """Sequences of a batch."""
    learning_rate: float = 5e-3
    """Learning rate of Adam at the start; it falls to a hundredth."""
    noise: float = 0.05
    """Standard deviation of the noise on the data, in standard deviations of the data."""
    seeds: int = 3
    """How many seeds; each trains one network with every τ."""
    out: Path = Path("results/lorenz")
    """Folder of the results."""


def check(config: Config) -> None:
    """SystemExit if an option has a value that the script cannot use."""
    check_counts(config, updates=1, rows=1, seeds=1)
    check_positive(config, "learning_rate")
    if not 0 <= config.noise < math.inf:
        raise refusal(config, "noise", "a number of at least 0")


# The system.


def velocity(parameters: Array, state: Array) -> Array:
    """(x', y', z') of a state [3]."""
    sigma, rho, beta = parameters
    x, y, z = state
    return jnp.stack([sigma * (y - x), x * (rho - z) - y, x * y - beta * z])


def runge_kutta(parameters: Array, state: Array, dt: float) -> Array:
    """The state a time dt later, to fourth order."""
    k_1 = velocity(parameters, state)
    k_2 = velocity(parameters, state + dt / 2 * k_1)
    k_3 = velocity(parameters, state + dt / 2 * k_2)
    k_4 = velocity(parameters, state + dt * k_3)
    return state + dt / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4)


def _system(parameters: Array, s_prev: jb.Carry, x: Array) -> jb.Carry:
    half = runge_kutta(parameters, s_prev.h, DT / 2)
    return jb.Carry(runge_kutta(parameters, half, DT / 2))


SYSTEM = jb.step_cell(1, 3, _system, init=lambda key: jnp.array([10, 28, 8 / 3]))  # x is not read


def trajectories() -> tuple[Array, Array]:
    """The system's exponents in nats a step, and states in standard deviations [STEPS, rows, 3]."""
    start = jax.random.normal(jax.random.key(1), (2 * TESTED + LEARNT, 3)).at[:, 2].add(25)
    exponents, states = free_run(SYSTEM, SYSTEM.init(jax.random.key(0)), start, STEPS)
    mean, deviation = states.mean((0, 1), keepdims=True), states.std((0, 1), keepdims=True)
    return exponents, (states - mean) / deviation


# The network.


class Weights(NamedTuple):
    """a, b_2 [3]; w_1 [3, HIDDEN]; b_1 [HIDDEN]; w_2 [HIDDEN, 3]."""

    a: Array
    w_1: Array
    b_1: Array
    w_2: Array
    b_2: Array


def init(key: Array) -> Weights:
    """Nearly the identity: a state that hardly moves."""
    of_w_1, of_b_1, of_w_2 = jax.random.split(key, 3)
    w_1 = jax.random.normal(of_w_1, (3, HIDDEN)) / math.sqrt(3)
    w_2 = 0.1 * jax.random.normal(of_w_2, (HIDDEN, 3)) / math.sqrt(HIDDEN)
    b_1 = jax.random.uniform(of_b_1, (HIDDEN,), minval=-1.5, maxval=1.5)
    return Weights(jnp.ones(3), w_1, b_1, w_2, jnp.zeros(3))


def model(weights: Weights, s: Array) -> Array:
    """F: the state [3] one step later."""
    return weights.a * s + jnp.tanh(s @ weights.w_1 + weights.b_1) @ weights.w_2 + weights.b_2


NETWORK = jb.step_cell(1, 3, lambda weights, s, x: jb.Carry(model(weights, s.h)), init)  # x is not read


def loss(weights: Weights, forced: Array, data: Array) -> Array:
    """The closed loop: forced [T] says before which step the data [T + 1, rows, 3] replace the state."""

    def step(s: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        datum, is_forced = now
        s = jax.vmap(model, (None, 0))(weights, jnp.where(is_forced, datum, s))
        return s, s

    _, free = jb.scan(step, data[0], (data[:-1], forced))
    return jnp.mean(optax.huber_loss(free, data[1:], delta=HUBER))


# Training, of all networks at once.


class Training(NamedTuple):
    """What is saved: the number of updates, and of every network [networks, ...] its weights and Adam's."""

    step: Array
    weights: Weights
    memory: optax.OptState


Block = Callable[[Training], tuple[Training, tuple[Array, Array]]]  # and losses, norms [updates, networks]
EACH = Training(step=None, weights=0, memory=0)  # type: ignore[arg-type]  # the axis of the networks


def intervals(tau: int) -> list[int]:
    """The τ that are tried; the last is as long as a sequence that is learnt, so it means never."""
    return [1, tau // 4, tau // 2, tau, 2 * tau, LENGTH * tau]


def networks(config: Config, tau: int) -> list[tuple[int, int]]:
    """Seed and τ of every network."""
    return [(seed, every) for seed in range(config.seeds) for every in intervals(tau)]


def program(config: Config, learnt: Array, tau: int) -> tuple[Training, Block]:
    """The state to begin with, and a block of updates of all networks."""
    steps = np.arange(LENGTH * tau)
    forced = jnp.array([steps % every == 0 for _, every in networks(config, tau)])
    often = jnp.array(steps % (tau // 4) == 0)
    seeds = jnp.array([seed for seed, _ in networks(config, tau)])
    rate = optax.cosine_decay_schedule(config.learning_rate, config.updates, 0.01)
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    optimizer = optax.apply_if_finite(adam, config.updates)

    def begin(seed: Array) -> Training:
        weights = init(jax.random.key(seed))
        return Training(jnp.zeros((), jnp.int32), weights, optimizer.init(weights))

    def update(now: Training, seed: Array, forced: Array) -> tuple[Training, tuple[Array, Array]]:
        of_row, of_start = jax.random.split(jax.random.fold_in(jax.random.key(seed), now.step))
        row = jax.random.randint(of_row, (config.rows,), 0, LEARNT)
        start = jax.random.randint(of_start, (1, config.rows), 0, STEPS - len(steps))
        states = learnt[start + np.arange(len(steps) + 1)[:, None], row]
        at_first = 4 * now.step < config.updates
        error, gradient = jax.value_and_grad(loss)(now.weights, forced | (often & at_first), states)
        change, memory = optimizer.update(gradient, now.memory, now.weights)
        weights = optax.apply_updates(now.weights, change)
        return Training(now.step + 1, weights, memory), (error, optax.tree.norm(gradient))

    update_all = jax.vmap(update, (EACH, 0, 0), (EACH, 0))

    @functools.partial(jax.jit, donate_argnums=0)
    def block(now: Training) -> tuple[Training, tuple[Array, Array]]:
        length = min(BLOCK, config.updates)
        return jax.lax.scan(lambda now, _: update_all(now, seeds, forced), now, None, length=length)

    return jax.vmap(begin, out_axes=EACH)(seeds), block


def learn(config: Config, run: Run, stop: StopRequest, learnt: Array, tau: int) -> Weights:
    """The weights of all networks, [networks, ...]; training goes on where it was stopped."""
    now, block = program(config, learnt, tau)
    with Checkpoints(run.folder / "checkpoints") as saved:
        now = saved.restore(now)
        run.keep_metrics_up_to(int(now.step))
        before, began = seconds_of_training(run), time.monotonic()
        with tqdm(total=config.updates, initial=int(now.step), unit="update", desc="all networks") as bar:
            while now.step < config.updates:
                stop.leave()
                now, (losses, norms) = block(now)
                ends = np.asarray(losses[-1]).round(5).tolist()
                run.record(
                    curve="all networks",
                    step=int(now.step),
                    seconds=round(before + time.monotonic() - began, 2),
                    loss=float(np.mean(ends)),
                    grad_norm=float(norms.max()),
                    skipped=int(now.memory.total_notfinite.sum()),
                    losses=ends,
                )
                saved.save(now)
                bar.update(len(losses))
                bar.set_postfix_str(f"loss {min(ends):.4f} to {max(ends):.4f}", refresh=False)
    return now.weights


# What came out.


class Found(NamedTuple):
    """All that is judged and drawn.

    Attributes:
      tau: ln 2 / λ, in steps.
      system: on the trajectories that are tested.
      again: the same system on others: as near as it is to itself.
      networks: by τ, one for each seed.
    """

    tau: int
    system: Attractor
    again: Attractor
    networks: dict[int, list[Attractor]]


def train(config: Config, run: Run, stop: StopRequest) -> Found:
    """Make the data, choose τ, learn, and let every network run freely."""
    exponents, states = trajectories()
    tau = round(math.log(2) / float(exponents[0]))
    tested, again, learnt = jnp.split(states, (TESTED, 2 * TESTED), 1)
    noise = config.noise * jax.random.normal(jax.random.key(2), learnt.shape, learnt.dtype)
    weights = learn(config, run, stop, learnt + noise, tau)
    found: dict[int, list[Attractor]] = {every: [] for every in intervals(tau)}
    for n, (_, every) in enumerate(tqdm(networks(config, tau), unit="", desc="free runs")):
        stop.leave()
        of_one = jax.tree.map(operator.itemgetter(n), weights)
        found[every].append(attractor(*free_run(NETWORK, of_one, tested[0], STEPS)))
    return Found(tau, attractor(exponents, tested), attractor(exponents, again), found)


def judge(_: Config, found: Found) -> list[Row]:
    """Exponents of the system and of the networks forced every ln 2 / λ steps; distances by τ."""
    tau, exponents = found.tau, found.system.exponents / DT
    exact = bool((np.abs(exponents - PUBLISHED) < (0.02, 0.02, 0.05)).all())
    known = f"{listed(PUBLISHED)} (Sprott 2003)"
    rows = [Row("exponents of the system, a time unit", known, listed(exponents), exact)]
    spectra = np.array([one.exponents for one in found.networks[tau]]) / DT
    near = bool((np.abs(spectra - PUBLISHED)[:, :2] < (0.1 * PUBLISHED[0], 0.05)).all())
    text = ", ".join(f"{np.median(of):.3f} ({of.min():.3f} to {of.max():.3f})" for of in spectra.T)
    known = "0.9056 within 10 %, 0 within 0.05, the third not judged"
    rows.append(Row(f"exponents of networks, τ = {tau}", known, text, near))
    for what, floor in apart(found.again, found.system).items():
        far = {n: [apart(one, found.system)[what] for one in of] for n, of in found.networks.items()}
        text = ", ".join(f"{n}: {np.median(of):.3f}" for n, of in zip(names(far), far.values(), strict=True))
        nearer = max(far[tau]) < min(*far[1], *far[LENGTH * tau])
        text += f"; the system from other states {floor:.3f}"
        rows.append(Row(f"distance to the system, {what}, by τ", f"{tau} below 1 and never", text, nearer))
    return rows


def listed(exponents: Iterable[float]) -> str:
    """Exponents as text."""
    return ", ".join(f"{value:.4f}" for value in exponents)


def names(of: Iterable[int]) -> list[str]:
    """The τ as text."""
    return [*map(str, [*of][:-1]), "never"]


def draw_figure(_: Config, found: Found) -> Figure:
    """See `lorenz_figure`."""
    networks = dict(zip(names(found.networks), found.networks.values(), strict=True))
    return lorenz_figure.draw(found.tau, DT, PUBLISHED[0], (found.system, found.again), networks)


def main(config: Config) -> None:
    """Train, draw, judge."""
    check(config)
    run_experiment("lorenz", config, train, draw_figure, judge)


if __name__ == "__main__":
    run_script(main, Config, __doc__)

"""Influence balancing: which gradient methods have the wrong sign here, and which have the right one.

    python -m experiments.influence_balancing             under two minutes on two CPU cores

The problem is that of Tallec & Ollivier 2017. One number θ drives a linear system of 23 units, the first
10 upwards and the other 13 downwards; each unit passes half of itself on to the one before it:

    s_t = A s_{t−1} + θ (1, .., 1, −1, .., −1),   A = ½ on the diagonal and on the one above it
    E_t = ½ (s_t[1] − 1)²

θ lifts s[1] at first, since the near units push upwards, and lowers it in the end, since more push
downwards: ds[1]/dθ is +20 after 20 steps and −6 in the end, so θ* = −1/6. A gradient that sees too few
steps has the wrong sign. The figure shows

* the truncated gradient by its window, against the full one, at θ = 0: sliding (every loss sees the whole
  window) and chunked (a loss sees its own chunk up to itself, half of a window on average);
* training on an endless stream: by chunks of several lengths with the full gradient of each, by `artbp`
  with random cuts 1/rate steps apart on average (and one every 400), and by `rtrl_step`, which stores
  no step at all.

Expectation: wrong sign for sliding windows below 41 and chunks below 110 steps. Training with chunks of
10, 50 and 100 steps moves away from θ*; chunks of 200 and 400, ARTBP with cuts 50 steps apart, and RTRL
end within 1 % of it.

Each gradient and each curve is kept in metrics.jsonl. After an interruption, the same command does the rest.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.figure import Figure
from tqdm import tqdm

import jax_bptt as jb
from experiments.support.command_line import run_script
from experiments.support.options import check_counts, check_positive, check_seed, refusal, settings
from experiments.support.runs import Run, StopRequest

A = np.eye(23) / 2 + np.eye(23, k=1) / 2
SIGNS = np.where(np.arange(23) < 10, 1.0, -1.0)
OPTIMUM = -1 / 6
FAR = 400  # steps after which nothing is left of an influence
WINDOWS = 1, 2, 5, 10, 14, 20, 28, 34, 40, 41, 50, 70, 100, 109, 110, 150, 200, 300, 400
LOST = 1e6  # a θ beyond it is not followed any further


@dataclasses.dataclass(frozen=True)
class Config:
    """How long to train, and how fast."""

    windows: tuple[int, ...] = WINDOWS
    """Windows h of the gradients that are compared, from 1 to 400."""
    chunks: tuple[int, ...] = (10, 50, 100, 200, 400)
    """Lengths of the chunks that θ is trained with; each divides 400."""
    steps: int = 40_000
    """Steps of the stream that each training reads, rounded up to a multiple of 400."""
    learning_rate: float = 2e-5
    """Learning rate of one step; a chunk makes one update, by the sum over its steps."""
    rate: float = 0.02
    """Probability of a cut before each step for ARTBP."""
    seed: int = 0
    """Seed of the random cuts."""
    out: Path = Path("results/influence_balancing")
    """Folder of the results."""


def check(config: Config) -> None:
    """SystemExit if an option has a value that the script cannot use."""
    for h in config.windows:
        if not 1 <= h <= FAR:
            raise SystemExit(f"--windows {h}: give numbers from 1 to {FAR}")
    for h in config.chunks:
        if h < 1 or FAR % h:
            raise SystemExit(f"--chunks {h}: give divisors of {FAR}")
    check_counts(config, steps=1)
    check_positive(config, "learning_rate")
    if not 0 < config.rate < 1:
        raise refusal(config, "rate", "a probability between 0 and 1")
    check_seed(config)


def _step(theta: Array, s_prev: jb.Carry, x: Array) -> jb.Carry:
    return jb.Carry(jnp.dot(A, s_prev.h) + theta * SIGNS)


CELL = jb.step_cell(1, 23, _step, init=lambda key: jnp.zeros(()))  # its only parameter is θ; x is not read


def errors(hs: Array) -> Array:
    """E_t for every step of hs [T, 23]."""
    return 0.5 * (hs[:, 0] - 1) ** 2


# The gradient by its window.


def influences() -> np.ndarray:
    """ds_t[1]/dθ for t = 1..400 in NumPy: what a loss knows of θ that sees t steps."""
    influence, seen = np.zeros(23), []
    for _ in range(FAR):
        influence = A @ influence + SIGNS
        seen.append(influence[0])
    return np.array(seen)


@functools.partial(jax.jit, static_argnums=0)
def slope(method: jb.GradientMethod, weights: Array) -> Array:
    """dE/dθ at θ = 0 and s = 0, where the system rests; E = Σ_t weights_t E_t."""

    def loss(theta: Array) -> Array:
        _, hs = jb.unroll(CELL, theta, None, jnp.zeros((FAR, 1)), gradient=method)
        return jnp.sum(weights * errors(hs))

    return jax.grad(loss)(jnp.zeros(()))


def compare_gradients(config: Config, run: Run, stop: StopRequest) -> list[dict[str, Any]]:
    """For every window the truncated gradients, and that of `rtrl`, as ratios to the full one."""
    last, steps = jnp.zeros(FAR).at[-1].set(1.0), jnp.arange(FAR)
    full, forward = float(slope(jb.full(), last)), float(slope(jb.rtrl(), last))
    lines = run.metrics(window=int, sliding=float, chunked=float, rtrl=float)
    found = {m["window"]: m for m in lines if m["window"] in config.windows}
    for h in _bar(sorted(set(config.windows)), "gradients"):
        if h not in found and not stop.came:
            a_chunk = jnp.where(steps < h, 1 / h, 0.0)
            sliding = float(slope(jb.truncated(h, stride=1), last)) / full
            chunked = float(slope(jb.truncated(h), a_chunk)) / full
            found[h] = {"window": h, "sliding": sliding, "chunked": chunked, "rtrl": forward / full}
            run.record(**found[h])
    stop.leave()
    return [found[h] for h in sorted(found)]


# Training on the stream.


class Learning(NamedTuple):
    """θ and what is remembered of the stream."""

    theta: Array
    state: chex.ArrayTree


Reader = Callable[[Learning, Array], tuple[Learning, Array]]  # also gives the last error


class Learner(NamedTuple):
    """A way to train: where it begins, and how it reads 400 steps; the key is for random cuts."""

    begin: Learning
    read: Reader


def by_chunks(config: Config, steps: int, gradient: jb.GradientMethod, rate: float = 0.0) -> Learner:
    """θ moves after every chunk, by the gradient of its losses; the state is carried on."""

    def chunk(learning: Learning, key: Array) -> tuple[Learning, Array]:
        cut = jax.random.bernoulli(key, rate, (steps,)) if rate else None

        def loss(theta: Array) -> tuple[Array, tuple[jb.Carry, Array]]:
            xs = jnp.zeros((steps, 1))
            carry, hs = jb.unroll(CELL, theta, learning.state, xs, gradient=gradient, cut=cut)
            return jnp.sum(errors(hs)), (carry, errors(hs)[-1])

        d_theta, (carry, error) = jax.grad(loss, has_aux=True)(learning.theta)
        return Learning(learning.theta - config.learning_rate * d_theta, carry), error

    theta = jnp.zeros(())
    return Learner(Learning(theta, CELL.initial_carry(theta, ())), _scanned(chunk, FAR // steps))


def by_rtrl(config: Config) -> Learner:
    """θ moves after every step."""

    def step(learning: Learning, key: Array) -> tuple[Learning, Array]:
        state, h = jb.rtrl_step(CELL, learning.theta, learning.state, jnp.zeros(1))
        error, d_h = jax.value_and_grad(lambda h: errors(h[None])[0])(h)
        d_theta = jb.rtrl_gradient(learning.theta, state, d_h)
        return Learning(learning.theta - config.learning_rate * d_theta, state), error

    theta = jnp.zeros(())
    return Learner(Learning(theta, jb.rtrl_init(CELL, theta, ())), _scanned(step, FAR))


def _scanned(step: Reader, times: int) -> Reader:
    @jax.jit
    def read(learning: Learning, key: Array) -> tuple[Learning, Array]:
        learning, error = jax.lax.scan(step, learning, jax.random.split(key, times))
        return learning, error[-1]

    return read


def learners(config: Config) -> dict[str, Learner]:
    """All that is trained, by the name that it has in the figure."""
    chunked = {f"chunks of {h}": by_chunks(config, h, jb.full()) for h in config.chunks}
    random = by_chunks(config, FAR, jb.artbp(config.rate), config.rate)
    return {**chunked, f"ARTBP, c = {config.rate:g}": random, "RTRL": by_rtrl(config)}


def train(config: Config, run: Run, stop: StopRequest) -> dict[str, list[float]]:
    """θ after every 400 steps, for each learner; up to the first that is lost."""
    found = {m["curve"]: m["theta"] for m in run.metrics(curve=str, theta=list)}
    for name, learner in learners(config).items():
        if name not in found:
            found[name] = follow(config, name, learner, stop)
            run.record(curve=name, theta=found[name])
    return {name: found[name] for name in learners(config)}


def follow(config: Config, name: str, learner: Learner, stop: StopRequest) -> list[float]:
    """One curve."""
    learning, thetas, key = learner.begin, [0.0], jax.random.key(config.seed)
    bar = _bar(range(blocks(config)), name, unit_scale=FAR)
    for block in bar:
        learning, error = learner.read(learning, jax.random.fold_in(key, block))
        bar.set_postfix_str(f"loss {float(error):.2e}", refresh=False)
        if not abs(float(learning.theta)) < LOST:
            break
        thetas.append(float(learning.theta))
        stop.leave()
    return thetas


def blocks(config: Config) -> int:
    """How often 400 steps are read."""
    return -(-config.steps // FAR)


def _bar(things: Iterable[int], name: str, unit_scale: int = 1) -> tqdm:
    return tqdm(things, desc=f"{name:16}", unit="step" if unit_scale > 1 else "", unit_scale=unit_scale)


# What came out.


def distance(thetas: list[float]) -> np.ndarray:
    """|θ − θ*| / |θ*|."""
    return np.abs(np.array(thetas) / OPTIMUM - 1)


def exact_ratios() -> dict[str, np.ndarray]:
    """Truncated gradient / full gradient for windows of 1 to 400 steps, by NumPy."""
    sliding = influences() / influences()[-1]
    return {"sliding": sliding, "chunked": np.cumsum(sliding) / np.arange(1, FAR + 1)}


def critical(ratios: np.ndarray) -> int:
    """The shortest window from which on the sign is right."""
    return int(np.flatnonzero(ratios <= 0)[-1]) + 2


def judge(
    config: Config, gradients: list[dict[str, Any]], curves: dict[str, list[float]]
) -> tuple[str, bool]:
    """What was shown, and whether it is what the top of this file expects."""
    exact = exact_ratios()
    gaps = [abs(m[kind] - exact[kind][m["window"] - 1]) for m in gradients for kind in exact]
    gap = max(*gaps, *(abs(m["rtrl"] - 1) for m in gradients))
    first = {kind: critical(ratios) for kind, ratios in exact.items()}
    lost = {name for name, thetas in curves.items() if len(thetas) <= blocks(config)}
    ends = {n: math.inf if n in lost else float(distance(thetas)[-1]) for n, thetas in curves.items()}
    wrong = {f"chunks of {h}" for h in range(1, first["chunked"])}
    trained = all(end > 1 if name in wrong else end < 0.01 for name, end in ends.items())
    shown = ", ".join(f"{name} {'diverged' if name in lost else f'{end:.0e}'}" for name, end in ends.items())
    sliding, chunked = first["sliding"], first["chunked"]
    signs = f"the sign is right from h = {sliding} on (sliding windows), from {chunked} on (chunks)"
    met = gap < 1e-9 and first == {"sliding": 41, "chunked": 110} and trained
    return f"{signs}; difference to NumPy {gap:.0e}; distance from θ*, 1 at the start: {shown}", met


def draw(gradients: list[dict[str, Any]], curves: dict[str, list[float]]) -> Figure:
    """The gradient by its window, and the distance from the optimum while training."""
    figure = Figure(figsize=(13, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.axhspan(-4, 0, color="C3", alpha=0.08, lw=0)
    left.text(1.1, -3.7, "wrong sign", color="C3")
    left.axhline(1, color="0.3", lw=1, ls="--")
    left.text(1.1, 1.08, "full, and RTRL", color="0.3")
    for colour, (kind, exact) in zip(("C0", "C1"), exact_ratios().items(), strict=True):
        first, points = critical(exact), [(m["window"], m[kind]) for m in gradients]
        left.plot(np.arange(1, FAR + 1), exact, color=colour, lw=1, alpha=0.7)
        label = f"{kind}: right from h = {first} on"
        left.plot(*zip(*points, strict=True), "o", color=colour, ms=5, label=label)
        left.axvline(first, color=colour, lw=1, ls=":")
    left.set(xscale="log", xlim=(0.9, 450), ylim=(-4, 1.6))
    left.set_xticks((1, 10, 41, 110, 400), ("1", "10", "41", "110", "400"))
    left.set(xlabel="window h, steps", ylabel="truncated gradient / full gradient")
    left.set_title("dE/dθ by the window that it sees (lines: NumPy)")
    left.legend(loc="lower right")

    for i, (name, thetas) in enumerate(curves.items()):
        style = {"color": "k", "lw": 2.2} if name == "RTRL" else {"color": f"C{i}", "lw": 1.6}
        style |= {"ls": "--"} if name.startswith("ARTBP") else {}
        right.plot(FAR * np.arange(len(thetas)) / 1000, distance(thetas), label=name, **style)
    right.axhline(0.01, color="0.6", lw=1, ls=":")
    right.set(yscale="log", ylim=(1e-6, 1e4), xlim=(0, None))
    right.set(xlabel="thousand steps of the stream", ylabel="|θ − θ*| / |θ*|")
    right.set_title("training (dotted: 1 % from the optimum)")
    right.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def main(config: Config) -> None:
    """Compare the gradients, train by each, draw both."""
    check(config)
    jax.config.update("jax_enable_x64", True)
    run = Run(config.out, settings(config))
    with StopRequest() as stop:
        gradients, curves = compare_gradients(config, run, stop), train(config, run, stop)
    run.save_figure("influence_balancing.png", draw(gradients, curves), dpi=150)
    shown, met = judge(config, gradients, curves)
    print(f"{shown}; {'as expected' if met else 'EXPECTATION NOT MET'}")


if __name__ == "__main__":
    run_script(main, Config, __doc__)

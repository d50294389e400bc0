"""The cliff in the error surface of a recurrent unit, and what clipping the gradient does there.

    python -m experiments.error_surface             half a minute on two CPU cores

The smallest network that shows it, after Pascanu, Mikolov & Bengio 2013 (figure 6), is one sigmoid unit
without inputs. Its state after 50 steps should be 0.7:

    h_t = σ(w h_{t−1} + b),   h_0 = σ(0.5),   E = (h_50 − 0.7)²

Where a small change of (w, b) sends h from one resting state to another, E changes almost in a step: the
product of 50 derivatives is close to 0 on both sides and very large between. The figure shows E and
‖dE/d(w, b)‖ over the plane, and gradient descent from one point, with and without clipping of the norm. The
script also begins at a hundred random points.

Expectation: the largest gradient of the plane is 1000 times its median; from the point shown, the path
without clipping makes one very long step at the cliff and ends where E > 0.05, and the path with clipping
ends where E < 0.001; at least 95 % of the random points end below 0.001 with clipping, and fewer without.

An interrupted run begins again from the start.
"""

from __future__ import annotations

import dataclasses
import functools
import time
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
from experiments.support.command_line import run_script
from experiments.support.findings import Row, conclude
from experiments.support.options import check_counts, check_positive, check_seed, settings
from experiments.support.runs import Run

STEPS, TARGET = 50, 0.7
W, B = (3.0, 7.0), (-3.2, -0.8)  # the plane that is shown
START = 6.0, -2.5
CELL = jb.elman(1, 1, activation="sigmoid")
FOUND, LOST = 1e-3, 0.05


@dataclasses.dataclass(frozen=True)
class Config:
    """How fine, how far."""

    grid: int = 400
    """Points of the plane in each direction."""
    learning_rate: float = 0.3
    """Learning rate of gradient descent."""
    max_norm: float = 0.3
    """Largest norm of the gradient, for the paths with clipping."""
    updates: int = 1500
    """Updates of each path."""
    starts: int = 100
    """How many random points paths begin from."""
    seed: int = 0
    """Seed of the random points."""
    out: Path = Path("results/error_surface")
    """Folder of the results."""


def check(config: Config) -> None:
    """SystemExit if an option has a value that the script cannot use."""
    check_counts(config, grid=2, updates=2, starts=2)
    check_seed(config)
    check_positive(config, "learning_rate", "max_norm")


def error(point: Array) -> Array:
    """E at (w, b)."""
    params = jb.Params(jnp.zeros((1, 1)), point[0].reshape(1, 1), point[1].reshape(1))
    h_0 = jnp.full(1, jax.nn.sigmoid(0.5))
    carry, _ = jb.unroll(CELL, params, jb.Carry(h_0), jnp.zeros((STEPS, 1)))
    return (carry.h[0] - TARGET) ** 2


class Descent(NamedTuple):
    """Gradient descent: (w, b), E and ‖dE‖ before every update."""

    points: Array
    errors: Array
    norms: Array


@functools.partial(jax.jit, static_argnums=0)
def descend(optimizer: optax.GradientTransformation, updates: Array, start: Array) -> Descent:
    """One path; updates is anything of its length."""

    def update(state: tuple[Array, optax.OptState], _: Array) -> tuple[tuple[Array, optax.OptState], Descent]:
        point, opt_state = state
        value, slope = jax.value_and_grad(error)(point)
        change, opt_state = optimizer.update(slope, opt_state, point)
        return (point + change, opt_state), Descent(point, value, jnp.linalg.norm(slope))

    return jax.lax.scan(update, (start, optimizer.init(start)), updates)[1]


class Found(NamedTuple):
    """All that is drawn and judged."""

    errors: np.ndarray  # over the plane, [b, w]
    norms: np.ndarray
    paths: dict[str, Descent]  # from START
    ends: dict[str, np.ndarray]  # E at the end from random points


def look(config: Config) -> Found:
    """The plane, the two paths, and the paths from random points."""
    plain = optax.sgd(config.learning_rate)
    optimizers = {
        "plain": plain,
        "clipped": optax.chain(optax.clip_by_global_norm(config.max_norm), plain),
    }
    w, b = jnp.meshgrid(jnp.linspace(*W, config.grid), jnp.linspace(*B, config.grid))
    rows = jax.jit(jax.vmap(jax.value_and_grad(error)))
    values = [rows(jnp.stack(pair, -1)) for pair in tqdm(zip(w, b, strict=True), "plane", config.grid)]
    updates = jnp.arange(config.updates)
    paths, ends = {}, {}
    low, high = jnp.array([4.5, -2.6]), jnp.array([6.5, -1.8])
    points = jax.random.uniform(jax.random.key(config.seed), (config.starts, 2), minval=low, maxval=high)
    for name, optimizer in optimizers.items():
        paths[name] = descend(optimizer, updates, jnp.array(START))
        every = jax.vmap(functools.partial(descend, optimizer, updates))(points)
        ends[name] = np.asarray(every.errors[:, -1])
    norms = np.stack([np.linalg.norm(slopes, axis=-1) for _, slopes in values])
    return Found(np.stack([np.asarray(e) for e, _ in values]), norms, paths, ends)


def rows(found: Found) -> list[Row]:
    """What the top of this file expects, and what came out."""
    ratio = found.norms.max() / np.median(found.norms)
    plain, clipped = (float(found.paths[name].errors[-1]) for name in ("plain", "clipped"))
    share = {name: float((ends < FOUND).mean()) for name, ends in found.ends.items()}
    at_wall = float(found.paths["clipped"].norms.max())
    return [
        Row("largest gradient of the plane / median", "above 1000", f"{ratio:.0f}", ratio > 1000),
        Row("E at the end, plain", f"above {LOST}", f"{plain:.3f}", plain > LOST),
        Row(
            "E at the end, clipped",
            f"below {FOUND}",
            f"{clipped:.1e}, past a gradient of {at_wall:.0f}",
            clipped < FOUND,
        ),
        Row(
            f"random starts that end below {FOUND}",
            "at least 95 % clipped, fewer plain",
            f"{share['clipped']:.0%} clipped, {share['plain']:.0%} plain",
            share["clipped"] >= 0.95 and share["plain"] < share["clipped"],
        ),
    ]


def draw(found: Found) -> Figure:
    """E with both paths over it, the gradient's size, and E along the paths."""
    figure = Figure(figsize=(15, 5.4), layout="constrained")
    surface, slope, along = figure.subplots(1, 3, width_ratios=(1.2, 1.2, 1))
    colours = {"plain": "C3", "clipped": "C2"}
    for axes, z, title in (
        (surface, np.log10(found.errors), "log₁₀ E: the wall, and two descents"),
        (slope, np.log10(found.norms), "log₁₀ of the gradient's norm"),
    ):
        image = axes.imshow(z, origin="lower", extent=(*W, *B), aspect="auto", cmap="viridis")
        figure.colorbar(image, ax=axes)
        axes.set(xlabel="w", ylabel="b", title=title, xlim=W, ylim=B)
    surface.plot(*START, "o", color="w", ms=9, mec="k", zorder=5)
    surface.annotate("start", START, (START[0] + 0.1, START[1] + 0.08), color="w")
    for name, of in found.paths.items():
        surface.plot(*np.asarray(of.points).T, ".-", color=colours[name], lw=1.2, ms=4, label=name)
        style = {"lw": 1.8, "zorder": 3} if name == "plain" else {"lw": 0.6, "zorder": 2}
        along.plot(np.arange(1, 1 + len(of.errors)), of.errors, color=colours[name], label=name, **style)
    surface.legend(loc="lower left")
    along.set(xscale="log", yscale="log", ylim=(1e-6, 1), xlabel="update", ylabel="E")
    along.axhline(FOUND, color="0.5", lw=1, ls="--")
    along.set_title("at the wall one step decides")
    along.legend()
    return figure


def main(config: Config) -> None:
    """Look, draw, judge."""
    began = time.monotonic()
    check(config)
    jax.config.update("jax_enable_x64", True)
    run = Run(config.out, settings(config))
    found = look(config)
    run.keep_metrics(lambda m: False)
    for name, of in found.paths.items():
        run.record(path=name, errors=np.asarray(of.errors).tolist(), ends=found.ends[name].tolist())
    run.save_figure("error_surface.png", draw(found), dpi=110)
    conclude(run, "error_surface", config, rows(found), config.starts, time.monotonic() - began)


if __name__ == "__main__":
    run_script(main, Config, __doc__)

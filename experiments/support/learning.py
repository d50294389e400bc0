"""Networks that learn a task, one after the other and from several seeds, each continued where it stopped.

A task gives its batches and its scores as functions in JAX, so that many updates are one dispatch:

    batch of step n = draw(key, folded with n)        the same numbers after an interruption
    every `every` steps: scores of the parameters     one line of metrics.jsonl, one checkpoint
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax import Array
from tqdm import tqdm

import jax_bptt as jb
from experiments.support.checkpoints import Checkpoints
from experiments.support.runs import Run, StopRequest

Scores = dict[str, float]
Curve = list[dict[str, Any]]  # what `learn` returns: its lines of metrics.jsonl, one a score
Curves = dict[str, list[Curve]]  # by the name of the network, one for each seed
TEST_SEED = 2**31  # of test data: no network is trained with it


class Learner(NamedTuple):
    """A network, its task and how it is trained.

    Attributes:
      name: of its curve and of its checkpoints.
      net, loss, optimizer: as for `jb.make_train_step`.
      draw: key -> a `jb.Batch` whose rows are each a whole sequence that begins without memory; in JAX.
      score: parameters -> scalars by name, in JAX; the same data every time.
      steps: updates at most.
      every: updates between two scores.
      solved: scores -> whether to stop here.
      seed: of the parameters and of the batches.
      gradient: the gradient method.
    """

    name: str
    net: jb.Network
    loss: Callable[..., Array]
    optimizer: optax.GradientTransformation
    draw: Callable[[Array], jb.Batch]
    score: Callable[[jb.NetworkParams], dict[str, Array]]
    steps: int
    every: int = 100
    solved: Callable[[Scores], bool] = lambda scores: False
    seed: int = 0
    gradient: jb.GradientMethod = jb.full()


def learn(run: Run, stop: StopRequest, learner: Learner) -> Curve:
    """Train one network to the end, to success or to a request to stop.

    Args:
      run: where metrics.jsonl and the checkpoints are.
      stop: asked after every block of updates; SystemExit then, with all of them saved.
      learner: what to train.

    Returns:
      Its lines of metrics.jsonl, one a score: curve (its name), step, seconds since it began, loss (of
      the last update), the largest gradient norm of the block, how many updates were skipped so far
      because they were not finite, and the scores.

    Raises:
      SystemExit: a stop was asked for; no update of a block is finite; metrics or checkpoints are damaged.
    """
    state, advance, score = compiled(learner)
    with checkpoints(run, learner) as saved:
        state = saved.restore(state)
        start, lines = int(state.step), continued(run, learner, saved, state.step)
        before, began = (lines[-1]["seconds"] if lines else 0.0), time.monotonic()
        with tqdm(total=learner.steps, initial=start, unit="step", desc=f"{learner.name:16}") as bar:
            while not _ended(learner, lines):
                stop.leave()
                state, of_each = advance(state)
                loss = last(learner, state, of_each)
                scores = {n: float(z) for n, z in score(state.params).items()}
                seconds = round(before + time.monotonic() - began, 2)
                line = {"curve": learner.name, "step": int(state.step), "seconds": seconds, **loss, **scores}
                run.record(**line)
                saved.save(state)
                lines.append(line)
                bar.update(learner.every)
                bar.set_postfix_str(_shown({**loss, **scores}), refresh=False)
    return lines


def continued(run: Run, learner: Learner, saved: Checkpoints, step: Array) -> Curve:
    """The lines up to the step of the last checkpoint, with which a network goes on."""
    start = int(step)
    run.keep_metrics_up_to(start, curve=learner.name)
    lines = [m for m in _lines(run) if m["curve"] == learner.name]
    if start != (lines[-1]["step"] if lines else 0):
        raise SystemExit(f"metrics.jsonl has no line of step {start}; delete {saved.folder} to begin again")
    return lines


def learn_seeds(run: Run, stop: StopRequest, learners: list[Learner], seeds: int) -> Curves:
    """Every network from seeds 0, 1, .., in parameters and batches; see `learn`."""
    return {
        one.name: [
            learn(run, stop, one._replace(name=f"{one.name}, seed {seed}", seed=seed))
            for seed in range(seeds)
        ]
        for one in learners
    }


def seconds_of_training(run: Run) -> float:
    """Seconds of all training in this folder, also before an interruption."""
    return sum({m["curve"]: m["seconds"] for m in _lines(run)}.values())  # of each curve, the last


def learnt(run: Run, learner: Learner) -> jb.NetworkParams:
    """The parameters that `learn` ended with, of the last checkpoint."""
    with checkpoints(run, learner) as saved:
        return saved.restore(compiled(learner).state).params


def _lines(run: Run) -> Curve:
    """The lines that `learn` wrote."""
    return run.metrics(curve=str, step=int, seconds=float, loss=float, grad_norm=float, skipped=int)


def checkpoints(run: Run, learner: Learner) -> Checkpoints:
    """The folder of its checkpoints."""
    return Checkpoints(run.folder / "checkpoints" / learner.name.replace(" ", "_"))


def last(learner: Learner, state: jb.TrainState, of_each: jb.Metrics) -> Scores:
    """Loss and largest gradient norm of a block, of the updates that were made."""
    made = np.asarray(of_each.finite)
    if not made.any():
        raise SystemExit(
            f"{learner.name}, step {int(state.step)}: loss or gradient of each of {learner.every} updates "
            "is not finite; lower the learning rate"
        )
    losses, norms = np.asarray(of_each.loss)[made], np.asarray(of_each.grad_norm)[made]
    return {"loss": float(losses[-1]), "grad_norm": float(norms.max()), "skipped": int(state.skipped)}


def _ended(learner: Learner, lines: Curve) -> bool:
    return bool(lines) and (lines[-1]["step"] >= learner.steps or learner.solved(lines[-1]))


def _shown(scores: Scores) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in scores.items())


class Compiled(NamedTuple):
    """The state to begin with, `every` updates in one dispatch, and the scores."""

    state: jb.TrainState
    advance: Callable[[jb.TrainState], tuple[jb.TrainState, jb.Metrics]]
    score: Callable[[jb.NetworkParams], dict[str, Array]]


def compiled(learner: Learner) -> Compiled:
    net = learner.net
    train_step = jb.make_train_step(net, learner.loss, learner.optimizer, gradient=learner.gradient)
    of_params, of_batches = jax.random.split(jax.random.key(learner.seed))

    def update(state: jb.TrainState, _: None) -> tuple[jb.TrainState, jb.Metrics]:
        batch = learner.draw(jax.random.fold_in(of_batches, state.step))
        return train_step(state, batch)

    def advance(state: jb.TrainState) -> tuple[jb.TrainState, jb.Metrics]:
        return jax.lax.scan(update, state, None, length=learner.every)

    state = jb.init_train_state(of_params, net, learner.optimizer)
    return Compiled(state, jax.jit(advance, donate_argnums=0), jax.jit(learner.score))

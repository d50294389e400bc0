"""Training that stops when a score no longer falls, and keeps the parameters of the lowest one."""

from __future__ import annotations

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from tqdm import tqdm

import jax_bptt as jb
from experiments.support import learning
from experiments.support.learning import Curve, Learner
from experiments.support.runs import Run, StopRequest


class Stopping(NamedTuple):
    """The state of a training, and the parameters of the lowest score so far."""

    now: jb.TrainState
    best: jb.NetworkParams

    @property
    def step(self) -> Array:
        """Updates so far."""
        return self.now.step


def learn_best(
    run: Run, stop: StopRequest, learner: Learner, score: str, patience: int
) -> tuple[Curve, jb.NetworkParams]:
    """Train one network until a score has not fallen for some updates; continued where it was stopped.

    Args:
      run, stop, learner: as for `learning.learn`.
      score: that of the learner's scores which is to be low, such as the loss on validation data.
      patience: updates without a lower score after which the training ends.

    Returns:
      Its lines of metrics.jsonl, as of `learning.learn`, and the parameters of the lowest score.
    """
    first, advance, scores_of = learning.compiled(learner)
    with learning.checkpoints(run, learner) as saved:
        state = saved.restore(Stopping(first, jax.tree.map(jnp.copy, first.params)))
        lines, began = learning.continued(run, learner, saved, state.step), time.monotonic()
        before = lines[-1]["seconds"] if lines else 0.0
        with tqdm(total=learner.steps, initial=int(state.step), unit="step", desc=learner.name) as bar:
            while not (lines and ended(learner, lines, score, patience)):
                stop.leave()
                now, of_each = advance(state.now)
                said = learning.last(learner, now, of_each)
                scores = {name: float(z) for name, z in scores_of(now.params).items()}
                better = all(scores[score] < m[score] for m in lines)
                state = Stopping(now, jax.tree.map(jnp.copy, now.params) if better else state.best)
                seconds = round(before + time.monotonic() - began, 2)
                line = {"curve": learner.name, "step": int(now.step), "seconds": seconds, **said, **scores}
                run.record(**line)
                saved.save(state)
                lines.append(line)
                bar.update(learner.every)
                best = min(m[score] for m in lines)
                bar.set_postfix_str(f"{score} {scores[score]:.3f}, lowest {best:.3f}", refresh=False)
    return lines, state.best


def lowest(lines: Curve, score: str) -> int:
    """The step of the lowest score; of equal ones the first."""
    return min(lines, key=lambda m: m[score])["step"]


def ended(learner: Learner, lines: Curve, score: str, patience: int) -> bool:
    """Whether there were enough updates, or too many without a lower score."""
    step = lines[-1]["step"]
    return step >= learner.steps or step - lowest(lines, score) >= patience

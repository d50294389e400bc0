"""The two models of `under_your_model`, each with the RNN of flax or with ours in its place.

agent    experiments/support/ppo_in_flax.py       flax.linen   ScannedRNN
text     experiments/support/language_in_nnx.py   flax.nnx     nnx.RNN
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from experiments.support import language_in_nnx, ppo, ppo_agents, ppo_in_flax
from experiments.support.corpora import Corpus
from jax_bptt.adapters import flax_linen, flax_nnx

SIZE = 64  # numbers that stand for a character


class Model(NamedTuple):
    """A model that is trained.

    Attributes:
      begin: its state at the beginning, the same numbers with either RNN.
      compiled: how many steps -> a compiled round of so many: state -> state, what is to be said of it.
      say: what is to be said -> "losses" of the steps, "loss", their mean, and perhaps a score.
    """

    begin: Any
    compiled: Callable[[int], Any]
    say: Callable[[Any], dict[str, Any]]


def agent(how: ppo.Training, hidden: int, seed: int, ours: bool) -> Model:
    """The agent, trained as `how` says."""
    rnn = flax_linen.ScannedRNN if ours else ppo_in_flax.ScannedRNN
    made = ppo_in_flax.agent(ppo_agents.network("gru", hidden), hidden, rnn)

    def compiled(steps: int) -> Any:
        return ppo.compiled(made, how, steps)

    def say(reports: ppo.Report) -> dict[str, Any]:
        return {**said_of(reports.loss), "right": ppo.share_right(reports)}

    return Model(ppo.begin(made, how, seed), compiled, say)


def text(corpus: Corpus, hidden: int, window: int, seed: int, ours: bool) -> Model:
    """A language model of the characters of a text, of which an update reads a window of each row."""
    rnn, rows = flax_nnx.RNN if ours else nnx.RNN, jnp.asarray(corpus.train)
    sizes = corpus.vocabulary.size, SIZE, hidden, window
    begin, update = language_in_nnx.training(rows, *sizes, rnn, seed)

    def compiled(steps: int) -> Any:
        def run(state: language_in_nnx.Learnt) -> tuple[language_in_nnx.Learnt, Array]:
            return jax.lax.scan(lambda now, _: update(now), state, None, steps)

        return jax.jit(run, donate_argnums=0).lower(begin).compile()

    return Model(begin, compiled, said_of)


def said_of(losses: Array) -> dict[str, Any]:
    """The losses of a round, and their mean."""
    return {"losses": np.asarray(losses).tolist(), "loss": float(np.mean(losses))}

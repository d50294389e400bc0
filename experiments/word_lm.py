"""A language model of byte pairs: a recurrent network trained by hand-derived BPTT, thousands of classes.

    python -m experiments.word_lm                        about four minutes on two CPU cores
    python -m experiments.word_lm --text FILE            a text of your own, UTF-8
    python -m experiments.word_lm --sample 100 --prompt "Return the"
                                                         100 symbols written by the finished run

The text comes with Python: its help topics and the docstrings of its standard library, each paragraph once.
The last tenth is kept for validation. The symbols are byte pairs, learnt from the training text alone: most
are words or parts of words, about four characters each, and no word is unknown. A GRU reads each as an
embedding and predicts the next; the logits are products with the same embeddings (tied weights), and they are
computed a few steps at a time, so that no array of all steps by all symbols exists.

    perplexity = exp(nats per symbol)           between how many symbols, equally likely, there is to choose

The network is compared with k-grams, k = 0..5, of interpolated Kneser-Ney smoothing (support/kgrams.py),
counted on the same training symbols and scored on the same validation symbols.

Expectation: a perplexity below that of every k-gram.

After a kill or an interruption, the same command goes on from the last undamaged checkpoint and ends with the
same parameters, bit for bit (not with --gradient fastest, which measures anew). A chunk whose loss or
gradient is not finite is skipped and counted.

References: Press & Wolf 2017, Using the output embedding to improve language models (tied weights); Zaremba,
Sutskever & Vinyals 2014, Recurrent neural network regularization (dropout between layers).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.support.byte_pairs import BYTES, BytePairs, learn_byte_pairs
from experiments.support.command_line import run_script
from experiments.support.corpora import Corpus, corpus_of, training_part
from experiments.support.findings import Row
from experiments.support.kgrams import kneser_ney_nats
from experiments.support.language_options import CellName, LanguageOptions
from experiments.support.language_script import Found, Script, run_language_script
from experiments.support.options import check_counts
from experiments.support.texts import docstrings, each_paragraph_once, mixed, read_text, topics

LONGEST = 5  # context of the k-grams


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(LanguageOptions):
    """What to train, on what, for how long; or what to write."""

    vocabulary: int = 4096
    """Symbols V: the 256 bytes, and so many byte pairs more."""
    cell: CellName = "gru"
    """Cell of the network."""
    dropout: float = 0.3
    """Share of each layer's outputs that is set to zero in training."""
    embedding: int = 256
    """Numbers E that stand for a symbol."""
    hidden: int = 256
    """Hidden units H of each layer."""
    tied: bool = True
    """Whether the readout has the weights of the embedding; E = H then."""
    window: int = 32
    """Length T of a chunk in symbols; the gradient does not go beyond it."""
    rows: int = 16
    """Rows B that are read side by side."""
    epochs: int = 4
    """Passes over the training text."""
    learning_rate: float = 4e-3
    """Learning rate of Adam at the beginning; it falls to a tenth along a cosine."""
    out: Path = Path("results/word_lm")
    """Folder of the results."""


def load(config: Config) -> Corpus:
    """The text in rows."""
    check_counts(config, vocabulary=BYTES)
    text = read_text(config.text) if config.text else mixed(each_paragraph_once(docstrings() | topics()))
    symbols = learn_byte_pairs(training_part(text), config.vocabulary)
    return corpus_of(text, symbols, "symbol", kneser_ney_nats, LONGEST, config.rows, config.window)


def symbols_of(symbols: Mapping[str, Any]) -> BytePairs:
    """The symbols from their text in JSON."""
    return BytePairs(tuple((a, b) for a, b in symbols["merges"]))


def judge(corpus: Corpus, nats: float) -> Found:
    """The network beside the k-grams."""
    levels, ours = np.exp(corpus.kgrams), math.exp(nats)
    best, met = levels.min(), ours < levels.min()
    per_character = nats * corpus.valid[:, 1:].size / corpus.characters
    known = f"below {best:.1f}, the lowest of the k-grams"
    row = Row(
        "validation, perplexity", known, f"{ours:.1f}, {per_character:.3f} nats per character", bool(met)
    )
    baselines = ", ".join(f"k={k} {level:.1f}" for k, level in enumerate(levels))
    verdict = "below every k-gram, as expected" if met else "EXPECTATION NOT MET: a k-gram is better"
    said = f"validation perplexity {ours:.1f} ({per_character:.3f} nats/char); k-grams {baselines}; {verdict}"
    return Found([row], said)


SCRIPT = Script("word_lm", load, symbols_of, judge, perplexity=True)


def main(config: Config) -> None:
    """Train, or write."""
    run_language_script(SCRIPT, config)


if __name__ == "__main__":
    run_script(main, Config, __doc__)

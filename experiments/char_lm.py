"""A character language model: a recurrent network trained by hand-derived BPTT on real text.

    python -m experiments.char_lm                         the help texts of Python (pydoc_data.topics)
    python -m experiments.char_lm --text FILE             a text of your own, UTF-8
    python -m experiments.char_lm --cell lstm --layers 2  another cell, more layers, a longer run
    python -m experiments.char_lm --processes 2           rows shared by two; see support/processes.py
    python -m experiments.char_lm --sample 500            500 characters written by the finished run

The text is cut into rows that are read side by side, `window` characters a step; the carry goes on from
chunk to chunk, the gradient does not. Each character is read as an embedding. The last tenth is kept for
validation. The script compares the network with k-grams, k = 0..3, counted on the training text (the
network passes over the few characters at the end of each row that do not fill a window) and scored on the
same validation characters.

Expectation: below the bigram (k = 1) in validation nats per character.

After a kill or an interruption, the same command goes on from the last undamaged checkpoint and ends with the
same parameters, bit for bit (not with --gradient fastest, which measures anew). A chunk whose loss or
gradient is not finite is skipped and counted.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from experiments.support.command_line import run_script
from experiments.support.corpora import Alphabet, Corpus, corpus_of
from experiments.support.findings import Row
from experiments.support.kgrams import kgram_nats
from experiments.support.language_options import CellName, LanguageOptions
from experiments.support.language_script import Found, Script, run_language_script
from experiments.support.texts import read_text, topics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(LanguageOptions):
    """What to train, on what, for how long; or what to write."""

    cell: CellName = "elman"
    """Cell of the network."""
    dropout: float = 0.0
    """Share of each layer's outputs that is set to zero in training."""
    embedding: int = 64
    """Numbers E that stand for a character."""
    hidden: int = 384
    """Hidden units H of each layer."""
    tied: bool = False
    """Whether the readout has the weights of the embedding; E = H then."""
    window: int = 64
    """Length T of a chunk in characters; the gradient does not go beyond it."""
    rows: int = 32
    """Rows B that are read side by side."""
    epochs: int = 12
    """Passes over the training text."""
    out: Path = Path("results/char_lm")
    """Folder of the results."""


def load(config: Config) -> Corpus:
    """The text in rows."""
    text = read_text(config.text) if config.text else "\n".join(topics().values())
    alphabet = Alphabet("".join(sorted(set(text))))
    return corpus_of(text, alphabet, "character", kgram_nats, 3, config.rows, config.window)


def judge(corpus: Corpus, nats: float) -> Found:
    """The network beside the k-grams."""
    kgrams, met = corpus.kgrams, nats < corpus.kgrams[1]
    baselines = ", ".join(f"k={k} {n:.3f}" for k, n in enumerate(kgrams))
    verdict = (
        "beats the bigram (k=1), as expected" if met else "EXPECTATION NOT MET: the bigram (k=1) is better"
    )
    known = f"below {kgrams[1]:.3f}, that of the bigram; of k-grams with k = 2 and 3 {kgrams[2]:.3f}"
    row = Row("validation, nats per character", f"{known}, {kgrams[3]:.3f}", f"{nats:.3f}", bool(met))
    return Found([row], f"validation {nats:.3f} nats/char; k-grams {baselines}; {verdict}")


SCRIPT = Script("char_lm", load, lambda symbols: Alphabet(**symbols), judge, perplexity=False)


def main(config: Config) -> None:
    """Train, or write."""
    run_language_script(SCRIPT, config)


if __name__ == "__main__":
    run_script(main, Config, __doc__)

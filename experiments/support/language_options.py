"""The options of the scripts that train a language model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from experiments.support.options import check_counts, check_positive, check_seed, refusal

CellName = Literal["elman", "lstm", "gru", "leaky", "mgu", "indrnn"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageOptions:
    """What to train, on what, for how long; a script gives the defaults that are missing here."""

    text: Path | None = None
    """A UTF-8 text file; by default a text that comes with Python."""
    cell: CellName
    """Cell of the network."""
    layers: int = 1
    """Number of layers; each reads the h of the layer before it."""
    dropout: float
    """Share of each layer's outputs that is set to zero in training."""
    embedding: int
    """Numbers E that stand for a symbol."""
    hidden: int
    """Hidden units H of each layer."""
    tied: bool
    """Whether the readout has the weights of the embedding; E = H then."""
    window: int
    """Length T of a chunk in symbols; the gradient does not go beyond it."""
    rows: int
    """Rows B that are read side by side."""
    epochs: int
    """Passes over the training text."""
    learning_rate: float = 3e-3
    """Learning rate of Adam at the beginning; it falls to a tenth along a cosine."""
    clip: float = 0.5
    """Largest global norm of the gradient; a longer gradient is scaled down to it."""
    seed: int = 0
    """Seed of the initial parameters, of dropout and of the samples."""
    gradient: Literal["full", "fastest"] = "full"
    """Gradient method; fastest is the one that jb.fastest finds on this machine, and rounds as that does."""
    every: int = 200
    """Steps between two validations; a checkpoint is written with each."""
    processes: int = 1
    """Processes on this machine that share the rows."""
    sample: int | None = None
    """Do not train: write so many symbols by the finished run in the folder of the results."""
    prompt: str | None = None
    """What a sample goes on from; by default the beginning of the validation text."""
    temperature: float = 0.7
    """Of the samples: the logits are divided by it, so that less than 1 prefers what is likely."""
    out: Path
    """Folder of the results."""


WRITING = ("sample", "prompt", "temperature")  # options that change no result


def check(config: LanguageOptions) -> None:
    """SystemExit if an option has a value that the scripts cannot use."""
    counts = ("layers", "embedding", "hidden", "window", "rows", "epochs", "every", "processes")
    check_counts(config, **dict.fromkeys(counts, 1))
    if config.sample is not None:
        check_counts(config, sample=1)
    check_seed(config)
    if not 0 <= config.dropout < 1:
        raise refusal(config, "dropout", "a share from 0 to below 1")
    check_positive(config, "learning_rate", "clip", "temperature")
    if config.gradient == "fastest" and config.processes > 1:
        raise refusal(config, "gradient", "full; each of several processes would measure its own")
    if config.tied and config.embedding != config.hidden:
        raise refusal(config, "embedding", f"{config.hidden} (--hidden), or --no-tied")

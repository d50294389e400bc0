"""The figure of a language model: what it scores on the way, and the k-grams as levels."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from experiments.support.corpora import Corpus
from experiments.support.language_options import LanguageOptions
from experiments.support.runs import Run


def draw(config: LanguageOptions, corpus: Corpus, run: Run, perplexity: bool) -> Figure:
    """Training and validation loss over the steps, and the k-grams; in nats, or exp(nats)."""
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    axes = figure.subplots()
    shown = np.exp if perplexity else np.asarray
    for key, style in (("loss", {"alpha": 0.5, "lw": 1}), ("valid", {"marker": "o", "ms": 4, "lw": 2})):
        lines = run.metrics(**{"step": int, key: float})
        label = {"loss": "training chunk", "valid": "validation"}[key]
        axes.plot([m["step"] for m in lines], shown([m[key] for m in lines]), label=label, **style)
    for k, level in enumerate(shown(corpus.kgrams)):
        axes.axhline(level, color="0.5", lw=1, ls="--")
        text = f"k = {k}: {level:.0f}" if perplexity else f"k = {k}: {level:.2f}"
        at = axes.get_yaxis_transform()
        axes.text(0.99, level, text, transform=at, va="bottom", ha="right", fontsize=11)
    layers = "1 layer" if config.layers == 1 else f"{config.layers} layers"
    axes.set_title(f"{config.cell}, {layers} of {config.hidden} units, and k-grams (dashed)", fontsize=13)
    axes.set_xlabel("step", fontsize=12)
    name = "perplexity" if perplexity else "nats"
    axes.set_ylabel(f"{name} per {corpus.unit}", fontsize=12)
    axes.set_yscale("log" if perplexity else "linear")
    axes.tick_params(labelsize=11)
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.9), fontsize=11)
    return figure

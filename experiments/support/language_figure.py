"""The figure of a language model: what it scores on the way, and the k-grams as levels."""

from __future__ import annotations

import itertools

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from experiments.support.corpora import Corpus
from experiments.support.language_options import LanguageOptions
from experiments.support.runs import Run

CLOSE = 0.06  # levels that are nearer than this share of all get one label


def draw(config: LanguageOptions, corpus: Corpus, run: Run, perplexity: bool) -> Figure:
    """Training and validation loss over the steps, and the k-grams; in nats, or exp(nats) on a log scale."""
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    axes = figure.subplots()
    shown = np.exp if perplexity else np.asarray
    for key, style in (("loss", {"alpha": 0.5, "lw": 1}), ("valid", {"marker": "o", "ms": 4, "lw": 2})):
        lines = run.metrics(**{"step": int, key: float})
        label = {"loss": "training chunk", "valid": "validation"}[key]
        axes.plot([m["step"] for m in lines], shown([m[key] for m in lines]), label=label, **style)
    _draw_levels(axes, corpus.kgrams, perplexity)
    layers = "1 layer" if config.layers == 1 else f"{config.layers} layers"
    axes.set_title(f"{config.cell}, {layers} of {config.hidden} units, and k-grams (dashed)", fontsize=13)
    axes.set_xlabel("step", fontsize=12)
    name = "perplexity" if perplexity else "nats"
    axes.set_ylabel(f"{name} per {corpus.unit}", fontsize=12)
    if perplexity:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=11)
    axes.legend(loc="lower left", fontsize=11)
    return figure


def _draw_levels(axes: Axes, nats: np.ndarray, perplexity: bool) -> None:
    """The k-grams, those that are close to each other with one label."""
    levels = np.exp(nats) if perplexity else nats
    first = [0, *(1 + np.flatnonzero(np.abs(np.diff(nats)) > CLOSE * np.ptp(nats))), len(nats)]
    for begin, end in itertools.pairwise(first):
        numbers = [f"{level:.0f}" if perplexity else f"{level:.2f}" for level in levels[begin:end]]
        text = f"k = {begin}: {numbers[0]}"
        if end - begin > 1:
            text = f"k = {begin} to {end - 1}: {numbers[0]} to {numbers[-1]}"
        place = axes.get_yaxis_transform()
        axes.text(0.99, levels[begin:end].max(), text, transform=place, va="bottom", ha="right", fontsize=11)
    for level in levels:
        axes.axhline(level, color="0.5", lw=1, ls="--")

"""What the scripts that train a language model have in common, from the options to the last line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import numpy as np

from experiments.support import findings, processes
from experiments.support.corpora import Corpus, Vocabulary
from experiments.support.finished import write_from
from experiments.support.language_figure import draw
from experiments.support.language_model import sample, seconds_of, train, validate
from experiments.support.language_options import WRITING, LanguageOptions, check
from experiments.support.options import settings
from experiments.support.runs import Run

C = TypeVar("C", bound=LanguageOptions)


class Found(NamedTuple):
    """What a script shows.

    Attributes:
      rows: for the page of results.
      said: the last line that is printed.
    """

    rows: list[findings.Row]
    said: str


class Script(NamedTuple, Generic[C]):
    """What is different between them.

    Attributes:
      name: of the module.
      load: options -> the text.
      vocabulary: makes the symbols from what `_asdict()` of them says, as JSON has it.
      judge: text, validation nats per symbol -> what is shown.
      perplexity: whether the figure shows exp(nats).
    """

    name: str
    load: Callable[[C], Corpus]
    vocabulary: Callable[[Mapping[str, Any]], Vocabulary]
    judge: Callable[[Corpus, float], Found]
    perplexity: bool


def run_language_script(script: Script[C], config: C) -> None:
    """Train in this process, or in several; or write from a finished run."""
    check(config)
    if config.sample is not None:
        print(write_from(config, config.sample, script.vocabulary))
        return
    if config.processes > 1 and not processes.is_member():
        processes.start(config.processes, f"experiments.{script.name}")
        return
    with processes.joined():
        ended = compare(script, config)
    if not ended:
        raise SystemExit("stopped and saved; run the same command again to go on")


def compare(script: Script[C], config: C) -> bool:
    """Train, then compare the network with the k-grams. False if it was stopped before its end."""
    processes.check_rows(config.rows)
    corpus = script.load(config)
    depends_on = settings(config, "text", "processes", *WRITING) | {"text_sha256": corpus.sha256}
    processes.agree("their options", depends_on)
    run = Run(config.out, depends_on)
    symbols = {"begin": corpus.begin, "vocabulary": corpus.vocabulary._asdict()}
    run.write("text.json", json.dumps(symbols) + "\n")
    sizes = f"{corpus.train.size} training and {corpus.valid.size} validation {corpus.unit}s"
    print(f"{sizes}, {corpus.vocabulary.size} different; results in {run.folder}")
    trained = train(config, run, corpus)
    if not trained.ended:
        return False

    net, params, skipped = trained.net, trained.state.params, int(trained.state.skipped)
    nats = validate(net, params, corpus, config)
    if jax.process_index() > 0:
        return True
    digest = hashlib.sha256(b"".join(np.asarray(p).tobytes() for p in jax.tree.leaves(params))).hexdigest()
    summary = {"valid": nats, "kgrams": corpus.kgrams.tolist(), "skipped": skipped, "params_sha256": digest}
    run.write("summary.json", json.dumps(summary, indent=2) + "\n")
    print(f"--- a sample\n{sample(config, corpus, net, params)}\n---")
    seconds = seconds_of(run)
    print(f"parameters sha256 {digest[:16]}, {skipped} chunks skipped, {seconds:.0f} s")
    run.save_figure(f"{script.name}.png", draw(config, corpus, run, script.perplexity))
    found = script.judge(corpus, nats)
    findings.save(run, script.name, config, found.rows, 1, seconds)
    print(found.said)
    return True

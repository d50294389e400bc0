"""A finished run of a language model writes: all that this needs is in its folder.

Its options are in run.json, its symbols in text.json, and its parameters in the newest checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

import jax_bptt as jb
from experiments.support import folder_lock
from experiments.support.checkpoints import Checkpoints
from experiments.support.corpora import Vocabulary
from experiments.support.files import read, writing
from experiments.support.language_model import build
from experiments.support.language_options import WRITING, LanguageOptions
from experiments.support.options import settings
from experiments.support.samples import write_text

C = TypeVar("C", bound=LanguageOptions)


def write_from(config: C, length: int, vocabulary: Callable[[Mapping[str, Any]], Vocabulary]) -> str:
    """The prompt and so many symbols more.

    Args:
      config: the folder, and how to write; the options of the network are those of the run.
      length: how many symbols.
      vocabulary: makes the symbols from what text.json says of them.

    Raises:
      SystemExit: the folder holds no finished run of this script, or one with other options.
    """
    folder = config.out
    if not (folder / "results.json").exists():
        fix = "train first, by the same command without --sample"
        raise SystemExit(f"{folder} holds no finished run; {fix}")
    try:
        about, text = (json.loads(read(folder / name)) for name in ("run.json", "text.json"))
        run, symbols, begin = _options(config, about["config"]), vocabulary(text["vocabulary"]), text["begin"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = f"{type(error).__name__}: {error}"
        raise SystemExit(
            f"{folder} holds no run of this script ({said}); choose another with --out"
        ) from None
    with writing(folder):
        lock = folder_lock.lock(folder)
    key = jax.random.key(config.seed)
    net, optimizer = build(run, symbols.size, 1)
    begun = jb.init_train_state(key, net, optimizer, (run.rows,))
    with Checkpoints(folder / "checkpoints") as saved:
        params = saved.restore(begun).params
    del lock
    prompt = begin if config.prompt is None else config.prompt
    return write_text(net, params, symbols, prompt, length, config.temperature, key)


def _options(config: C, recorded: Mapping[str, Any]) -> C:
    """The options of the run. SystemExit if one on the command line is another."""
    default = {field.name: field.default for field in dataclasses.fields(config)}
    for name, now in settings(config, *WRITING, "text", "processes", "seed").items():
        if now not in (default[name], recorded[name]):
            flag = f"--{name.replace('_', '-')}"
            raise SystemExit(f"{config.out} holds a run with {flag} {recorded[name]}; leave out {flag} {now}")
    names = {field.name for field in dataclasses.fields(config)} & set(recorded)
    return dataclasses.replace(config, **{name: recorded[name] for name in names})

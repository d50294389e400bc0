"""A character language model: a recurrent network trained by hand-derived BPTT on real text.

    python -m experiments.char_lm                         the help texts of Python (pydoc_data.topics)
    python -m experiments.char_lm --text FILE             a text of your own, UTF-8
    python -m experiments.char_lm --cell lstm --layers 2  another cell, more layers, a longer run
    python -m experiments.char_lm --processes 2           rows shared by two; see support/processes.py

The text is cut into rows that are read side by side, `window` characters a step; the carry goes on from
chunk to chunk, the gradient does not. The last tenth is kept for validation. The script compares the network
with k-grams, k = 0..3, counted on the training text (the network passes over the few characters at the end
of each row that do not fill a window) and scored on the same validation characters.

Expectation: below the bigram (k = 1) in validation nats per character.

After a kill or an interruption, the same command goes on from the last undamaged checkpoint and ends with the
same parameters, bit for bit (not with --gradient fastest, which measures anew). A chunk whose loss or
gradient is not finite is skipped and counted.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import time
from pathlib import Path
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from matplotlib.figure import Figure
from tqdm import tqdm

import jax_bptt as jb
from experiments.support import processes
from experiments.support.checkpoints import Checkpoints
from experiments.support.command_line import run_script
from experiments.support.kgrams import kgram_nats
from experiments.support.options import check_counts, check_positive, check_seed, refusal, settings
from experiments.support.runs import Run, StopRequest

REPORT = 20  # steps between two lines of metrics.jsonl


@dataclasses.dataclass(frozen=True)
class Config:
    """What to train, on what, for how long."""

    text: Path | None = None
    """A UTF-8 text file; by default the topics of Python's help()."""
    cell: Literal["elman", "lstm", "gru", "leaky", "mgu", "indrnn"] = "elman"
    """Cell of the network."""
    layers: int = 1
    """Number of layers; each reads the h of the layer before it."""
    dropout: float = 0.0
    """Share of each layer's outputs that is set to zero in training."""
    hidden: int = 384
    """Hidden units H of each layer."""
    window: int = 64
    """Length T of a chunk in characters; the gradient does not go beyond it."""
    rows: int = 32
    """Rows B that are read side by side."""
    epochs: int = 12
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
    out: Path = Path("results/char_lm")
    """Folder of the results."""


def check(config: Config) -> None:
    """SystemExit if an option has a value that the script cannot use."""
    check_counts(config, layers=1, hidden=1, window=1, rows=1, epochs=1, every=1, processes=1)
    check_seed(config)
    if not 0 <= config.dropout < 1:
        raise refusal(config, "dropout", "a share from 0 to below 1")
    check_positive(config, "learning_rate", "clip")
    if config.gradient == "fastest" and config.processes > 1:
        raise refusal(config, "gradient", "full; each of several processes would measure its own")


class Corpus(NamedTuple):
    """A text as class codes: alphabet, train [B, L+1] and valid [B, L'+1], rows of one length."""

    sha256: str
    alphabet: str
    train: np.ndarray
    valid: np.ndarray
    kgrams: np.ndarray  # validation nats per character, k = 0..3


def read(path: Path | None) -> str:
    """The text to learn."""
    if path is None:
        from pydoc_data.topics import topics

        return "\n".join(topics[name] for name in sorted(topics))
    try:
        return path.read_text(encoding="utf-8-sig")  # a byte-order mark is no part of the text
    except (OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"cannot read --text {path} as UTF-8: {error}") from None


def load(config: Config) -> Corpus:
    """The text in rows; each row begins with the last character of the row before it."""
    text = read(config.text)
    alphabet = "".join(sorted(set(text)))
    codes = np.searchsorted(np.array(list(alphabet)), np.array(list(text)))
    cut = len(codes) * 9 // 10

    def rows(codes: np.ndarray) -> np.ndarray:
        length = (len(codes) - 1) // config.rows
        starts = np.arange(config.rows)[:, None] * length
        return codes[starts + np.arange(length + 1)]

    train, valid = rows(codes[:cut]), rows(codes[cut:])
    if valid.shape[1] < 2 or train.shape[1] <= config.window:
        raise SystemExit(
            f"the text has {len(codes)} characters, too few for {config.rows} rows of {config.window}"
        )
    scored = np.append(valid[:, :-1].reshape(-1), valid[-1, -1])
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return Corpus(sha256, alphabet, train, valid, kgram_nats(codes[:cut], scored, len(alphabet), 3))


def build(config: Config, classes: int, steps: int) -> tuple[jb.Network, optax.GradientTransformation]:
    """The network and its optimizer."""
    make = getattr(jb, config.cell)
    sizes = [classes] + (config.layers - 1) * [config.hidden]
    layers = [jb.layer(make(size, config.hidden), dropout=config.dropout) for size in sizes]
    net = jb.network(layers, jb.readout(config.hidden, classes))
    schedule = optax.cosine_decay_schedule(config.learning_rate, steps, alpha=0.1)
    return net, optax.chain(optax.clip_by_global_norm(config.clip), optax.adam(schedule))


def chunk(rows: np.ndarray, start: int, length: int, classes: int) -> jb.Batch:
    """Characters start..start+length of every row, and the character after each."""
    part = processes.by_rows(rows[:, start : start + length + 1].T, 1)
    return jb.Batch(jax.nn.one_hot(part[:-1], classes), part[1:])


def fastest(net: jb.Network, batch: jb.Batch) -> jb.GradientMethod:
    """What takes the least time on this machine; the table of all is printed."""
    found = jb.fastest(net, jb.softmax_cross_entropy, batch)
    print(found)
    return found.gradient


def begin(net: jb.Network, params: jb.NetworkParams, rows: int) -> chex.ArrayTree:
    """The carry of rows that begin without memory."""
    return processes.by_rows(net.initial_carry(params, (rows,)), 0)


def validate(net: jb.Network, params: jb.NetworkParams, corpus: Corpus, config: Config) -> float:
    """Nats per character over the whole validation text, every row read from its beginning."""
    carry = begin(net, params, config.rows)
    nats, length = 0.0, corpus.valid.shape[1] - 1
    for start in range(0, length, 8 * config.window):
        batch = chunk(corpus.valid, start, 8 * config.window, len(corpus.alphabet))
        loss, carry = _score(net, params, carry, batch)
        nats += float(loss) * batch.xs.shape[0]
    return nats / length


@functools.partial(jax.jit, static_argnums=0)
def _score(
    net: jb.Network, params: jb.NetworkParams, carry: chex.ArrayTree, batch: jb.Batch
) -> tuple[Array, chex.ArrayTree]:
    carry, ys = net.apply(params, carry, batch.xs)
    return jb.softmax_cross_entropy(ys, batch.targets), carry


@functools.partial(jax.jit, static_argnums=(0, 4))
def _write(net: jb.Network, params: jb.NetworkParams, key: Array, prompt: Array, length: int) -> Array:
    def step(state: tuple[chex.ArrayTree, Array], key: Array) -> tuple[tuple[chex.ArrayTree, Array], Array]:
        carry, y = state
        code = jax.random.categorical(key, y / 0.7)  # temperature 0.7
        carry, ys = net.apply(params, carry, jax.nn.one_hot(code, len(y))[None])
        return (carry, ys[0]), code

    carry, ys = net.apply(
        params, net.initial_carry(params, ()), jax.nn.one_hot(prompt, net.layers[0].input_size)
    )
    return jax.lax.scan(step, (carry, ys[-1]), jax.random.split(key, length))[1]


def write_text(net: jb.Network, params: jb.NetworkParams, corpus: Corpus, key: Array) -> str:
    """The first characters of the validation text, and how the network goes on; in this process alone."""
    params = jax.device_get(params)
    prompt = corpus.valid[0, :40]
    codes = (*prompt, *np.asarray(_write(net, params, key, jnp.asarray(prompt), 200)))
    return "".join(corpus.alphabet[code] for code in codes)


def train(config: Config, run: Run, corpus: Corpus) -> tuple[jb.Network, jb.TrainState, bool]:
    """Train to the end or to a request to stop; returns the network, the state and whether it ended."""
    classes, chunks = len(corpus.alphabet), (corpus.train.shape[1] - 1) // config.window
    steps = config.epochs * chunks
    net, optimizer = build(config, classes, steps)
    key = jax.random.key(config.seed)
    dropout_key = jax.random.fold_in(key, 1)
    first = chunk(corpus.train, 0, config.window, classes)._replace(key=dropout_key)
    method = fastest(net, first) if config.gradient == "fastest" else jb.full()
    train_step = jb.make_train_step(net, jb.softmax_cross_entropy, optimizer, gradient=method)
    state = processes.data_parallel(jb.init_train_state(key, net, optimizer, (config.rows,)))
    with Checkpoints(run.folder / "checkpoints") as saved, StopRequest() as stop:
        state = saved.restore(state)
        start, skipped = int(state.step), int(state.skipped)
        run.keep_metrics_up_to(start)
        if len(run.metrics(step=int, skipped=int)) < start // REPORT:
            print(f"metrics.jsonl lacks lines up to step {start}: the learning curve has a gap there")
        quiet = jax.process_index() > 0
        with tqdm(total=steps, initial=start, unit="step", smoothing=0.05, disable=quiet) as bar:
            for step in range(start, steps):
                at = step % chunks
                if at == 0:  # a new epoch begins without memory
                    state = state._replace(carry=begin(net, state.params, config.rows))
                batch = chunk(corpus.train, at * config.window, config.window, classes)
                batch = batch._replace(key=jax.random.fold_in(dropout_key, step))
                state, metrics = train_step(state, batch)
                bar.update()
                line, mark = (step + 1) % REPORT == 0, (step + 1) % config.every == 0 or step + 1 == steps
                stopping = (line or jax.process_count() == 1) and processes.any_process(stop.came)
                if line:
                    skipped = report(run, state, metrics, bar, skipped)
                if mark:
                    look(config, run, corpus, net, state, bar)
                if mark or stopping:
                    saved.save(state)
                if stopping:
                    return net, state, step + 1 == steps
    return net, state, True


def report(run: Run, state: jb.TrainState, metrics: jb.Metrics, bar: tqdm, before: int) -> int:
    """Record metrics, without a loss that is not finite. Returns how many steps were skipped so far.

    SystemExit if every step since the last line was skipped; `before` had been skipped until then.
    """
    done, skipped = int(state.step), int(state.skipped)
    if skipped - before == REPORT:
        raise SystemExit(
            f"step {done}: loss or gradient of each of {REPORT} chunks is not finite; lower --learning-rate"
        )
    loss = {"loss": float(metrics.loss), "grad_norm": float(metrics.grad_norm)} if metrics.finite else {}
    run.record(step=done, **loss, skipped=skipped)
    shown = f", {skipped} skipped" if skipped else ""
    bar.set_postfix_str(f"loss {float(metrics.loss):.3f} nats/char{shown}")
    return skipped


def look(config: Config, run: Run, corpus: Corpus, net: jb.Network, state: jb.TrainState, bar: tqdm) -> None:
    """Validate, every fifth time with a sample. SystemExit if the loss is not finite, before a checkpoint."""
    done = int(state.step)
    nats = validate(net, state.params, corpus, config)
    if not math.isfinite(nats):
        raise SystemExit(f"step {done}: the validation loss is not finite; lower --learning-rate")
    run.record(step=done, valid=nats)
    bar.write(f"step {done}: validation {nats:.3f} nats/char")
    if done % (5 * config.every) == 0 and jax.process_index() == 0:
        key = jax.random.fold_in(jax.random.key(config.seed), done)
        bar.write(f"--- step {done}\n{write_text(net, state.params, corpus, key)}")


def draw(config: Config, corpus: Corpus, run: Run) -> Figure:
    """Training and validation loss over the steps, k-grams as levels."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for key, style in (("loss", {"alpha": 0.5, "lw": 1}), ("valid", {"marker": "o", "ms": 4, "lw": 2})):
        lines = run.metrics(**{"step": int, key: float})
        label = {"loss": "training chunk", "valid": "validation"}[key]
        axes.plot([m["step"] for m in lines], [m[key] for m in lines], label=label, **style)
    for k, nats in enumerate(corpus.kgrams):
        axes.axhline(nats, color="0.5", lw=1, ls="--")
        axes.annotate(
            f"k = {k}: {nats:.2f}", (0.99, nats), xycoords=("axes fraction", "data"), va="bottom", ha="right"
        )
    layers = "1 layer" if config.layers == 1 else f"{config.layers} layers"
    network = f"{config.cell}, {layers} of {config.hidden} units"
    axes.set_title(f"{network}, trained by BPTT, and k-grams (dashed) on the same text")
    axes.set(xlabel="step", ylabel="nats per character")
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.9))
    return figure


def main(config: Config) -> None:
    """Train in this process, or in several."""
    check(config)
    if config.processes > 1 and not processes.is_member():
        processes.start(config.processes, "experiments.char_lm")
        return
    with processes.joined():
        ended = compare(config)
    if not ended:
        raise SystemExit("stopped and saved; run the same command again to go on")


def compare(config: Config) -> bool:
    """Train, then compare the network with the k-grams. False if it was stopped before its end."""
    began = time.monotonic()
    processes.check_rows(config.rows)
    corpus = load(config)
    depends_on = settings(config, "text", "processes") | {"text_sha256": corpus.sha256}
    processes.agree("their options", depends_on)
    run = Run(config.out, depends_on)
    sizes = f"{corpus.train.size} training and {corpus.valid.size} validation characters"
    print(f"{sizes}, {len(corpus.alphabet)} different; results in {run.folder}")
    net, state, ended = train(config, run, corpus)
    if not ended:
        return False

    params, skipped = state.params, int(state.skipped)
    nats = validate(net, params, corpus, config)
    if jax.process_index() > 0:
        return True
    baselines = ", ".join(f"k={k} {n:.3f}" for k, n in enumerate(corpus.kgrams))
    digest = hashlib.sha256(b"".join(np.asarray(p).tobytes() for p in jax.tree.leaves(params))).hexdigest()
    summary = {"valid": nats, "kgrams": corpus.kgrams.tolist(), "skipped": skipped, "params_sha256": digest}
    run.write("summary.json", json.dumps(summary, indent=2) + "\n")
    key = jax.random.key(config.seed)
    print(f"--- a sample\n{write_text(net, params, corpus, key)}\n---")
    print(f"parameters sha256 {digest[:16]}, {skipped} chunks skipped, {time.monotonic() - began:.0f} s")
    run.save_figure("learning_curve.png", draw(config, corpus, run), dpi=150)
    met = (
        "beats the bigram (k=1), as expected"
        if nats < corpus.kgrams[1]
        else "EXPECTATION NOT MET: the bigram (k=1) is better"
    )
    print(f"validation {nats:.3f} nats/char; k-grams {baselines}; {met}")
    return True


if __name__ == "__main__":
    run_script(main, Config, __doc__)

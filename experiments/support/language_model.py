"""A network that learns to predict the next symbol of a text: its training run, and what it scores.

The text is read in rows, `window` symbols a step; the carry goes on from chunk to chunk, the gradient does
not. Every `every` steps the network is validated and a checkpoint is written, from which the same command
goes on after a kill. A chunk whose loss or gradient is not finite is skipped and counted.
"""

from __future__ import annotations

import functools
import math
import time
from typing import NamedTuple

import chex
import jax
import optax
from jax import Array
from tqdm import tqdm

import jax_bptt as jb
from experiments.support import processes
from experiments.support.checkpoints import Checkpoints
from experiments.support.corpora import Corpus, chunk
from experiments.support.files import read
from experiments.support.language_options import LanguageOptions
from experiments.support.runs import Run, StopRequest
from experiments.support.samples import write_text

REPORT = 20  # steps between two lines of metrics.jsonl
SECONDS = "seconds.txt"  # of training, up to the newest checkpoint
SAMPLED = 200  # symbols of a sample that is printed on the way


class Trained(NamedTuple):
    """Where a training run ended.

    Attributes:
      net: the network.
      state: its last state.
      ended: whether that is the end, and not a stop that was asked for.
    """

    net: jb.Network
    state: jb.TrainState
    ended: bool


def build(
    config: LanguageOptions, classes: int, steps: int
) -> tuple[jb.Network, optax.GradientTransformation]:
    """The network and its optimizer."""
    make = getattr(jb, config.cell)
    sizes = [config.embedding] + (config.layers - 1) * [config.hidden]
    layers = [jb.layer(make(size, config.hidden), dropout=config.dropout) for size in sizes]
    readout = jb.tied_readout(classes) if config.tied else jb.readout(config.hidden, classes)
    net = jb.network(layers, readout, jb.embedding(classes, config.embedding))
    schedule = optax.cosine_decay_schedule(config.learning_rate, steps, alpha=0.1)
    return net, optax.chain(optax.clip_by_global_norm(config.clip), optax.adam(schedule))


def train(config: LanguageOptions, run: Run, corpus: Corpus) -> Trained:
    """Train to the end or to a request to stop."""
    chunks = (corpus.train.shape[1] - 1) // config.window
    steps = config.epochs * chunks
    net, optimizer = build(config, corpus.vocabulary.size, steps)
    key = jax.random.key(config.seed)
    dropout_key = jax.random.fold_in(key, 1)
    first = chunk(corpus.train, 0, config.window)._replace(key=dropout_key)
    method = fastest(net, first) if config.gradient == "fastest" else jb.full()
    train_step = jb.make_train_step(net, jb.softmax_cross_entropy, optimizer, gradient=method)
    state = processes.data_parallel(jb.init_train_state(key, net, optimizer, (config.rows,)))
    with Checkpoints(run.folder / "checkpoints") as saved, StopRequest() as stop:
        state = saved.restore(state)
        start, skipped = int(state.step), int(state.skipped)
        began = time.monotonic() - (seconds_of(run) if start else 0.0)
        run.keep_metrics_up_to(start)
        if len(run.metrics(step=int, skipped=int)) < start // REPORT:
            print(f"metrics.jsonl lacks lines up to step {start}: the learning curve has a gap there")
        quiet = jax.process_index() > 0
        with tqdm(total=steps, initial=start, unit="step", smoothing=0.05, disable=quiet) as bar:
            for step in range(start, steps):
                at = step % chunks
                if at == 0:  # a new epoch begins without memory
                    state = state._replace(carry=begin(net, state.params, config.rows))
                batch = chunk(corpus.train, at * config.window, config.window)
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
                    run.write(SECONDS, f"{time.monotonic() - began:.1f}\n")
                if stopping:
                    return Trained(net, state, step + 1 == steps)
    return Trained(net, state, True)


def seconds_of(run: Run) -> float:
    """Seconds of training up to the newest checkpoint, also before an interruption."""
    try:
        return float(read(run.folder / SECONDS))
    except (OSError, ValueError):
        return 0.0


def fastest(net: jb.Network, batch: jb.Batch) -> jb.GradientMethod:
    """What takes the least time on this machine; the table of all is printed."""
    found = jb.fastest(net, jb.softmax_cross_entropy, batch)
    print(found)
    return found.gradient


def begin(net: jb.Network, params: jb.NetworkParams, rows: int) -> chex.ArrayTree:
    """The carry of rows that begin without memory."""
    return processes.by_rows(net.initial_carry(params, (rows,)), 0)


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
    bar.set_postfix_str(f"loss {float(metrics.loss):.3f} nats{shown}")
    return skipped


def look(
    config: LanguageOptions, run: Run, corpus: Corpus, net: jb.Network, state: jb.TrainState, bar: tqdm
) -> None:
    """Validate, every fifth time with a sample. SystemExit if the loss is not finite, before a checkpoint."""
    done = int(state.step)
    nats = validate(net, state.params, corpus, config)
    if not math.isfinite(nats):
        raise SystemExit(f"step {done}: the validation loss is not finite; lower --learning-rate")
    run.record(step=done, valid=nats)
    bar.write(f"step {done}: validation {nats:.3f} nats")
    if done % (5 * config.every) == 0 and jax.process_index() == 0:
        bar.write(f"--- step {done}\n{sample(config, corpus, net, state.params, done)}")


def sample(
    config: LanguageOptions, corpus: Corpus, net: jb.Network, params: jb.NetworkParams, number: int = 0
) -> str:
    """How the network goes on from the beginning of the validation text; in this process alone."""
    key = jax.random.fold_in(jax.random.key(config.seed), number)
    return write_text(
        net, jax.device_get(params), corpus.vocabulary, corpus.begin, SAMPLED, config.temperature, key
    )


def validate(net: jb.Network, params: jb.NetworkParams, corpus: Corpus, config: LanguageOptions) -> float:
    """Nats per symbol over the whole validation text, every row read from its beginning."""
    carry = begin(net, params, config.rows)
    nats, length = 0.0, corpus.valid.shape[1] - 1
    for start in range(0, length, 8 * config.window):
        batch = chunk(corpus.valid, start, 8 * config.window)
        loss, carry = _score(net, params, carry, batch)
        nats += float(loss) * batch.xs.shape[0]
    return nats / length


@functools.partial(jax.jit, static_argnums=0)
def _score(
    net: jb.Network, params: jb.NetworkParams, carry: chex.ArrayTree, batch: jb.Batch
) -> tuple[Array, chex.ArrayTree]:
    carry, ys = net.apply(params, carry, batch.xs)
    return jb.softmax_cross_entropy(ys, batch.targets), carry

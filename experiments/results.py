"""What the experiments found, beside what is published or known in closed form, as one page.

python -m experiments.results          from results/*/results.json to experiments/RESULTS.md
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from experiments.support.command_line import run_script
from experiments.support.files import read, replace, writing


@dataclasses.dataclass(frozen=True)
class Config:
    """Which results are collected, and where the page goes."""

    results: Path = Path("results")
    """Folder that holds the folders of results."""
    out: Path = Path("experiments/RESULTS.md")
    """File of the page."""


HEAD = """# Results

`python -m experiments.results` writes this page from the results of the scripts. Each chapter is one command,
which prints these rows at its end. The time is that of training, on the machine that the chapter names."""


class Shown(NamedTuple):
    """An experiment's words on the page.

    Attributes:
      title: of its chapter.
      alt: what is on its picture, for who cannot see it.
      caption: what there is to see.
    """

    title: str
    alt: str = ""
    caption: str = ""


SHOWN = {
    "adding": Shown(
        "The adding problem",
        "Test error by updates, over 100 and over 400 steps: GRU and LSTM fall from 1/6 to 0.002, Elman "
        "does not",
        "GRU and LSTM learn to add across 100 and 400 steps from every seed. The Elman network stays at 1/6, "
        "the error of a network that remembers nothing.",
    ),
    "adopted": Shown("The RNNs of other frameworks, and ours in their place"),
    "char_lm": Shown(
        "A language model of characters",
        "Validation loss by updates, which falls below that of the k-grams of up to three characters",
        "An Elman network reads Python's help texts a character at a time. It predicts the next better than "
        "counts of what followed the last three.",
    ),
    "copy_memory": Shown(
        "Copying memory",
        "Cross-entropy and the share of symbols recalled, by updates: the GRU recalls 80 %, Elman one in "
        "eight",
        "The GRU repeats most of ten symbols a hundred steps after it read them. The Elman network does not "
        "get beyond chance.",
    ),
    "elman_xor": Shown(
        "Temporal exclusive or",
        "Left: the error of the third bit falls to 0, that of the others stays at 1/4. Right: of twelve "
        "bits in a row every third has a low error",
        "Only the third bit of a triple, the exclusive or of the two before it, can be predicted, and the "
        "network predicts it. With a gradient of one step, or with two units, it predicts it in part.",
    ),
    "embedded_reber": Shown(
        "The embedded Reber grammar",
        "Share of the strings predicted rightly by sequences presented: each LSTM jumps to 100 %, all "
        "others stay at 50 %",
        "Every LSTM learns to keep the one letter that matters until the end of the string. The Elman "
        "networks do not get beyond chance.",
    ),
    "error_surface": Shown(
        "The cliff in the error surface",
        "Maps of the error and of its gradient over two weights, with a narrow wall and two descents; and "
        "the error by updates, plain and clipped",
        "At the wall the gradient is so large that one plain step leaves the picture. With the norm of the "
        "gradient clipped, descent follows the wall to the minimum.",
    ),
    "forecast": Shown(
        "Births per woman, ten years ahead",
        "Four countries with the network's median and interval of 90 %; CRPS by years ahead, the network's "
        "below all others; share within the interval; losses by updates, each with the update that is kept",
        "One network for all rows draws whole paths from its own samples. Its score (CRPS) is better than "
        "that of linear autoregression at every horizon. Its interval is right on average, and too wide at "
        "one year.",
    ),
    "learned_optimizer": Shown(
        "A learning rate that is learnt",
        "Meta training over the plane of schedules: full and ARTBP end at the optimum, windows of 1 to 200 "
        "steps before it. Beside it mean meta gradients, learning rates and losses",
        "A short window sees what a large learning rate costs, which comes at once, and not what it gains "
        "later. So it learns a small rate that decays fast. full() and ARTBP reach the optimum, which is "
        "known in closed form.",
    ),
    "lorenz": Shown(
        "The Lorenz attractor in a closed loop",
        "Attractors of the system, of a network forced every 38 steps, which is like it, of one forced at "
        "every step, which is smaller, and of one never forced, a point; distances and exponents by interval",
        "Networks that see the data after every doubling of an error, or up to four times as often, become "
        "chaotic like the system. Those that see it half as often, or never, do not; those that see it at "
        "every step become less chaotic.",
    ),
    "recurrent_ppo": Shown(
        "A T-maze, which needs memory",
        "Episodes that end at the right arm by iterations: the GRU reaches 100 % in ours and in flax, the "
        "agent without memory stays at 50 %; below it the time of an iteration",
        "The GRU agents learn to keep the cue of the entrance until the junction. An agent without memory "
        "guesses. In flax the same agent learns the same and takes longer.",
    ),
    "scaling": Shown(
        "Scaling",
        "Share of one GPU's speed that is kept on 1 to 4,096 GPUs: 84 % by ours, 76 % fully sharded, split "
        "hidden units below 5 %",
        "Calculated from counted collectives, not measured: one all-reduce after the loops keeps most of "
        "the speed; a collective in every step, as of hidden units that are split, loses nearly all.",
    ),
    "sequential_digits": Shown(
        "Digits read pixel by pixel",
        "Test images right by updates: over 64 steps both networks reach 98 %, over 784 the GRU 85 %, "
        "Elman 39 %",
        "Over 64 steps both networks remember the image. Over 784 steps the GRU remembers most of it and "
        "the Elman network little.",
    ),
    "simulator": Shown(
        "The rates of a simulated reaction",
        "Patterns of the reaction; the search for its four rates, which only the exact gradient finds; "
        "memory and time of the gradients; the truncated gradient by its window",
        "The rates of a reaction are found from its state after 4,096 steps. Truncated gradients stop at "
        "wrong rates, whose pattern looks much alike, and are zero by the first state.",
    ),
    "sunspots": Shown(
        "Sunspots of the next year",
        "The yearly numbers of sunspots from 1900 on with the GRU's predictions, and the errors of all "
        "methods in the two test periods",
        "Four recurrent units predict the next year about as well as the published methods (stars), and "
        "better than nine years of autoregression.",
    ),
    "temporal_order": Shown(
        "Temporal order",
        "Test error by updates: with clipping every seed falls to 0, without all stay at 75 %. Beside it, "
        "the norm of the gradient before clipping",
        "The norm of the gradient jumps when the network begins to learn. Only the networks whose gradient "
        "is clipped go on learning.",
    ),
    "under_your_model": Shown(
        "Under your model: one line changed in a model of flax",
        "An agent's success and a language model's loss by updates, the same with either RNN; how far apart "
        "they are, which is rounding; time and temporaries, which are less with ours",
        "A model of flax learns the same when our RNN takes the place of its own. What sets the two apart is "
        "rounding: a change of the last bit of each parameter does as much.",
    ),
    "vanishing_exploding": Shown(
        "Vanishing and exploding gradients",
        "Triangles of the terms of dE/dW by loss step and source step of nine networks; gradients by lag; "
        "Lyapunov exponents",
        "Below the diagonal each term holds a product of derivatives. It vanishes, explodes or keeps its "
        "size, which depends on the initial weights; beside it the same by lag, and in the long run.",
    ),
    "word_lm": Shown(
        "A language model of byte pairs",
        "Validation perplexity by updates, on a logarithmic scale, which falls below that of every k-gram",
        "A GRU whose readout has the weights of its embedding predicts which of 4,096 symbols, words and "
        "parts of words, comes next. Longer contexts help the k-grams little: most of them occur once.",
    ),
}  # an experiment that is not here goes by its name


def page(found: dict[str, dict[str, Any]], figures: Path) -> str:
    """A chapter for each experiment: its picture, what was found, and the command.

    Args:
      found: results.json by folder, run.json under "about".
      figures: folder of the figures, beside the page.
    """
    met = [row["met"] for of in found.values() for row in of["rows"]]
    head = f"{HEAD}\nOf {len(met)} figures {sum(met)} are as published or expected."
    chapters = [part for name, of in found.items() for part in _chapter(name, of, figures)]
    return "\n\n".join([head, *chapters]) + "\n"


def _chapter(name: str, of: dict[str, Any], figures: Path) -> Iterator[str]:
    shown = SHOWN.get(name, Shown(name))
    yield f"## {shown.title}"
    if (figures / f"{name}.png").exists():
        yield f"![{shown.alt}]({figures.name}/{name}.png)"
        yield f"*{shown.caption}*"
    rows = [[row["what"], row["known"], row["ours"], "yes" if row["met"] else "NO"] for row in of["rows"]]
    yield _table(["what", "published or closed form", "ours", "met"], rows)
    seeds = "1 seed" if of["seeds"] == 1 else f"{of['seeds']} seeds"
    yield f"`{of['command']}`: {seeds}, {of['seconds']:.0f} s on {_machine(of['about'])}."


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _machine(about: dict[str, Any]) -> str:
    versions = about["versions"]
    return f"{about['device']}, {about['machine']}, JAX {versions['jax']}, Python {versions['python']}"


def main(config: Config) -> None:
    """Collect, write."""
    folder, out = config.results, config.out
    found = {path.parent.name: collected(path.parent) for path in sorted(folder.glob("*/results.json"))}
    if not found:
        raise SystemExit(
            f"no results in {folder}; run an experiment first, or name their folder with --results"
        )
    with writing(out):
        replace(out, page(found, out.parent / "figures"))
    print(out)


def collected(folder: Path) -> dict[str, Any]:
    """The results of an experiment, with its run.json under "about". SystemExit if they are damaged."""
    try:
        found = {**json.loads(read(folder / "results.json"))}
        found["about"] = json.loads(read(folder / "run.json"))
        list(_chapter(folder.name, found, folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = f"{type(error).__name__}: {error}"
        fix = "run its experiment again, or delete the folder"
        raise SystemExit(f"{folder} has no results that can be read ({said}); {fix}") from None
    return found


if __name__ == "__main__":
    run_script(main, Config, __doc__)

"""The main functions of experiments: they train networks, draw what was found, and judge it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from matplotlib.figure import Figure

from experiments.support.findings import Row, conclude
from experiments.support.learning import Curves, Learner, learn_seeds, seconds_of_training
from experiments.support.options import settings
from experiments.support.runs import Run, StopRequest


class Config(Protocol):
    """What a task has among its options: a dataclass with a result folder and a number of seeds."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def out(self) -> Path: ...
    @property
    def seeds(self) -> int: ...


C = TypeVar("C", bound=Config)
Found = TypeVar("Found")


def run_experiment(
    name: str,
    config: C,
    train: Callable[[C, Run, StopRequest], Found],
    draw: Callable[[C, Found], Figure],
    judge: Callable[[C, Found], list[Row]],
) -> None:
    """Train, draw, judge; resumed where it was stopped.

    Args:
      name: of the experiment's module and of its figure.
      config: its options.
      train: what is run, and resumed, in the result folder; it ends early where a stop is requested.
      draw: the figure of what was found.
      judge: what it shows.
    """
    run = Run(config.out, settings(config))
    with StopRequest() as stop:
        found = train(config, run, stop)
    run.save_figure(f"{name}.png", draw(config, found))
    conclude(run, name, config, judge(config, found), config.seeds, seconds_of_training(run))


def run_task(
    name: str,
    config: C,
    learners: Callable[[C], list[Learner]],
    draw: Callable[[C, Curves], Figure],
    judge: Callable[[C, Curves], list[Row]],
) -> None:
    """`run_experiment` of networks that are learnt from several seeds.

    Args:
      name, config, draw, judge: as for `run_experiment`; what is found are the curves.
      learners: what is trained.
    """

    def train(config: C, run: Run, stop: StopRequest) -> Curves:
        return learn_seeds(run, stop, learners(config), config.seeds)

    run_experiment(name, config, train, draw, judge)

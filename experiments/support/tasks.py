"""The main of a task: networks are learnt from several seeds, and the curves are drawn and judged."""

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


def run_task(
    name: str,
    config: C,
    learners: Callable[[C], list[Learner]],
    draw: Callable[[C, Curves], Figure],
    judge: Callable[[C, Curves], list[Row]],
) -> None:
    """Learn, draw, judge; resumed where it was stopped.

    Args:
      name: of the experiment's module and of its figure.
      config: its options.
      learners: what is trained.
      draw: the figure of the curves.
      judge: what they show.
    """
    run = Run(config.out, settings(config))
    with StopRequest() as stop:
        curves = learn_seeds(run, stop, learners(config), config.seeds)
    run.save_figure(f"{name}.png", draw(config, curves))
    conclude(run, name, config, judge(config, curves), config.seeds, seconds_of_training(run))

"""What the command lines of the experiments have in common: options that are refused, options as text."""

from __future__ import annotations

import dataclasses
import math
from typing import Any


def check_counts(config: Any, **least: int) -> None:
    """SystemExit unless each of these options is at least so many."""
    for name, n in least.items():
        if getattr(config, name) < n:
            raise refusal(config, name, f"a number of at least {n}")


def check_positive(config: Any, *names: str) -> None:
    """SystemExit unless each of these options is a positive number."""
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            raise refusal(config, name, "a positive number")


def refusal(config: Any, name: str, wanted: str) -> SystemExit:
    """What to say of an option that is not what is wanted."""
    return SystemExit(f"--{name.replace('_', '-')} {getattr(config, name)}: give {wanted}")


def settings(config: Any) -> dict[str, Any]:
    """All that the results depend on: every option but the folder."""
    return {k: v for k, v in dataclasses.asdict(config).items() if k != "out"}


def given(config: Any) -> list[str]:
    """The options that are not the defaults, as on the command line, without the folder."""
    default = settings(type(config)())
    changed = {k: v for k, v in settings(config).items() if v != default[k]}
    return [f"--{k.replace('_', '-')} {v}" for k, v in changed.items()]

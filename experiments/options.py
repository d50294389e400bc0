"""Options that cannot be meant are refused before anything is done, by a sentence that says what to give."""

from __future__ import annotations

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

"""What the command lines of the experiments have in common: options that are refused, options as text."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def check_counts(config: DataclassInstance, **least: int) -> None:
    """SystemExit unless each of these options is at least so many, and can be the size of an array."""
    for name, n in least.items():
        if getattr(config, name) < n:
            raise refusal(config, name, f"a number of at least {n}")
        if getattr(config, name) >= 2**31:
            raise refusal(config, name, f"a number below {2**31}")


def check_positive(config: DataclassInstance, *names: str) -> None:
    """SystemExit unless each of these options is a positive number."""
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            raise refusal(config, name, "a positive number")


def check_seed(config: DataclassInstance, name: str = "seed") -> None:
    """SystemExit unless `jax.random.key` takes this option as it is."""
    if not 0 <= getattr(config, name) < 2**32:
        raise refusal(config, name, f"a number from 0 to {2**32 - 1}")


def refusal(config: DataclassInstance, name: str, wanted: str) -> SystemExit:
    """The error for an option that does not have a wanted value."""
    return SystemExit(f"--{name.replace('_', '-')} {getattr(config, name)}: give {wanted}")


def size_of(text: str) -> tuple[int, ...]:
    """The numbers of a size, none where it is not one."""
    parts = text.split("x")
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else ()


def settings(config: DataclassInstance, *apart: str) -> dict[str, Any]:
    """All that the results depend on, as JSON has it: every option but the folder and those named here."""
    options = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("out", *apart)}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}


def given(config: DataclassInstance) -> list[str]:
    """The options that are not the defaults, as on the command line, without the folder."""
    default = settings(type(config)())
    changed = {k: v for k, v in settings(config).items() if v != default[k]}
    return [f"--{k.replace('_', '-')} {v}" for k, v in changed.items()]

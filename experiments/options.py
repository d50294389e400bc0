"""What the command lines of the experiments have in common: options that are refused, options as text."""

from __future__ import annotations

import dataclasses
from typing import Any


def refuse(config: Any, *options: tuple[str, bool, str]) -> None:
    """SystemExit at the first option that cannot be meant; each is (name, whether it fits, what to give)."""
    for name, fits, what in options:
        if not fits:
            raise SystemExit(f"--{name.replace('_', '-')} {getattr(config, name)}: give a {what}")


def settings(config: Any) -> dict[str, Any]:
    """All that the results depend on: every option but the folder."""
    return {k: v for k, v in dataclasses.asdict(config).items() if k != "out"}


def given(config: Any) -> str:
    """The options that are not the defaults, as on the command line, without the folder."""
    default = settings(type(config)())
    changed = {k: v for k, v in settings(config).items() if v != default[k]}
    return " ".join(f"--{k.replace('_', '-')} {v}" for k, v in changed.items())

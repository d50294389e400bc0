"""Why no kernel runs on this machine, and the one warning that says so."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import jax

from jax_bptt.base.errors import describe
from jax_bptt.engine.engine import Runnable

_NO_GPU = "no NVIDIA GPU of compute capability 9.0 (Hopper) is here"


def reason_of_machine() -> str | None:
    """Why can no kernel be made here? None if one can, also where no GPU is: then for another machine."""
    if jax.__version_info__ < (0, 11):
        return f"it needs JAX 0.11 or newer, and this is {jax.__version__}"
    others = _capabilities() - {"9.0"}
    return f"{_NO_GPU}, but one of {' and '.join(sorted(others))}" if others else None


def reason_of_this_run() -> str | None:
    """Why does a program that holds a kernel not run it here? None if it does."""
    return None if _capabilities() else f"{_NO_GPU}; a program that is compiled for one has the kernels"


def kernels_run_here() -> bool:
    """Do kernels run on this machine?"""
    return reason_of_machine() is reason_of_this_run() is None


def _capabilities() -> set[str]:
    """The compute capabilities of the GPUs of this process; empty without any."""
    try:
        return {str(getattr(gpu, "compute_capability", "another maker")) for gpu in jax.devices("gpu")}
    except RuntimeError:  # no GPU
        return set()


def say_once(cell: Runnable, reason: str) -> None:
    """A warning says that a cell runs by the scan, once for each cell and reason."""
    made_by: Any = getattr(cell, "made_by", None)
    _say(describe(cell) if made_by is None else repr(made_by._replace(replaced=())), reason)


@functools.lru_cache(maxsize=256)
def _say(cell: str, reason: str) -> None:
    text = f"jb.fused() runs the time loops of {cell} by jax.lax.scan, as other methods do: {reason}"
    warnings.warn(text, UserWarning, stacklevel=2)

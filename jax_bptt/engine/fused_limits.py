"""What the kernels of `fused_loops` are not made for, and the one warning that says so."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp

from jax_bptt.base.checks import is_known
from jax_bptt.base.errors import describe
from jax_bptt.base.types import ArrayTree, Shape
from jax_bptt.engine.engine import Runnable
from jax_bptt.engine.fused_step import Rewritten
from jax_bptt.engine.fused_table import Blocks, choose
from jax_bptt.engine.linear_maps import PointwiseCell

_NO_GPU = "no NVIDIA GPU of compute capability 9.0 (Hopper) is here"


def blocks_or_reason(cell: PointwiseCell, shape: Shape, arrays: ArrayTree) -> Blocks | str:
    """How is the kernel of a loop cut into blocks, or why is there none?

    Args:
      cell: the cell.
      shape: [T, ..., H] of the states.
      arrays: what the loop reads.

    Returns:
      The `Blocks`, or a reason.
    """
    dtypes = {z.dtype for z in jax.tree.leaves(arrays)} - {jnp.dtype(bool)}
    if not cell.layout.recurrent:
        return "the cell has no recurrent product"
    if dtypes - {jnp.dtype(jnp.float32)} or cell.dtype not in (None, jnp.float32, jnp.bfloat16):
        return "it is made for float32 arrays, with products in float32 or bfloat16"
    if not all(map(is_known, shape)):
        return "the sizes of the arrays are symbols"
    if not math.prod(shape):
        return "there are no steps or no rows"
    parts = 1 if cell.dtype == jnp.bfloat16 else 2
    blocks = choose(cell.gates, cell.hidden_size, parts)
    if blocks is None:
        of = "bfloat16" if parts == 1 else "float32"
        return f"W_h of {cell.gates} gates of {cell.hidden_size} units does not fit in {of}"
    return blocks


def foreign_operation(*functions: Rewritten | None) -> str | None:
    """What do these functions of a cell contain that the compiler of kernels does not have?"""
    found = [f.foreign() for f in functions if f is not None]
    first = next(filter(None, found), None)
    return first and f"the compiler of kernels does not take {first}"


def reason_of_machine() -> str | None:
    """Why can no kernel be made here? None if one can, also where no GPU is: then for another machine."""
    if jax.__version_info__ < (0, 11):
        return f"it needs JAX 0.11 or newer, and this is {jax.__version__}"
    others = _capabilities() - {"9.0"}
    return f"{_NO_GPU}, but one of {' and '.join(sorted(others))}" if others else None


def reason_of_this_run() -> str | None:
    """Why does a program that holds a kernel not run it here? None if it does."""
    return None if _capabilities() else f"{_NO_GPU}; a program that is compiled for one has the kernels"


def _capabilities() -> set[str]:
    """The compute capabilities of the GPUs of this process; empty without any."""
    try:
        return {str(getattr(gpu, "compute_capability", "another maker")) for gpu in jax.devices("gpu")}
    except RuntimeError:  # no platform of this name
        return set()


def say_once(cell: Runnable, reason: str) -> None:
    """A warning says that a cell runs by the scan, once for each cell and reason."""
    made_by: Any = getattr(cell, "made_by", None)
    _say(describe(cell) if made_by is None else repr(made_by._replace(replaced=())), reason)


@functools.lru_cache(maxsize=256)
def _say(cell: str, reason: str) -> None:
    text = f"jb.fused() runs the time loops of {cell} by jax.lax.scan, as other methods do: {reason}"
    warnings.warn(text, UserWarning, stacklevel=2)

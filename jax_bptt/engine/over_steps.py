"""A loop over steps, in a program for a GPU, does several steps in each of its iterations.

A GPU is done with the operations of a step before the host has launched those of the next one. XLA puts
all operations of an iteration into one CUDA graph, which the host launches once, and the outputs of its
steps are written together. A CPU gains nothing by it, so its program has one step in an iteration. Both
programs come from one trace of the step; the platform is known when the program is lowered.

See experiments/GPU.md, 7, and experiments/MEASURED.md, "Steps in an iteration on a GPU".
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import jax

from jax_bptt.base.checks import is_known
from jax_bptt.cell.body import Body
from jax_bptt.engine import chunks
from jax_bptt.engine.engine import Runnable

_Carry = TypeVar("_Carry")
_AtStep = TypeVar("_AtStep")
_OfStep = TypeVar("_OfStep")


def over_steps(
    cell: Runnable,
    step: Callable[[_Carry, _AtStep], tuple[_Carry, _OfStep]],
    carry: _Carry,
    at: _AtStep,
    reverse: bool = False,
) -> tuple[_Carry, _OfStep]:
    """This is jax.lax.scan of step, unrolled where the program is for a GPU.

    Args:
      cell: the cell to which the step belongs.
      step: (carry, what it reads at t) -> (carry, its outputs).
      carry: the carry before the first step.
      at: what the steps read, leaves [T, ...].
      reverse: whether to go from the last step to the first.

    Returns:
      The last carry and the outputs of all steps, leaves [T, ...].
    """
    loop = functools.partial(jax.lax.scan, step, reverse=reverse)
    unroll = _steps_of_an_iteration(cell, chunks.length(at))
    if unroll == 1:
        return loop(carry, at)
    # JAX traces a function once, however many branches scan it
    unrolled = functools.partial(loop, unroll=unroll)
    found: tuple[_Carry, _OfStep] = jax.lax.platform_dependent(carry, at, cuda=unrolled, default=loop)
    return found


def _steps_of_an_iteration(cell: Runnable, steps: int) -> int:
    """It is 8, or a divisor of T from 4 to 8; 1 for a large body and where T is unknown."""
    if not is_known(steps) or (isinstance(cell, Body) and not cell.is_small):
        return 1
    return chunks.divisor_up_to(min(8, steps), steps)

"""What travels through a gradient method, each way one value.

forward    Run      parameters, s_0, the initial carry, x_1..x_T with their marks
between    Kept     the run, s_1..s_T, and what else a method keeps for its way back
outputs    Outputs  s_T and h_1..h_T; and, on the way back, dE/ds_T and G_1..G_T
back       Cotangents   dE/dparams, dE/ds_0, dE/dstart, dE/dx_1..dE/dx_T
"""

from __future__ import annotations

from typing import NamedTuple

from jax import Array

from jax_bptt.base.types import ArrayTree, Slopes, State
from jax_bptt.engine.sequence import Sequence


class Run(NamedTuple):
    """A cell over a stretch of steps: the whole sequence, or a chunk of it.

    Attributes:
      params: of the cell.
      carry: s_0 of the stretch, leaves [..., H].
      start: the initial carry that resets go back to, like carry; None without resets.
      sequence: x_1..x_T, [T, ..., I], and the marks.
    """

    params: ArrayTree
    carry: State
    start: State | None
    sequence: Sequence


class Outputs(NamedTuple):
    """What a run returns. A value called d is the loss's derivative by each part of it instead.

    Attributes:
      carry: s_T, leaves [..., H]; dE/ds_T.
      hs: h_1..h_T, [T, ..., H]; G_1..G_T.
    """

    carry: State
    hs: Array


class Kept(NamedTuple):
    """What waits for the backward pass.

    Attributes:
      run: what was run.
      states: s_1..s_T, leaves [T, ..., H]; None for a method that makes them again.
      slopes: a_1..a_T, or those of the last steps; None where they are made again.
      extra: what else the method keeps for itself.
    """

    run: Run
    states: State | None
    slopes: Slopes | None = None
    extra: ArrayTree = ()


class Cotangents(NamedTuple):
    """What comes back: the loss's derivative by each part of a run.

    Attributes:
      params: dE/dparams, like params.
      carry: dE/ds_0, leaves [..., H].
      start: dE/dstart, like carry; None without resets.
      xs: dE/dx_1..dE/dx_T, [T, ..., I].
    """

    params: ArrayTree
    carry: State
    start: State | None
    xs: Array

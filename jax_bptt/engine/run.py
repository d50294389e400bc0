"""A gradient method takes and returns these four values.

forward    Run      parameters, s_0, the initial carry, x_1..x_T with their marks
between    Kept     the run, s_1..s_T, and what else a method stores for the backward pass
outputs    Outputs  s_T and h_1..h_T; in the backward pass dE/ds_T and G_1..G_T
back       Cotangents   dE/dparams, dE/ds_0, dE/dstart, dE/dx_1..dE/dx_T
"""

from __future__ import annotations

from typing import NamedTuple

from jax import Array

from jax_bptt.base.types import ArrayTree, Slopes, State
from jax_bptt.engine.sequence import Sequence


class Run(NamedTuple):
    """A run is a cell over a stretch of steps: the whole sequence, or a chunk of it.

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
    """These are the outputs of a run. A value named d holds the loss's derivatives by them instead.

    Attributes:
      carry: s_T, leaves [..., H]; in d it is dE/ds_T.
      hs: h_1..h_T, [T, ..., H]; in d it is G_1..G_T.
    """

    carry: State
    hs: Array


class Kept(NamedTuple):
    """This is stored for the backward pass.

    Attributes:
      run: the run.
      states: s_1..s_T, leaves [T, ..., H]; None for a method that recomputes them.
      slopes: a_1..a_T, or those of the last steps; None for a method that recomputes them.
      extra: anything else that the method needs.
    """

    run: Run
    states: State | None
    slopes: Slopes | None = None
    extra: ArrayTree = ()


class Cotangents(NamedTuple):
    """These are the loss's derivatives by each part of a run.

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

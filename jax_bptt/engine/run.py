"""A gradient method takes and returns these four values.

forward    Run      parameters, s_0, the initial carry, x_1..x_T with their marks
between    Kept     the run, s_1..s_T, and what else a method stores for the backward pass
outputs    Outputs  s_T and y_1..y_T, what the steps hand out; in the backward pass their derivatives
back       Cotangents   dE/dparams, dE/ds_0, dE/dstart or dE/dstarts, dE/dx_1..dE/dx_T
"""

from __future__ import annotations

from typing import Any, NamedTuple

from jax_bptt.base.types import ArrayTree, Slopes, State
from jax_bptt.engine.sequence import Sequence


class Run(NamedTuple):
    """A run is a cell, or the body of a scan, over a stretch of steps: the whole sequence, or a chunk of it.

    Attributes:
      params: of the cell.
      carry: s_0 of the stretch, leaves [..., H].
      start: the initial carry that resets go back to, like carry; None without resets, and where the
        sequence says for each step where a reset goes back to.
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
      ys: y_1..y_T, what the steps hand out (`emission`): h_1..h_T, [T, ..., H], of a cell; in d it is
        dE/dy_1..dE/dy_T.
    """

    carry: State
    ys: Any


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
      starts: dE/dstarts of the sequence, leaves [T, ..., H]; None where it has none.
    """

    params: ArrayTree
    carry: State
    start: State | None
    xs: Any
    starts: State | None = None

"""What runs a cell: seven functions of one step or of all, and the two loops over time.

Nothing else of the house calls a cell's own functions in time. A kernel is the engine of pointwise cells with
two other loops, `POINTWISE._replace(forward_loop=..., backward_loop=...)`; a gradient method names the engine
that it runs on. `full`, `checkpointed`, `truncated(h)`, `artbp` and `clipped` do all their work by the two
loops. The others read the functions of one step: sliding truncation and `rtrl` have loops of their own,
`parallel` and Newton's method none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from jax import Array

from jax_bptt.base.types import P, Slopes, State
from jax_bptt.cell.step_cell import AnyCell, Projected
from jax_bptt.engine.run import Outputs, Run

C = TypeVar("C")  # the kind of cell that an engine runs
Transform: TypeAlias = Callable[[Any], Any]  # what is done to λ̃ on its way to the step before


class Forward(NamedTuple):
    """What the forward loop returns.

    Attributes:
      carry: s_T, leaves [..., H].
      states: s_1..s_T, leaves [T, ..., H].
      slopes: a_1..a_T, leaves [T, ...]; None where they were not asked for.
    """

    carry: State
    states: State
    slopes: Slopes | None


class Swept(NamedTuple):
    """What the backward loop returns.

    Attributes:
      carry: dE/ds_0, leaves [..., H].
      start: dE/dstart, into the initial carry, leaves [..., H]; None without resets.
      lam: λ_1..λ_T, leaves [T, ..., H], zero where a step was masked.
    """

    carry: State
    start: State | None
    lam: State


class Engine(NamedTuple, Generic[C, P]):
    """How a kind of cell is run.

    Attributes:
      pointwise: whether the step is pointwise over units, so that the engine makes the matrix products.
      project: (cell, params, xs) -> u_1..u_T, what the steps read of the inputs, all t at once.
      recur: (cell, params, s_prev) -> v_t, the products of the step with s̃_{t−1}.
      step: (cell, params, s_prev, u, v) -> s_t.
      linearise: (cell, params, s_prev, u, v, s) -> a_t.
      before_sweep: (cell, params) -> what every backward step reads, made once before the loop.
      backward_step: (cell, params, prepared, a, lam) -> (ds_t/ds̃_{t−1})ᵀ λ_t.
      contract: (cell, params, s_prev, xs, a, lam) -> dE/dparams and dE/dxs, from everything at every t.
      forward_loop: (engine, cell, run, u, keep_slopes) -> `Forward`.
      backward_loop: (engine, cell, run, slopes, d_outputs, transform) -> `Swept`.
    """

    pointwise: bool
    project: Callable[[C, P, Array], Projected]
    recur: Callable[[C, P, Any], Any]
    step: Callable[[C, P, Any, Any, Any], Any]
    linearise: Callable[[C, P, Any, Any, Any, Any], Slopes]
    before_sweep: Callable[[C, P], Any]
    backward_step: Callable[[C, P, Any, Any, Any], Any]
    contract: Callable[[C, P, Any, Array, Any, Any], tuple[P, Array]]
    forward_loop: Callable[[AnyEngine, AnyCell, Run, Projected, bool], Forward]
    backward_loop: Callable[[AnyEngine, AnyCell, Run, Slopes, Outputs, Transform | None], Swept]


AnyEngine: TypeAlias = Engine[Any, Any]

"""An engine runs a cell or the body of a scan: eight functions of one step or of all, and the two time loops.

Every time loop of the library but that of `autodiff` calls the functions of a cell through its engine. To run
cells by a kernel, replace the two loops of the engine of pointwise cells, by
`POINTWISE._replace(forward_loop=..., backward_loop=...)`, and give the new engine to a gradient method.
`full`, `checkpointed`, `truncated(h)`, `artbp` and `clipped` do all their work in the two loops. The others
use the functions of one step: sliding truncation and `rtrl` have loops of their own, `parallel` and Newton's
method have none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import jax

from jax_bptt.base.types import ArrayTree, P, Slopes, State
from jax_bptt.cell.body import Body
from jax_bptt.cell.step_cell import AnyCell, Projected
from jax_bptt.engine.run import Outputs, Run

C = TypeVar("C")  # the kind of cell that an engine runs
Transform: TypeAlias = Callable[[Any], Any]  # changes λ̃ before the previous step gets it
Runnable: TypeAlias = AnyCell | Body  # what an engine runs


class Stepped(NamedTuple):
    """This is the result of one step.

    Attributes:
      state: s_t.
      own: the outputs that are no part of s_t (`emission`); () for a cell.
    """

    state: Any
    own: ArrayTree


class Forward(NamedTuple):
    """This is the result of the forward loop.

    Attributes:
      carry: s_T, leaves [..., H].
      states: s_1..s_T, leaves [T, ..., H].
      own: the outputs that are no part of the states, leaves [T, ...], zero where a step was masked.
      slopes: a_1..a_T, leaves [T, ...]; None if they were not asked for.
    """

    carry: Any
    states: State
    own: ArrayTree
    slopes: Slopes | None


class Swept(NamedTuple):
    """This is the result of the backward loop.

    Attributes:
      carry: dE/ds_0, leaves [..., H].
      start: dE/dstart, start being the initial carry of resets, leaves [..., H]; None without resets, and
        where each step has a state of its own to begin from.
      starts: dE/dstarts, of the states that resets go back to step by step, leaves [T, ..., H], or None.
      lam: λ_1..λ_T, leaves [T, ..., H], zero where a step was masked.
    """

    carry: State
    start: State | None
    starts: State | None
    lam: State


def mapped(cell: object, f: Callable[..., Any]) -> Callable[..., Any]:
    """A function of one step is mapped over all steps."""
    return jax.vmap(f)


class Engine(NamedTuple, Generic[C, P]):
    """An engine says how one kind of cell is run.

    Attributes:
      pointwise: whether the step is pointwise over units, so that the engine does the matrix products.
      project: (cell, params, xs) -> u_1..u_T, the part of each step that reads only x_t, all t at once.
      recur: (cell, params, s_prev) -> v_t, the products of the step with s̃_{t−1}.
      step: (cell, params, s_prev, u, v) -> `Stepped`.
      linearise: (cell, params, s_prev, u, v, s) -> a_t.
      before_sweep: (cell, params) -> prepared, which all backward steps share; made once before the loop.
      backward_step: (cell, params, prepared, a, lam, d_own) -> (ds_t/ds̃_{t−1})ᵀ λ_t, and what comes from
        the outputs that are no part of s_t.
      contract: (cell, params, s_prev, xs, a, lam, d_own) -> dE/dparams and dE/dxs, from all t at once.
      forward_loop: (engine, cell, run, u, keep_slopes) -> `Forward`.
      backward_loop: (engine, cell, run, slopes, d_outputs, transform) -> `Swept`.
      at_once: (cell, f) -> f, a function of one step, for all steps at once, arguments with leaves [T, ...].
    """

    pointwise: bool
    project: Callable[[C, P, Any], Projected]
    recur: Callable[[C, P, Any], Any]
    step: Callable[[C, P, Any, Any, Any], Stepped]
    linearise: Callable[[C, P, Any, Any, Any, Any], Slopes]
    before_sweep: Callable[[C, P], Any]
    backward_step: Callable[[C, P, Any, Any, Any, Any], Any]
    contract: Callable[[C, P, Any, Any, Any, Any, Any], tuple[P, Any]]
    forward_loop: Callable[[AnyEngine, Runnable, Run, Projected, bool], Forward]
    backward_loop: Callable[[AnyEngine, Runnable, Run, Slopes, Outputs, Transform | None], Swept]
    at_once: Callable[[C, Callable[..., Any]], Callable[..., Any]] = mapped


AnyEngine: TypeAlias = Engine[Any, Any]

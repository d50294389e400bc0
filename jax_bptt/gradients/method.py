"""A gradient method is a value that you pass as an argument, as in `unroll(..., gradient=full())`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax

from jax_bptt.base.errors import bad
from jax_bptt.base.made import Call, made
from jax_bptt.base.types import ArrayTree
from jax_bptt.cell.body import Body
from jax_bptt.cell.cell import Cell
from jax_bptt.engine.devices import is_split
from jax_bptt.engine.engine import AnyEngine, Engine, Runnable
from jax_bptt.engine.run import Cotangents, Kept, Outputs, Run
from jax_bptt.engine.sequence import Sequence

Carry: TypeAlias = Any  # of a `Recurrence`: the state of a cell, or those of all layers
Weights: TypeAlias = Any  # of a `Recurrence`: what the loss is differentiated by
Data: TypeAlias = Any  # of a `Recurrence`: what it reads, leaves [T, ...]

_R = TypeVar("_R")


def differentiated_once(came: str, fix: str, f: Callable[..., _R]) -> Callable[..., _R]:
    """This is f, a function of arrays, but a derivative of it is an error and not a wrong number.

    Args:
      came: the derivative that is asked for then, for the error.
      fix: what to do instead, for the error.
      f: a function that a gradient method calls in its passes.

    Returns:
      The same function; a ValueError where JAX differentiates it.
    """
    guarded = jax.custom_jvp(f)

    @guarded.defjvp
    def refuse(primals: ArrayTree, tangents: ArrayTree) -> tuple[_R, _R]:
        raise bad("gradient", "first derivatives in reverse mode", came, fix)

    return guarded


def check_on_one_device(method: str, cell: Runnable, run: Run) -> None:
    """The body of a scan must not be split over devices, or a ValueError is raised.

    The rows of a cell are split by `unroll` itself. Those of a body are unknown here.
    """
    if not isinstance(cell, Body):
        return
    if is_split(run):
        fix = "use jb.full() or jb.truncated(h), or Auto axes"
        came = "arrays split over the Explicit axes of a mesh"
        raise bad("gradient", f"arrays that are not split, for {method} of a scan", came, fix)


class Reversed(NamedTuple):
    """These are the results of one chunk that was run forward and then backward.

    Attributes:
      carry: the carry after the chunk.
      d_weights: the chunk's part of dE/dweights.
      d_carry: dE/dcarry, by the carry before the chunk.
      out: whatever else the chunk returns, a pytree.
    """

    carry: Carry
    d_weights: Weights
    d_carry: Carry
    out: ArrayTree


class Recurrence(NamedTuple):
    """A recurrence runs one chunk of steps at a time: a cell, or all layers of a network with the loss.

    Attributes:
      advance: (weights, carry, chunk) -> carry after the chunk.
      reverse: (weights, carry, chunk, dE/dcarry after it) -> `Reversed`.
    """

    advance: Callable[[Weights, Carry, Data], Carry]
    reverse: Callable[[Weights, Carry, Data, Carry], Reversed]


class Streamed(NamedTuple):
    """These are the results of `GradientMethod.stream`.

    Attributes:
      carry: the carry after the last step.
      d_weights: dE/dweights, like the weights.
      d_carry: dE/dcarry, by the carry before the first step.
      out: the `out` of every chunk, as a list of pytrees: first the chunks of equal length, stacked on a
        new leading axis, then the shorter chunk, if there is one.
    """

    carry: Carry
    d_weights: Weights
    d_carry: Carry
    out: list[ArrayTree]


@made(run="pass it: gradient=jb.full()")
class GradientMethod(NamedTuple):
    """A gradient method is a forward pass with the backward pass that belongs to it.

    Attributes:
      name: what the method is called.
      forward: (cell, run) -> the `Outputs`, and what is `Kept` for the backward pass.
      backward: (cell, kept, dE/doutputs) -> `Cotangents`; None leaves the derivative to JAX, which then
        also differentiates in forward mode.
      stream: (recurrence, weights, carry, sequence, data) -> `Streamed`, for a method that runs a whole
        network with its loss chunk by chunk, so that the outputs of all steps never exist together; None
        for a method that runs one layer after the other.
      check: (cell, run) -> None; it raises the ValueError of a run for which the method is not made, also
        where nobody differentiates. None for a method without conditions.
      is_loop: whether the forward pass computes one step after the other; not so for Newton's method.
      engine: cell -> the `Engine` that runs the cell, for example one whose loops are a kernel; None for
        the cell's own engine. Any method runs on any engine: `full()._replace(engine=...)`.
      made_by: the call that made it, by which it is printed, copied and pickled.
    """

    name: str
    forward: Callable[[Runnable, Run], tuple[Outputs, Kept]]
    backward: Callable[[Runnable, Kept, Outputs], Cotangents] | None
    stream: Callable[[Recurrence, Weights, Carry, Sequence, Data], Streamed] | None = None
    check: Callable[[Runnable, Run], None] | None = None
    is_loop: bool = True
    engine: Callable[[Runnable], AnyEngine] | None = None
    made_by: Call | None = None

    def on_engine(self, cell: Runnable) -> Runnable:
        """The cell is returned with the engine on which this method runs it.

        Args:
          cell: the cell.

        Returns:
          The cell, with the engine of this method if it has one.

        Raises:
          ValueError: the engine of this method does not fit this kind of cell.
        """
        if self.engine is None:
            return cell
        engine = self.engine(cell)
        if not isinstance(engine, Engine) or engine.pointwise != isinstance(cell, Cell):
            fix = "start from POINTWISE (for a Cell) or STEPWISE (for a StepCell) and replace its loops"
            raise bad("gradient.engine", f"an Engine for {cell}", engine, fix)
        return cell._replace(engine=engine)

"""What a gradient method is: a value that is passed, `unroll(..., gradient=full())`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from jax_bptt.base.errors import bad
from jax_bptt.base.made import Call, made
from jax_bptt.base.types import ArrayTree
from jax_bptt.cell.cell import Cell
from jax_bptt.cell.step_cell import AnyCell
from jax_bptt.engine.engine import AnyEngine, Engine
from jax_bptt.engine.run import Cotangents, Kept, Outputs, Run
from jax_bptt.engine.sequence import Sequence

Carry: TypeAlias = Any  # of a `Recurrence`: the state of a cell, or those of all layers
Weights: TypeAlias = Any  # of a `Recurrence`: whatever its gradient is asked for
Data: TypeAlias = Any  # of a `Recurrence`: what it reads, leaves [T, ...]


class Reversed(NamedTuple):
    """What a chunk returns that was run forward and back.

    Attributes:
      carry: after the chunk.
      d_weights: dE/dweights of the chunk.
      d_carry: dE/dcarry before it.
      out: whatever else a chunk returns.
    """

    carry: Carry
    d_weights: Weights
    d_carry: Carry
    out: ArrayTree


class Recurrence(NamedTuple):
    """What is run a chunk of steps at a time: a cell, or all layers of a network with their loss.

    Attributes:
      advance: (weights, carry, chunk) -> carry after the chunk.
      reverse: (weights, carry, chunk, dE/dcarry after it) -> `Reversed`.
    """

    advance: Callable[[Weights, Carry, Data], Carry]
    reverse: Callable[[Weights, Carry, Data, Carry], Reversed]


class Streamed(NamedTuple):
    """What `GradientMethod.stream` returns.

    Attributes:
      carry: after the last step.
      d_weights: dE/dweights, like the weights.
      d_carry: dE/dcarry before the first step.
      out: of every chunk, a list of pytrees: those with one more leading axis, for chunks of one length,
        and those of a shorter chunk.
    """

    carry: Carry
    d_weights: Weights
    d_carry: Carry
    out: list[ArrayTree]


@made()
class GradientMethod(NamedTuple):
    """A forward pass and the backward pass that belongs to it.

    Attributes:
      name: what the method is called.
      forward: (cell, run) -> its `Outputs`, and what is `Kept` for the backward pass.
      backward: (cell, kept, dE/doutputs) -> `Cotangents`; None where it is left to JAX, which then also
        differentiates in forward mode.
      stream: (recurrence, weights, carry, sequence, data) -> `Streamed`, for a method that runs a whole
        network chunk by chunk, loss included, and never holds the outputs of all steps; None for one
        that goes layer by layer.
      engine: cell -> the `Engine` that this method runs it on, such as one whose loops are a kernel; None
        for the cell's own. Any method runs on any engine: `full()._replace(engine=...)`.
      made_by: the call that made it, by which it is printed, copied and pickled.
    """

    name: str
    forward: Callable[[AnyCell, Run], tuple[Outputs, Kept]]
    backward: Callable[[AnyCell, Kept, Outputs], Cotangents] | None
    stream: Callable[[Recurrence, Weights, Carry, Sequence, Data], Streamed] | None = None
    engine: Callable[[AnyCell], AnyEngine] | None = None
    made_by: Call | None = None

    def on_engine(self, cell: AnyCell) -> AnyCell:
        """The cell with the engine that this method runs it on."""
        if self.engine is None:
            return cell
        engine = self.engine(cell)
        if not isinstance(engine, Engine) or engine.pointwise != isinstance(cell, Cell):
            fix = "replace loops of the engine of such a cell, POINTWISE or STEPWISE"
            raise bad("gradient.engine", f"an Engine for {cell}", engine, fix)
        return cell._replace(engine=engine)

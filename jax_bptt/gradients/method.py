"""What a gradient method is: a value that is passed, `unroll(..., gradient=full())`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

from jax_bptt.engine.sequence import Sequence


class Recurrence(NamedTuple):
    """What is run a chunk of steps at a time: a cell, or all layers of a network with their loss.

    Attributes:
      advance: (weights, carry, chunk) -> carry after the chunk.
      reverse: (weights, carry, chunk, d_carry) -> (carry after the chunk, dE/dweights of the chunk,
        dE/dcarry before it, out); d_carry is dE/dcarry after it, and out whatever else a chunk gives.
    """

    advance: Callable[[Any, Any, Any], Any]
    reverse: Callable[[Any, Any, Any, Any], tuple[Any, Any, Any, Any]]


class Streamed(NamedTuple):
    """What `GradientMethod.stream` returns.

    Attributes:
      carry: after the last step.
      d_weights: dE/dweights, like the weights.
      d_carry: dE/dcarry before the first step.
      out: of every chunk, a list of pytrees: those with one more leading axis, for chunks of one length,
        and those of a shorter chunk.
    """

    carry: Any
    d_weights: Any
    d_carry: Any
    out: list[Any]


def called(name: str, **arguments: tuple[Any, Any]) -> str:
    """A method as one writes it; each argument is (value, default), and left out where they are equal."""
    given = ", ".join(f"{n}={value}" for n, (value, default) in arguments.items() if value != default)
    return f"{name}({given})"


class GradientMethod(NamedTuple):
    """A forward pass and the backward pass that belongs to it.

    Attributes:
      name: what the method is called, as one writes it.
      forward: (cell, params, carry, start, sequence) -> ((s_T, h_1..h_T), residuals); start is the
        initial carry that resets go back to, None without resets.
      backward: (cell, residuals, dE/ds_T, G_1..G_T) -> dE/dparams, dE/ds_0, dE/dstart, dE/dxs.
      stream: (recurrence, weights, carry, sequence, data) -> `Streamed`, for a method that runs a whole
        network chunk by chunk, loss included, and never holds the outputs of all steps; None for one
        that goes layer by layer.
    """

    name: str
    forward: Callable[[Any, Any, Any, Any, Sequence], tuple[tuple[Any, Array], Any]]
    backward: Callable[[Any, Any, Any, Array], tuple[Any, Any, Any, Array]]
    stream: Callable[..., Streamed] | None = None

    def __repr__(self) -> str:
        return self.name

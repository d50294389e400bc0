"""What a gradient method is: a value that is passed, `unroll(..., gradient=full())`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

from jax_bptt.sequence import Sequence


class GradientMethod(NamedTuple):
    """A forward pass and the backward pass that belongs to it.

    Attributes:
      name: what the method is called.
      forward: (cell, params, carry, start, sequence) -> ((s_T, h_1..h_T), residuals); start is the
        initial carry that resets go back to, None without resets.
      backward: (cell, residuals, dE/ds_T, G_1..G_T) -> dE/dparams, dE/ds_0, dE/dstart, dE/dxs.
    """

    name: str
    forward: Callable[[Any, Any, Any, Any, Sequence], tuple[tuple[Any, Array], Any]]
    backward: Callable[[Any, Any, Any, Array], tuple[Any, Any, Any, Array]]

    def __repr__(self) -> str:
        return f"{self.name}()"

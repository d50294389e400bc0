"""What a gradient method is: a value that is passed, `unroll(..., gradient=full())`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

from jax_bptt.cell import Cell


class GradientMethod(NamedTuple):
    """A forward pass and the backward pass that belongs to it.

    Attributes:
      name: what the method is called.
      forward: (cell, params, carry, xs) -> ((s_T, h_1..h_T), residuals).
      backward: (cell, residuals, dE/ds_T, G_1..G_T) -> dE/dparams, dE/ds_0, dE/dxs.
    """

    name: str
    forward: Callable[[Cell, Any, Any, Array], tuple[tuple[Any, Array], Any]]
    backward: Callable[[Cell, Any, Any, Array], tuple[Any, Any, Array]]

    def __repr__(self) -> str:
        return f"{self.name}()"

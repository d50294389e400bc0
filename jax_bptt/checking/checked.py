"""What is checked: the outputs of a cell or a network as a function of params, carry and inputs."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from jax_bptt.base.errors import bad
from jax_bptt.base.trees import differentiable, dot, fixed_part, merged
from jax_bptt.base.types import ArrayTree, Foreign, Mark, PRNGKey, Shape
from jax_bptt.cell.step_cell import AnyCell
from jax_bptt.checking.parts import Point
from jax_bptt.engine.sequence import Sequence
from jax_bptt.gradients.autodiff import autodiff
from jax_bptt.gradients.method import GradientMethod
from jax_bptt.networks.encoder import Embedding
from jax_bptt.networks.network import Network
from jax_bptt.networks.network_arguments import check_run
from jax_bptt.unrolling.unroll import unroll


class Fixed(NamedTuple):
    """These are the arguments by which nothing is differentiated.

    Attributes:
      marks: mask, reset and cut by name.
      xs: the inputs of an encoder that are no floating numbers, with None in place of the others.
    """

    marks: dict[str, Mark]
    xs: Any


class Checked(NamedTuple):
    """A run computes the outputs of a cell or a network as a function of (params, carry, xs)."""

    cell: Any  # a cell or a network
    reverse: bool
    gradient: GradientMethod
    rows: Shape

    def outputs(self, point: Point, fixed: Fixed) -> Any:
        params, numbers, xs = point
        xs = merged(xs, fixed.xs) if jax.tree.leaves(fixed.xs) else xs
        # counters and keys have no derivative: they are those of the initial carry
        initial = fixed_part(self.cell.initial_carry(params, self.rows))
        carry = merged(numbers, initial) if jax.tree.leaves(initial) else numbers
        given: dict[str, Any] = {"gradient": self.gradient, **fixed.marks}
        if isinstance(self.cell, Network):
            return differentiable(self.cell.apply(params, carry, xs, **given))
        return differentiable(unroll(self.cell, params, carry, xs, reverse=self.reverse, **given))

    def error(self, point: Point, fixed: Fixed, weights: ArrayTree) -> tuple[Array, Any]:
        outputs = self.outputs(point, fixed)
        return dot(weights, outputs), outputs

    def plain(self) -> Checked:
        return self._replace(gradient=autodiff())


def random_inputs(key: PRNGKey, cell: AnyCell | Network, leading: Shape) -> Array:
    encoder = cell.encoder if isinstance(cell, Network) else None
    if isinstance(encoder, Embedding):
        return jax.random.randint(key, leading, 0, encoder.vocabulary)
    if encoder is not None:
        fix = "pass what it reads, leaves [T, *batch, ...]"
        raise bad("xs", "the inputs of the network's encoder", None, fix)
    first = cell.layers[0] if isinstance(cell, Network) else cell
    return normal(key, (*leading, first.input_size))


def rows_of_inputs(cell: AnyCell | Network, params: ArrayTree, carry: Foreign, sequence: Sequence) -> Shape:
    """These are the batch axes of the inputs."""
    if isinstance(cell, Network) and cell.encoder is not None:
        return check_run(cell, params, carry, sequence)[2].rows
    rows: Shape = np.shape(sequence.xs)[1:-1]
    return rows


def normal(key: PRNGKey, shape: Shape) -> Array:
    return jax.random.normal(key, tuple(shape), "float64")

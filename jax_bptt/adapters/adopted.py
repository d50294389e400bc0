"""What an adopted cell is, and how it is run, is the same for all frameworks.

Each framework's file says which of its cells is which of ours. It reads the weights by `jax_bptt.weights`,
with jax.numpy, so that a gradient by our params goes on to the weights of the framework, traced or not. The
carry of the framework is put into our order for a run, and back after it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.errors import bad
from jax_bptt.base.trees import trailing
from jax_bptt.base.types import ArrayTree, DType, Foreign, Mark, State
from jax_bptt.cell.cell import Carry
from jax_bptt.cell.step_cell import AnyCell
from jax_bptt.cells.lstm import LSTMCarry
from jax_bptt.gradients.method import GradientMethod
from jax_bptt.unrolling.arguments import with_dtype
from jax_bptt.unrolling.unroll import unroll, unroll_states


def _pair(carry: Foreign) -> Foreign:
    """The carry of an LSTM, if it is one."""
    if not isinstance(carry, (tuple, list)) or len(carry) != 2:
        raise bad("carry", "the two arrays of an LSTM", carry, "make it as the framework does for this cell")
    return carry


class CarryOrder(NamedTuple):
    """Where a framework keeps which part of the carry.

    Attributes:
      to_ours: their carry -> ours.
      to_theirs: our carry -> theirs.
    """

    to_ours: Callable[[Foreign], State]
    to_theirs: Callable[[Foreign], Foreign]


H_ALONE = CarryOrder(Carry, lambda s: s.h)
H_C = CarryOrder(lambda hc: LSTMCarry(*_pair(hc)), lambda s: (s.h, s.c))
C_H = CarryOrder(lambda ch: LSTMCarry(*reversed(_pair(ch))), lambda s: (s.c, s.h))


class Adopted(NamedTuple):
    """A cell of another framework as one of ours.

    Attributes:
      cell: ours.
      params: of our cell, made from the weights of theirs.
      order: that of their carry.
    """

    cell: AnyCell
    params: ArrayTree
    order: CarryOrder


def adopted(cell: AnyCell, params: ArrayTree, order: CarryOrder, dtype: DType | None = None) -> Adopted:
    """The params get one dtype, and the cell the dtype in which the framework computes products.

    Args:
      cell: ours.
      params: floating arrays.
      order: of their carry.
      dtype: what the framework rounds the operands of products to; None for the dtype of the params. One
        wider than the params becomes the dtype of the params.

    Returns:
      The `Adopted`.
    """
    leaves = jax.tree.leaves(params)
    own = _widest(*leaves) if dtype is None else _widest(*leaves, jnp.zeros((), dtype))
    params = jax.tree.map(lambda p: p.astype(own), params)
    return Adopted(with_dtype(dtype, cell, params), params, order)


def run(
    found: Adopted,
    carry: ArrayTree,
    xs: Array,
    gradient: GradientMethod,
    *,
    mask: Mark = None,
    reset: Mark = None,
    reverse: bool = False,
) -> tuple[Foreign, Array]:
    """An adopted cell runs over a sequence; parameters, carry and inputs are promoted to one dtype.

    Args:
      found: the cell.
      carry: as the framework has it, leaves [..., H].
      xs: [T, ..., I], time first.
      gradient: the gradient method.
      mask, reset, reverse: as for `unroll`.

    Returns:
      Their carry after the run, and the outputs of all steps, [T, ..., H]; where the mask is False an output
      repeats the one before.
    """
    params, ours, xs = _promoted(found, carry, xs)
    last, hs = unroll(
        found.cell, params, ours, xs, gradient=gradient, mask=mask, reset=reset, reverse=reverse
    )
    return found.order.to_theirs(last), hs


def run_states(
    found: Adopted,
    carry: ArrayTree,
    xs: Array,
    gradient: GradientMethod,
    *,
    reset: Mark = None,
    reverse: bool = False,
) -> tuple[Foreign, Foreign]:
    """`run` that returns the carries of all steps, in the order of the framework, leaves [T, ..., H]."""
    params, ours, xs = _promoted(found, carry, xs)
    last, states = unroll_states(
        found.cell, params, ours, xs, gradient=gradient, reset=reset, reverse=reverse
    )
    return found.order.to_theirs(last), found.order.to_theirs(states)


def zero_where_masked(mask: Mark, ys: Array) -> Array:
    """Outputs behind the end of a sequence are zero."""
    return ys if mask is None else jnp.where(trailing(mask, ys), ys, jnp.zeros_like(ys))


def _promoted(found: Adopted, carry: ArrayTree, xs: Array) -> tuple[ArrayTree, State, Array]:
    """Params, our carry and inputs in the dtype that holds all of them."""
    ours = found.order.to_ours(carry)
    for name, z in (("carry", ours), ("inputs", xs)):
        if any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in jax.tree.leaves(z)):
            raise bad(name, "real numbers", z, "run a cell of complex numbers by jb.scan")
    dtype = _widest(*jax.tree.leaves((found.params, ours, xs)))
    promoted: tuple[ArrayTree, State, Array] = jax.tree.map(
        lambda z: z.astype(dtype), (found.params, ours, xs)
    )
    return promoted


def _widest(*arrays: Array) -> DType:
    """The dtype that holds the floating numbers of all; integers are converted to it."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*(z.dtype for z in arrays if jnp.issubdtype(z.dtype, jnp.floating)))

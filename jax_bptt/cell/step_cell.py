"""A step cell has any step function at all: layer norm, two products, attention over a memory.

    u_t = project(params, x_t)               what the step reads of the input, all t at once
    s_t = step(params, s_{t−1}, u_t)         h_t is a part of s_t

Every function is written for ONE row at ONE step: x_t is [I], h_t is [H], and a memory in the carry may
have any shape. The engine maps the functions over rows and, where possible, over time, so they never see
a batch axis. A hand-derived gradient consists of three functions; without them jax.vjp is used:

    a_t = linearise(params, s_{t−1}, u_t, s_t)                  what the derivative needs, as arrays
    (∂s_t/∂s_{t−1})ᵀ λ_t = adjoint(params, a_t, λ_t)            inside the loop, linear in λ
    dE/dparams, dE/dxs = contract(params, s_prev, xs, a, λ)     after the loop, on arrays [T, ..., n]
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, Generic, NamedTuple, TypeAlias

from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import function, or_none, size
from jax_bptt.base.errors import bad
from jax_bptt.base.made import Call, made
from jax_bptt.base.types import ArrayTree, DType, P, PRNGKey, S, Shape, Slopes
from jax_bptt.cell.by_vjp import adjoint_by_vjp, linearise_by_vjp
from jax_bptt.cell.cell import Carry, Cell, carry_class, names_of_gates
from jax_bptt.cell.initial_carry import initial_of

Projected: TypeAlias = Any  # u_t: what `project` returns, any tree


@made(run="run it by jb.unroll(cell, params, carry, xs)")
class StepCell(NamedTuple, Generic[P, S]):
    """A step cell is a recurrent cell whose step is any pure function.

    Attributes:
      input_size: I, length of x_t.
      hidden_size: H, length of h_t.
      step: (params, s_prev, u) -> s, for one row.
      project: (params, x) -> u, for one row.
      linearise: (params, s_prev, u, s) -> a, for one row.
      adjoint: (params, a, lam) -> cotangent of s_prev, for one row, linear in lam.
      contract: (params, s_prev, xs, a, lam) -> gradients of params and xs, all rows and steps at
        once, leaves [T, ..., n]; or None for jax.vjp of all steps at once.
      init: key -> params, any pytree of floating arrays of one dtype.
      initial_carry: (params, batch_shape) -> carry, leaves [*batch_shape, ...].
      gate_names: names of the blocks of columns in its weights, if there are such blocks.
      takes_dtype: whether the functions of the step take an argument dtype, to which they round the operands
        of their products.
      dtype: what they are given for it; None for no rounding. `unroll` sets it.
      emission, engine, made_by: as for `Cell`.
    """

    input_size: int
    hidden_size: int
    step: Callable[[P, S, Projected], S]
    project: Callable[[P, Array], Projected]
    linearise: Callable[[P, S, Projected, S], Slopes]
    adjoint: Callable[[P, Any, S], S]
    contract: Callable[[P, S, Array, Any, S], tuple[P, Array]] | None
    init: Callable[[PRNGKey], P]
    initial_carry: Callable[[P, Shape], S]
    gate_names: tuple[str, ...] = ()
    takes_dtype: bool = False
    dtype: DType | None = None
    emission: Hashable | None = None
    engine: Hashable | None = None
    made_by: Call | None = None


AnyCell: TypeAlias = Cell[Any, Any] | StepCell[Any, Any]


@cached(
    input_size=size,
    hidden_size=size,
    step=function,
    init=function,
    carry_type=carry_class,
    initial_carry=or_none(function),
    project=or_none(function),
    linearise=or_none(function),
    adjoint=or_none(function),
    contract=or_none(function),
    gates=names_of_gates,
)
def step_cell(
    input_size: int,
    hidden_size: int,
    step: Callable[[P, S, Any], S],
    init: Callable[[PRNGKey], P],
    *,
    carry_type: Callable[..., S] = Carry,  # type: ignore[assignment]
    initial_carry: Callable[[P, Shape], S] | None = None,
    project: Callable[[P, Array], Projected] | None = None,
    linearise: Callable[[P, S, Any, S], Slopes] | None = None,
    adjoint: Callable[[P, Any, S], S] | None = None,
    contract: Callable[[P, S, Array, Any, S], tuple[P, Array]] | None = None,
    gates: tuple[str, ...] = (),
) -> StepCell[P, S]:
    """`step_cell` makes a cell from any pure step; every gradient method then works with it.

    s_t = step(params, s_{t−1}, project(params, x_t))

    Args:
      input_size: I.
      hidden_size: H.
      step: (params, s_prev, u) -> s for one row. u is what `project` returns, or x_t [I] without it; s is
        the carry, a NamedTuple whose field h is [H].
      init: key -> params, a JAX function; params are any pytree of floating arrays of one dtype.
      carry_type: NamedTuple class of the carry; without `initial_carry` all its fields are [H].
      initial_carry: (params, batch_shape) -> the carry of every row, leaves [*batch_shape, ...]; None
        for zeros. Parameters that it reads are trained.
      project: (params, x) -> u for one row: the part of the step that does not depend on the carry. The
        engine computes it for all t at once.
      linearise, adjoint, contract: the hand-derived derivative (see the top of this module): pass all
        three or none. contract returns gradients of the same type as params (use params._replace, so
        that `learn_carry` works). Without them jax.vjp differentiates one step at a time with respect to
        the carry, inside the loop, and all steps at once with respect to the parameters, after the loop.
      gates: names of the gates, for `check_gradient`, if w_x, w_h and b have a block of columns for each
        gate, all equally wide.

    Returns:
      The `StepCell`; the same object for the same arguments.

    Raises:
      ValueError: a size below 1, a carry type without h, or only a part of the derivative.

    >>> normalised = lambda params, s_prev, x: Carry(jnp.tanh(jax.nn.standardize(x + s_prev.h @ params)))
    >>> step_cell(5, 5, normalised, init=lambda key: jax.random.normal(key, (5, 5)))
    step_cell(5, 5, <lambda>, <lambda>)
    """
    parts = {"linearise": linearise, "adjoint": adjoint, "contract": contract}
    given = [name for name, f in parts.items() if f is not None]
    if 0 < len(given) < len(parts):
        raise bad(", ".join(parts), "all or none", ", ".join(given), "leave all out and jax.vjp is used")
    if linearise is None or adjoint is None:
        linearise = functools.partial(linearise_by_vjp, step)
        adjoint = functools.partial(adjoint_by_vjp, step)
    return StepCell(
        input_size,
        hidden_size,
        step,
        project or as_it_is,
        linearise,
        adjoint,
        contract,
        init,
        initial_carry or functools.partial(initial_of, carry_type, hidden_size),
        gates,
    )


def as_it_is(params: ArrayTree, x: Array) -> Array:
    """Without a `project` the step reads x itself."""
    return x

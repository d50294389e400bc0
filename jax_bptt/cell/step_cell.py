"""A cell from any step function at all: layer norm, two products, attention over a memory.

    u_t = project(params, x_t)               what the step reads of the input, all t at once
    s_t = step(params, s_{t−1}, u_t)         h_t is a part of s_t

Every function is written for ONE row at ONE step: x_t is [I], h_t is [H], a memory in the carry may
have any shape. The engine maps them over rows and, where it may, over time; the functions never see
a batch axis. A hand-derived gradient comes in three parts, and jax.vjp stands in where they are missing:

    a_t = linearise(params, s_{t−1}, u_t, s_t)                  what the derivative needs, as arrays
    (∂s_t/∂s_{t−1})ᵀ λ_t = adjoint(params, a_t, λ_t)            inside the loop, linear in λ
    dE/dparams, dE/dxs = contract(params, s_prev, xs, a, λ)     after the loop, on arrays [T, ..., n]
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.errors import bad
from jax_bptt.cell.cell import Carry, check_carry_type, check_functions, gate_names, initial_of, size


class StepCell(NamedTuple):
    """A recurrent cell whose step is any pure function.

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
      gate_names: of the blocks of H columns that its weights have, if they have such blocks.
    """

    input_size: int
    hidden_size: int
    step: Callable[[Any, Any, Any], Any]
    project: Callable[[Any, Array], Any]
    linearise: Callable[[Any, Any, Any, Any], Any]
    adjoint: Callable[[Any, Any, Any], Any]
    contract: Callable[[Any, Any, Array, Any, Any], tuple[Any, Array]] | None
    init: Callable[[Array], Any]
    initial_carry: Callable[[Any, tuple[int, ...]], Any]
    gate_names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"StepCell(input_size={self.input_size}, hidden_size={self.hidden_size})"


def step_cell(
    input_size: int,
    hidden_size: int,
    step: Callable[[Any, Any, Any], Any],
    init: Callable[[Array], Any],
    *,
    carry_type: Any = Carry,
    initial_carry: Callable[[Any, tuple[int, ...]], Any] | None = None,
    project: Callable[[Any, Array], Any] | None = None,
    linearise: Callable[[Any, Any, Any, Any], Any] | None = None,
    adjoint: Callable[[Any, Any, Any], Any] | None = None,
    contract: Callable[[Any, Any, Array, Any, Any], tuple[Any, Array]] | None = None,
    gates: tuple[str, ...] = (),
) -> StepCell:
    """A cell from any pure step; every gradient method then works with it.

    s_t = step(params, s_{t−1}, project(params, x_t))

    Args:
      input_size: I.
      hidden_size: H.
      step: (params, s_prev, u) -> s for one row: u is what `project` returns, or x_t [I]; s is the
        carry, a NamedTuple whose field h is [H].
      init: key -> params, in JAX, any pytree of floating arrays of one dtype.
      carry_type: NamedTuple class of the carry; without `initial_carry` all its fields are [H].
      initial_carry: (params, batch_shape) -> the carry of every row, leaves [*batch_shape, ...]; None
        for zeros. What it reads of params is trained.
      project: (params, x) -> u for one row, the part of the step that reads no carry; the engine does
        it for all t at once.
      linearise, adjoint, contract: the hand-derived derivative (see the top of this module), all or
        none; contract returns the type of params (params._replace, for `learn_carry`). Where they are
        None, jax.vjp takes their place: of one step in the loop, by the carry alone, and after it of
        all steps at once by the parameters.
      gates: names for `check_gradient`, where weights w_x, w_h, b have a block of H columns for each.

    Returns:
      The `StepCell`; the same object for the same arguments.

    Raises:
      ValueError: a size below 1, a carry type without h, or a part of the derivative alone.

    >>> normalised = lambda params, s_prev, x: Carry(jnp.tanh(jax.nn.standardize(x + s_prev.h @ params)))
    >>> step_cell(5, 5, normalised, init=lambda key: jax.random.normal(key, (5, 5)))
    StepCell(input_size=5, hidden_size=5)
    """
    parts = {"linearise": linearise, "adjoint": adjoint, "contract": contract}
    optional = parts | {"initial_carry": initial_carry, "project": project}
    check_functions(step=step, init=init, **{name: f for name, f in optional.items() if f is not None})
    check_carry_type(carry_type)
    given = [name for name, f in parts.items() if f is not None]
    if 0 < len(given) < len(parts):
        raise bad(", ".join(parts), "all or none", ", ".join(given), "leave all out to have jax.vjp do it")
    sizes = size("input_size", input_size), size("hidden_size", hidden_size)
    functions = step, init, carry_type, initial_carry, project, linearise, adjoint, contract
    return _step_cell(*sizes, *functions, gate_names(gates))


@functools.lru_cache(maxsize=256)
def _step_cell(
    input_size: int,
    hidden_size: int,
    step: Any,
    init: Any,
    carry_type: Any,
    initial_carry: Any,
    project: Any,
    linearise: Any,
    adjoint: Any,
    contract: Any,
    gates: tuple[str, ...],
) -> StepCell:
    initial_carry = initial_carry or functools.partial(initial_of, carry_type, hidden_size)
    project = project or as_it_is
    if adjoint is None:
        linearise = functools.partial(linearise_by_vjp, step)
        adjoint = functools.partial(adjoint_by_vjp, step)
    derivative = linearise, adjoint, contract
    return StepCell(input_size, hidden_size, step, project, *derivative, init, initial_carry, gates)


def as_it_is(params: Any, x: Array) -> Array:
    """The project of a step that reads x itself."""
    return x


def linearise_by_vjp(step: Any, params: Any, s_prev: Any, u: Any, s: Any) -> Any:
    """The linearise of a step without a hand-derived one: what jax.vjp by the carry keeps of this point.

    What it keeps of the parameters alone, such as a weight matrix, is the same at every t and left out.
    """
    kept, _ = _pullback(step, params, s_prev, u)
    varies = _varies(step, params, s_prev, u)
    return u, tuple(z for z, here in zip(kept, varies, strict=True) if here)


def adjoint_by_vjp(step: Any, params: Any, a: Any, lam: Any) -> Any:
    """The adjoint that belongs to it: the pullback by the carry alone, put together again.

    Anywhere but at the point itself jax.vjp keeps the same of the parameters, so the step is traced at
    zeros for its structure and for these; the rest of that trace is read by nobody and compiled away.
    """
    u, at_point = a
    zeros, zero_u = jax.tree.map(jnp.zeros_like, (lam, u))
    elsewhere, structure = _pullback(step, params, zeros, zero_u)
    here, varies = iter(at_point), _varies(step, params, zeros, zero_u)
    kept = [next(here) if v else z for z, v in zip(elsewhere, varies, strict=True)]
    return jax.tree.unflatten(structure, kept)(lam)[0]


def _pullback(step: Any, params: Any, s_prev: Any, u: Any) -> tuple[list[Any], Any]:
    """jax.vjp of one step by the carry, as the arrays it keeps and its structure."""
    return jax.tree.flatten(jax.vjp(lambda s: step(params, s, u), s_prev)[1])


def _varies(step: Any, params: Any, s_prev: Any, u: Any) -> list[bool]:
    """Which of these arrays depend on s_prev or u."""
    of_params, *of_point = (jax.tree.map(jax.typeof, tree) for tree in (params, s_prev, u))
    jaxpr = jax.make_jaxpr(lambda p, *at: _pullback(step, p, *at)[0])(of_params, *of_point).jaxpr
    varying = {id(v) for v in jaxpr.invars[len(jax.tree.leaves(params)) :]}
    for equation in jaxpr.eqns:
        if any(id(v) in varying for v in equation.invars):
            varying.update(map(id, equation.outvars))
    return [id(v) in varying for v in jaxpr.outvars]

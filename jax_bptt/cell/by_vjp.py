"""A step without a hand-derived derivative is differentiated by jax.vjp, in two parts as by hand.

    linearise  a_t = what jax.vjp of the step with respect to s_{t−1} stores                  (VJ1)
    adjoint    (∂s_t/∂s_{t−1})ᵀ λ_t, rebuilt from a_t, linear in λ                            (VJ2)

A step here is a function (params, s_prev, u) of trees. Integers, bools and PRNG keys in s_prev have no
derivative: λ has None in their place.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import Array

from jax_bptt.base.trees import differentiable, fixed_part, merged, zeros_like
from jax_bptt.base.types import ArrayTree, P, S

AnyStep = Callable[[Any, Any, Any], Any]  # (params, s_prev, u) -> s


class Point(NamedTuple):
    """This is a_t of a step that jax.vjp differentiates.

    Attributes:
      u: what the step reads beside s_{t−1}.
      fixed: the leaves of s_{t−1} that have no derivative.
      kept: what jax.vjp stores, without the arrays that depend on the parameters alone.
    """

    u: ArrayTree
    fixed: ArrayTree
    kept: tuple[Array, ...]


def linearise_by_vjp(
    step: AnyStep, params: ArrayTree, s_prev: ArrayTree, u: ArrayTree, s: ArrayTree
) -> Point:
    """Without a hand-derived linearise, this stores what jax.vjp with respect to s_{t−1} needs.

    Arrays that depend on the parameters alone, such as a weight matrix, are equal at every t and left out.
    """
    kept, _ = _pullback(step, params, s_prev, u)
    varies = _varies(step, params, s_prev, u)
    varying = tuple(z for z, here in zip(kept, varies, strict=True) if here)
    return Point(u, fixed_part(s_prev), varying)  # (VJ1)


def adjoint_by_vjp(step: Callable[[P, S, Any], S], params: P, a: Point, lam: S) -> S:
    """This adjoint belongs to `linearise_by_vjp`, for a step that returns s_t."""
    d_s_prev: S = back_by_vjp(step, params, a, lam, lam)
    return d_s_prev


def back_by_vjp(step: AnyStep, params: ArrayTree, a: Point, cotangent: ArrayTree, like: ArrayTree) -> Any:
    """This rebuilds the function of jax.vjp and applies it to the cotangent of what the step returns.

    The arrays that depend on the parameters alone are equal at every point. So the step is traced at zeros
    to get them and the structure; nothing else of that trace is used, and the compiler removes it.

    Args:
      step, params: the step.
      a: from `linearise_by_vjp`.
      cotangent: of what the step returns, with None for leaves without a derivative.
      like: a tree shaped like s_{t−1}, with None for such leaves.

    Returns:
      The cotangent of s_{t−1}, with None for such leaves.
    """
    at_zeros = merged(zeros_like(like), a.fixed)
    elsewhere, structure = _pullback(step, params, at_zeros, a.u)
    here, varies = iter(a.kept), _varies(step, params, at_zeros, a.u)
    kept = [next(here) if v else z for z, v in zip(elsewhere, varies, strict=True)]
    return jax.tree.unflatten(structure, kept)(cotangent)[0]  # (VJ2)


def _pullback(
    step: AnyStep, params: ArrayTree, s_prev: ArrayTree, u: ArrayTree
) -> tuple[list[Array], jax.tree_util.PyTreeDef]:
    """jax.vjp of one step with respect to s_{t−1} is split into its arrays and its structure."""

    def of_s_prev(s: ArrayTree) -> ArrayTree:
        found: ArrayTree = differentiable(step(params, merged(s, s_prev), u))
        return found

    return jax.tree.flatten(jax.vjp(of_s_prev, differentiable(s_prev))[1])


_KNOWN: weakref.WeakKeyDictionary[Any, dict[Any, list[bool]]] = weakref.WeakKeyDictionary()


def _varies(step: AnyStep, params: ArrayTree, s_prev: ArrayTree, u: ArrayTree) -> list[bool]:
    """Which of these arrays depend on s_{t−1} or u? It is found once for a step and these types."""
    types = jax.tree.map(jax.typeof, (params, s_prev, u))
    leaves, structure = jax.tree.flatten(types)
    known = _KNOWN.setdefault(step, {})
    if (key := (structure, tuple(leaves))) not in known:
        known[key] = _traced_varies(step, *types)
    return known[key]


def _traced_varies(step: AnyStep, of_params: ArrayTree, *of_point: ArrayTree) -> list[bool]:
    jaxpr = jax.make_jaxpr(lambda p, *at: _pullback(step, p, *at)[0])(of_params, *of_point).jaxpr
    varying = {id(v) for v in jaxpr.invars[len(jax.tree.leaves(of_params)) :]}
    # an operation on a varying array gives varying arrays
    for equation in jaxpr.eqns:
        if any(id(v) in varying for v in equation.invars):
            varying.update(map(id, equation.outvars))
    return [id(v) in varying for v in jaxpr.outvars]

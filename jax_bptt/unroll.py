"""A cell over a whole sequence, with the gradient method of one's choice around it.

    s_t = step(s_{t−1}, x_t W_x + b, h_{t−1} W_h (+ b_h)),   t = 1..T

The only jax.custom_vjp of the library is here: jax.grad of anything that calls `unroll` runs the
backward pass of `gradient`, and the rest of the program is JAX's business.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_bptt.cell import Cell
from jax_bptt.errors import bad, describe
from jax_bptt.gradients.autodiff import autodiff, plain_scan
from jax_bptt.gradients.full import full
from jax_bptt.gradients.method import GradientMethod
from jax_bptt.sweep import input_gates, recurrent_gates, unit_wise


def unroll(
    cell: Cell, params: Any, carry: Any, xs: Array, *, gradient: GradientMethod = full()
) -> tuple[Any, Array]:
    """A cell over a sequence; differentiable by params, carry and xs.

    s_t = step(s_{t−1}, x_t W_x + b, h_{t−1} W_h (+ b_h))

    Args:
      cell: the cell, from `elman` or `make_cell`.
      params: from `cell.init`, float32 or float64.
      carry: s_0, from `cell.initial_carry` or an earlier call, leaves [..., H], dtype of params.
      xs: [T, ..., I] with T >= 1, time first, any number of batch axes, also none; dtype of params.
      gradient: how jax.grad goes backwards: `full` (by hand) or `autodiff` (JAX's own).

    Returns:
      (carry, hs) as jax.lax.scan: s_T, leaves [..., H], and h_1..h_T, [T, ..., H].

    Raises:
      ValueError: at trace time, naming the argument, what was expected and what came.

    Reference: Werbos 1990, Backpropagation through time: what it does and how to do it.

    >>> from jax_bptt import elman
    >>> cell = elman(3, 5)
    >>> params = cell.init(jax.random.key(0))
    >>> carry, hs = unroll(cell, params, cell.initial_carry(params, (2,)), jnp.ones((7, 2, 3)))
    >>> carry.h.shape, hs.shape
    ((2, 5), (7, 2, 5))
    """
    xs = check_sequence(cell, params, carry, xs, gradient)
    if gradient == autodiff():  # no custom_vjp, so that jvp, hessian and the like work
        return plain_scan(cell, params, carry, xs)
    return _with_gradient(cell, gradient)(params, carry, xs)


@functools.lru_cache(maxsize=256)
def _with_gradient(cell: Cell, gradient: GradientMethod) -> Any:
    @jax.custom_vjp
    def run(params: Any, carry: Any, xs: Array) -> tuple[Any, Array]:
        return gradient.forward(cell, params, carry, xs)[0]

    def backward(residuals: Any, cotangents: tuple[Any, Array]) -> tuple[Any, Any, Array]:
        return gradient.backward(cell, residuals, *cotangents)

    run.defvjp(functools.partial(gradient.forward, cell), backward)
    return run


def check_sequence(cell: Cell, params: Any, carry: Any, xs: Any, gradient: Any) -> Array:
    """xs as an array, or a ValueError that says which of the arguments of `unroll` is wrong."""
    if not isinstance(cell, Cell):
        raise bad("cell", "a Cell", cell, "make one by jb.elman(input_size, hidden_size) or jb.make_cell")
    if not isinstance(gradient, GradientMethod):
        raise bad("gradient", "a gradient method", gradient, "pass jb.full() or jb.autodiff()")
    check_like("params", params, _params_of(cell), "make them by cell.init(key)")
    dtype = params.w_x.dtype
    xs = _check_xs(xs, cell.input_size, dtype)
    zeros = jax.eval_shape(lambda: cell.initial_carry(params, xs.shape[1:-1]))
    check_like("carry", carry, zeros, f"make it by cell.initial_carry(params, {xs.shape[1:-1]})")
    for argument, tree in (("params", params), ("carry", carry)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if leaf.dtype != dtype or not jnp.issubdtype(dtype, jnp.floating):
                name = argument + jax.tree_util.keystr(path)
                raise bad(name, "one floating dtype, that of params.w_x", leaf, f"cast it to {dtype}")
    if gradient != autodiff():
        _check_pointwise(cell, params, carry, xs)
    return xs


def _check_xs(xs: Any, input_size: int, dtype: Any) -> Array:
    shape = f"one array [T, ..., {input_size}]"
    if not isinstance(xs, (jax.Array, np.ndarray)):
        raise bad("xs", shape, xs, "stack the steps; pad sequences of unequal length to one T")
    xs = jnp.asarray(xs)
    if xs.ndim < 2 or xs.shape[-1] != input_size:
        raise bad("xs", shape, xs, "time comes first, features last")
    if 0 in xs.shape:
        raise bad("xs", f"{shape} without empty axes", xs, "give at least one time step and one row")
    if not jnp.issubdtype(xs.dtype, jnp.floating):
        raise bad("xs", f"{dtype} as params", xs, "one-hot encode classes by jax.nn.one_hot, or cast numbers")
    if xs.dtype != dtype:
        raise bad("xs", f"{dtype} as params", xs, f"cast by xs.astype({str(dtype)!r})")
    return xs


def check_like(argument: str, tree: Any, expected: Any, fix: str) -> None:
    """ValueError unless tree has the structure and the shapes of expected."""
    came: Any = jax.tree.structure(tree)
    structure: Any = jax.tree.structure(expected)
    if came != structure:
        raise bad(argument, str(structure), str(came), fix)
    for (path, leaf), wanted in zip(
        jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(expected), strict=True
    ):
        if getattr(leaf, "shape", None) != wanted.shape:
            name = argument + jax.tree_util.keystr(path)
            raise bad(name, f"shape [{','.join(map(str, wanted.shape))}]", leaf, fix)


@functools.lru_cache(maxsize=256)
def _params_of(cell: Cell) -> Any:
    return jax.eval_shape(lambda: cell.init(jax.random.key(0)))


def _check_pointwise(cell: Cell, params: Any, carry: Any, xs: Array) -> None:
    """One abstract step and its adjoint: right shapes, and nothing traced captured from outside."""

    def once(params: Any, s_prev: Any, x: Array) -> Any:
        units = unit_wise(params, x.ndim)
        u, v = input_gates(cell, params, x), recurrent_gates(cell, params, s_prev.h)
        s = cell.step(units, s_prev, u, v)
        check_like("step", s, s_prev, "return the carry type, every leaf shaped like h")
        towards = cell.adjoint(units, cell.linearise(units, s_prev, u, v, s), s)
        wanted = s_prev, u, v, dict.fromkeys(units, s_prev.h)
        check_like("adjoint", tuple(towards), wanted, "return a StepCotangent of such arrays")
        return towards

    x = jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype)
    shapes = jax.tree.map(lambda z: jax.ShapeDtypeStruct(z.shape, z.dtype), (params, carry))
    trace = jax.make_jaxpr(once)(*shapes, x)
    captured = [c for c in trace.consts if isinstance(c, jax.core.Tracer)]
    if captured:
        fix = "make values that change or are differentiated a part of params (cell.init)"
        raise bad(
            "cell", "functions of their arguments alone", f"a captured tracer {describe(captured[0])}", fix
        )

"""The checks of what a sequence is run with: at trace time, before anything is computed."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_bptt.cell import Cell, StepCotangent
from jax_bptt.errors import bad, describe
from jax_bptt.gradients.autodiff import autodiff
from jax_bptt.gradients.method import GradientMethod
from jax_bptt.sweep import input_gates, recurrent_gates, unit_wise


def check_unroll(cell: Any, params: Any, carry: Any, xs: Any, gradient: Any) -> tuple[Any, Any, Array]:
    """params, carry and xs of `unroll` as arrays, or a ValueError that says which argument is wrong."""
    if not isinstance(cell, Cell):
        raise bad("cell", "a Cell", cell, "make one by jb.elman(input_size, hidden_size) or jb.make_cell")
    check_method(gradient)
    params, carry, xs = check_inputs("cell", cell, parameter_shapes(cell), cell.input_size, params, carry, xs)
    check_steps(gradient, [cell], [params], [carry])
    return params, carry, xs


def check_inputs(
    name: str, owner: Any, shapes: Any, input_size: int, params: Any, carry: Any, xs: Any
) -> tuple[Any, Any, Array]:
    """params, carry and xs as arrays that fit each other and their owner, a cell or a network."""
    params, carry = as_arrays((params, carry))
    dtype = check_params(params, shapes, f"make them by {name}.init(key)")
    xs = check_xs(xs, input_size, dtype)
    rows = xs.shape[1:-1]
    zeros = jax.eval_shape(lambda: owner.initial_carry(params, rows))
    check_like("carry", carry, zeros, dtype, f"make it by {name}.initial_carry(params, {rows})")
    return params, carry, xs


def check_method(gradient: Any) -> None:
    """ValueError unless gradient is a gradient method."""
    if not isinstance(gradient, GradientMethod):
        raise bad("gradient", "a gradient method", gradient, "pass jb.full() or jb.autodiff()")


def check_params(params: Any, shapes: Any, fix: str) -> Any:
    """The one floating dtype of params, which have these shapes."""
    dtype = getattr(next(iter(jax.tree.leaves(params)), None), "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise bad("params", f"floating arrays {describe(shapes)}", params, fix)
    check_like("params", params, shapes, dtype, fix)
    return dtype


def check_xs(xs: Any, input_size: int, dtype: Any) -> Array:
    """xs as one array [T, ..., I] of this dtype, without empty axes."""
    shape = f"one array [T, ..., {input_size}]"
    if not isinstance(xs, (jax.Array, np.ndarray)):
        raise bad("xs", shape, xs, "stack the steps; pad sequences of unequal length to one T")
    if not jnp.issubdtype(xs.dtype, jnp.floating):
        raise bad("xs", f"{dtype} as params", xs, "one-hot encode classes by jax.nn.one_hot, or cast numbers")
    xs = jnp.asarray(xs)
    if xs.ndim < 2 or xs.shape[-1] != input_size:
        raise bad("xs", shape, xs, "time comes first, features last")
    if 0 in xs.shape:
        raise bad("xs", f"{shape} without empty axes", xs, "give at least one time step and one row")
    if xs.dtype != dtype:
        raise bad("xs", f"{dtype} as params", xs, f"cast by xs.astype({str(dtype)!r})")
    return xs


def check_like(argument: str, tree: Any, expected: Any, dtype: Any, fix: str) -> None:
    """ValueError unless tree is like expected in structure and shapes, and of this dtype if not None."""
    came: Any = jax.tree.structure(tree)
    structure: Any = jax.tree.structure(expected)
    if came != structure:
        raise bad(argument, describe(expected), tree, fix)
    for (path, leaf), wanted in zip(
        jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(expected), strict=True
    ):
        name = argument + jax.tree_util.keystr(path)
        if getattr(leaf, "shape", None) != wanted.shape:
            raise bad(name, f"shape [{','.join(map(str, wanted.shape))}]", leaf, fix)
        if dtype is not None and leaf.dtype != dtype:
            raise bad(name, f"{dtype}, one dtype throughout", leaf, f"cast it by astype({str(dtype)!r})")


@functools.lru_cache(maxsize=256)
def parameter_shapes(cell: Cell) -> Any:
    """What cell.init makes, as shapes; ValueError unless the engine knows what each parameter is for."""
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0)))
    names, wide = getattr(params, "_fields", ()), cell.gates * cell.hidden_size
    if not {"w_x", "w_h", "b"} <= set(names):
        raise bad("init", "a NamedTuple with w_x, w_h, b", params, "return jb.Params or one with more fields")
    layout = {"w_x": (cell.input_size, wide), "w_h": (cell.hidden_size, wide), "b": (wide,), "b_h": (wide,)}
    for name, p in zip(names, params, strict=True):
        wanted = layout.get(name, (cell.hidden_size,))
        if getattr(p, "shape", None) != wanted:
            shape = f"shape [{','.join(map(str, wanted))}]"
            raise bad(
                f"init: {name}", shape, p, "beside w_x, w_h, b, b_h, parameters have one number per unit"
            )
    return params


def check_steps(gradient: GradientMethod, cells: Any, params: Any, carries: Any) -> None:
    """`check_step` of every layer, but for autodiff, to which any step is welcome."""
    if gradient != autodiff():
        for cell, p, s_0 in zip(cells, params, carries, strict=True):
            check_step(cell, p, s_0)


def check_step(cell: Cell, params: Any, carry: Any) -> None:
    """One abstract step and its adjoint: right shapes, and nothing traced captured from outside."""
    dtype = carry.h.dtype

    def once(params: Any, s_prev: Any, x: Array) -> Any:
        units = unit_wise(params, x.ndim)
        u, v = input_gates(cell, params, x), recurrent_gates(cell, params, s_prev.h)
        s = cell.step(units, s_prev, u, v)
        check_like("step", s, s_prev, dtype, "return the carry type, every leaf like h")
        towards = cell.adjoint(units, cell.linearise(units, s_prev, u, v, s), s)
        wanted = StepCotangent(s_prev, u, v, dict.fromkeys(units, s_prev.h))
        check_like("adjoint", towards, wanted, dtype, "return a StepCotangent, every leaf like h")
        return towards

    x = jax.ShapeDtypeStruct((*carry.h.shape[:-1], cell.input_size), dtype)
    shapes = jax.tree.map(lambda z: jax.ShapeDtypeStruct(z.shape, z.dtype), (params, carry))
    captured = [c for c in jax.make_jaxpr(once)(*shapes, x).consts if isinstance(c, jax.core.Tracer)]
    if captured:
        fix = "make values that change or are differentiated a part of params (cell.init)"
        raise bad(
            "cell", "functions of their arguments alone", f"a captured tracer {describe(captured[0])}", fix
        )


def as_arrays(tree: Any) -> Any:
    """NumPy arrays as JAX arrays, in JAX's precision; everything else as it is."""
    return jax.tree.map(lambda z: jnp.asarray(z) if isinstance(z, np.ndarray) else z, tree)

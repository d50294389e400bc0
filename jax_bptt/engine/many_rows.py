"""A product of few rows is computed as one of many rows, so that one step has the numbers of a sequence.

    f(x)[r] = f([x; x_B, x_B, ..])[r],   r = 1..B                                             (MR1)

A sequence computes x_t W_x of all t at once: T·B rows. For few rows XLA has other kernels, which add in
another order, so that the product of B rows alone would differ from the same rows in the sequence by
rounding. From `many` rows on, the result of a row does not depend on the number of rows. See
experiments/MEASURED.md, "One step and the sequence".
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.checks import is_known
from jax_bptt.base.types import ArrayTree
from jax_bptt.engine.sequence import Unencoded

Rows: TypeAlias = Array | Unencoded  # x [..., I], or inputs of an encoder, leaves [..., *]
RowWise: TypeAlias = Callable[[Any, Any], Any]  # (params, x [n, I]) -> leaves [n, ...], row by row


def many(input_size: int) -> int:
    """From this many rows on, a product with x [..., I] on a CPU does not depend on the number of rows."""
    return 64 if input_size >= 8 else 96


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def as_of_many_rows(f: RowWise, params: ArrayTree, x: Rows) -> Any:
    """The function f is computed as if x had many rows; its derivative is that of the rows of x alone.

    Args:
      f: a function of params and rows, row by row.
      params: its params.
      x: [..., I]; or inputs of an encoder, which then get one leading axis of rows, too.

    Returns:
      f(params, x), leaves [..., n].
    """
    run = jax.custom_batching.custom_vmap(functools.partial(_of_rows, f))

    # the rows over which jax.vmap maps count, too: if they are many, no row is added
    @run.def_vmap
    def mapped(size: int, is_mapped: list[Any], params: ArrayTree, x: Rows) -> tuple[Any, Any]:
        of_params, of_x = is_mapped
        if all(jax.tree.leaves(of_x)) and isinstance(x, jax.Array) and not any(jax.tree.leaves(of_params)):
            out = as_of_many_rows(f, params, x)
        else:
            axes = jax.tree.map(lambda is_mapped: 0 if is_mapped else None, is_mapped)
            out = jax.vmap(functools.partial(_of_rows, f), axes, axis_size=size)(params, x)
        return out, jax.tree.map(lambda _: True, out)

    return run(params, x)


@as_of_many_rows.defjvp
def _derivative(f: RowWise, primals: tuple[Any, Rows], tangents: tuple[Any, Rows]) -> tuple[Any, Any]:
    return as_of_many_rows(f, *primals), jax.jvp(f, primals, tangents)[1]


def _of_rows(f: RowWise, params: ArrayTree, x: Rows) -> Any:
    rows = x.shape[:-1]
    n, enough = math.prod(rows), many(x.shape[-1])
    if isinstance(x, Unencoded):
        x = dataclasses.replace(x, batch_axes=0)
    flat = jax.tree.map(lambda z: z.reshape(n, *z.shape[len(rows) :]), x)
    if is_known(n) and 0 < n < enough:  # where jax.export leaves the number open, it may be any
        flat = jax.tree.map(lambda z: z[jnp.minimum(jnp.arange(enough), n - 1)], flat)  # (MR1)
    # the barriers stop XLA from taking the rows apart again, and from merging f with what follows
    out = jax.lax.optimization_barrier(f(params, jax.lax.optimization_barrier(flat)))
    return jax.tree.map(lambda z: z[:n].reshape(*rows, *z.shape[1:]), out)

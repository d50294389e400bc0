"""A long sequence is processed in chunks of K steps, so that intermediate arrays exist for K steps only.

    steps 1..T  =  chunks of K, K, .., K and the T mod K steps that are left                 (CH1)

The last, shorter chunk is a second copy of the same program, outside the loop, so no step is dropped and
none is padded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.checks import is_known
from jax_bptt.base.errors import bad
from jax_bptt.base.trees import num_parameters, wide
from jax_bptt.base.types import ArrayTree, Shape, Tree
from jax_bptt.engine.run import Run

First: TypeAlias = int | Array  # the number of a chunk's first step; traced inside a loop over chunks
_Carry = TypeVar("_Carry")
_Data = TypeVar("_Data")


def scan(
    f: Callable[[_Carry, First, _Data], tuple[_Carry, Any]],
    carry: _Carry,
    data: _Data,
    chunk: int,
    *,
    reverse: bool = False,
    begin: int = 0,
    end: int | None = None,
) -> tuple[_Carry, Any]:
    """This is jax.lax.scan over chunks of the steps from begin to end.

    Args:
      f: (carry, number of the chunk's first step, data of the chunk) -> (carry, outputs). The leaves of
        outputs are [K, ...], one entry for each step of the chunk, or [1, ...], one for the chunk.
      carry: the carry of the first call of f.
      data: leaves [T, ...].
      chunk: K.
      reverse: whether to go from the last chunk to the first.
      begin, end: the first step that is taken, and the one after the last, counted from 0; None for the
        end of data.

    Returns:
      The last carry, and the outputs of these steps, leaves [end - begin, ...], or of their chunks.
    """
    end = length(data) if end is None else end
    # one chunk of all steps needs no division, so the number of steps may be unknown
    full_chunks, left = (1, 0) if chunk == end - begin else divmod(fixed(end) - begin, chunk)  # (CH1)

    def at(carry: _Carry, first: First) -> tuple[_Carry, Any]:
        return f(carry, first, take_steps(data, first, chunk))

    def in_loop(carry: _Carry) -> tuple[_Carry, Any]:
        if full_chunks == 1:  # one chunk needs no loop, and its first step is a Python int
            return at(carry, begin)
        carry, outputs = jax.lax.scan(at, carry, begin + chunk * jnp.arange(full_chunks), reverse=reverse)
        return carry, jax.tree.map(lambda z: jax.lax.collapse(z, 0, 2), outputs)

    def at_end(carry: _Carry) -> tuple[_Carry, Any]:
        return f(carry, end - left, take_steps(data, end - left, left))

    if full_chunks == 0 or left == 0:
        return at_end(carry) if full_chunks == 0 else in_loop(carry)
    if reverse:  # the short chunk is the last in time, so a reverse scan begins with it
        carry, last = at_end(carry)
        carry, outputs = in_loop(carry)
    else:
        carry, outputs = in_loop(carry)
        carry, last = at_end(carry)
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), outputs, last)


def zero_sums(like: Tree) -> Tree:
    """Sums over chunks start from these zeros, in float32 at least, so that no small term is lost."""
    return jax.tree.map(lambda z: jnp.zeros_like(z, dtype=wide(z.dtype)), like)


def add_to(sums: Tree, parts: Tree) -> Tree:
    """The parts are added to the sums, in the precision of the sums."""
    return jax.tree.map(lambda so_far, z: so_far + z.astype(so_far.dtype), sums, parts)


def sums_as(sums: Tree, like: Tree) -> Tree:
    """The sums are cast to the dtypes of another tree."""
    return jax.tree.map(lambda sum_, z: sum_.astype(z.dtype), sums, like)


def take_steps(data: Tree, first: First, steps: int) -> Tree:
    """The result is some steps of arrays [T, ...]: leaves [steps, ...]."""
    return jax.tree.map(lambda z: jax.lax.dynamic_slice_in_dim(z, first, steps), data)


def length(data: ArrayTree) -> int:
    """The result is T of arrays [T, ...]."""
    first: Array = jax.tree.leaves(data)[0]
    return first.shape[0]


def chunk_of(steps: int, rows: int, weights: ArrayTree) -> int:
    """If the user does not choose K, a chunk has as many steps as make a matrix product of 512 to 2048 rows.

    K B = T B / 4, but from 512 to 1024; T B if that is at most 1024
    512 for 1 million weights and more, 2048 for 4 million; and a divisor of T if there is one from K/2 to K

    With fewer rows the products of a chunk are slow, and dE/dW is read and written too often, above all
    where it is larger than the caches (32 MiB). With more rows the arrays of a chunk do not fit the caches,
    and for a short sequence chunks would save no memory. See experiments/MEASURED.md, "Steps in a chunk".
    """
    numbers = num_parameters(weights)
    if not is_known(steps):
        return steps
    rows_of_chunk = 1024 if steps * rows <= 1024 else min(max(steps * rows // 4, 512), 1024)
    if numbers >= 1e6:
        rows_of_chunk = 2048 if numbers >= 4e6 else 512
    return divisor_up_to(at_most(rows_of_chunk // rows, steps), steps)


def at_most(longest: int, steps: int) -> int:
    """K is 1 to `longest` steps, not more than T; it is T where T is unknown: one chunk needs no divisor."""
    return min(max(1, longest), steps) if is_known(steps) else steps


def chunk_of_run(run: Run) -> int:
    """This is `chunk_of` for a run; 256 numbers in the carry of a scan's body count as a row."""
    of_body = isinstance(run.sequence.xs, tuple)
    rows = max(1, num_parameters(run.carry) // 256) if of_body else rows_of_a_step(run.sequence.rows)
    return chunk_of(run.sequence.steps, rows, run.params)


def steps_at_once(numbers: int, of_a_row: int, rows: Shape, steps: int) -> int:
    """This is how many of T steps have so many numbers together, if each row has so many of them."""
    return at_most(numbers // max(1, rows_of_a_step(rows) * of_a_row), steps)


def rows_of_a_step(rows: Shape) -> int:
    """This many rows are in a step, at least 1; an axis of unknown length counts as 32 rows."""
    return max(1, math.prod(n if is_known(n) else 32 for n in rows))


def fixed(steps: int) -> int:
    """T is returned if it is a number. Where jax.export leaves it open, a ValueError is raised."""
    if not is_known(steps):
        fix = "export with a fixed number of steps, or use gradient=jb.full()"
        raise bad("xs", "a fixed number of steps for this gradient method", f"T = {steps}", fix)
    return steps


def divisor_up_to(longest: int, steps: int) -> int:
    """This is a divisor of T from longest/2 to longest, the largest one; longest itself if there is none.

    A divisor of T leaves no shorter chunk, so the program needs no second copy.

    >>> divisor_up_to(11, 128), divisor_up_to(11, 127)
    (8, 11)
    """
    return next((k for k in range(longest, longest // 2, -1) if steps % k == 0), longest)

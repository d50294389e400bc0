"""A long sequence in chunks of K steps, so that what is made of a step need not exist for all at once.

    steps 1..T  =  chunks of K, K, .., K and the T mod K steps that are left                 (CH1)

The last, shorter chunk is a second copy of the same program, outside the loop: no step is dropped and
none is padded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.trees import num_parameters, wide
from jax_bptt.base.types import ArrayTree, Tree
from jax_bptt.engine.sequence import Sequence

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
    """jax.lax.scan over chunks of the steps from begin to end.

    Args:
      f: (carry, number of the chunk's first step, data of the chunk) -> (carry, outputs), the outputs
        leaves [K, ...], one entry for each step of the chunk, or [1, ...], one for the chunk.
      carry: what f begins with.
      data: leaves [T, ...].
      chunk: K.
      reverse: from the last chunk to the first.
      begin, end: of the steps that are taken, counted from 0; None for the end of data.

    Returns:
      The last carry, and the outputs of these steps, leaves [end - begin, ...], or of their chunks.
    """
    end = length(data) if end is None else end
    whole, left = divmod(end - begin, chunk)  # (CH1)

    def at(carry: _Carry, first: First) -> tuple[_Carry, Any]:
        return f(carry, first, take_steps(data, first, chunk))

    def in_loop(carry: _Carry) -> tuple[_Carry, Any]:
        if whole == 1:
            return at(carry, begin)
        carry, outputs = jax.lax.scan(at, carry, begin + chunk * jnp.arange(whole), reverse=reverse)
        return carry, jax.tree.map(lambda z: z.reshape(-1, *z.shape[2:]), outputs)

    def at_end(carry: _Carry) -> tuple[_Carry, Any]:
        return f(carry, end - left, take_steps(data, end - left, left))

    if whole == 0 or left == 0:
        return at_end(carry) if whole == 0 else in_loop(carry)
    if reverse:
        carry, last = at_end(carry)
        carry, outputs = in_loop(carry)
    else:
        carry, outputs = in_loop(carry)
        carry, last = at_end(carry)
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), outputs, last)


def zero_sums(like: Tree) -> Tree:
    """Zeros to add to, one chunk after the other: float32 at least, or many small parts would be lost."""
    return jax.tree.map(lambda z: jnp.zeros_like(z, dtype=wide(z.dtype)), like)


def add_to(sums: Tree, parts: Tree) -> Tree:
    """sums + parts, in the precision of the sums."""
    return jax.tree.map(lambda total, z: total + z.astype(total.dtype), sums, parts)


def sums_as(sums: Tree, like: Tree) -> Tree:
    """The sums in the dtypes of another tree."""
    return jax.tree.map(lambda total, z: total.astype(z.dtype), sums, like)


def take_steps(data: Tree, first: First, steps: int) -> Tree:
    """Some steps of arrays [T, ...]: leaves [steps, ...]."""
    return jax.tree.map(lambda z: jax.lax.dynamic_slice_in_dim(z, first, steps), data)


def length(data: ArrayTree) -> int:
    """T of arrays [T, ...]."""
    first: Array = jax.tree.leaves(data)[0]
    return first.shape[0]


def chunk_of(sequence: Sequence, weights: ArrayTree) -> int:
    """K where the user does not say: as many steps as make a matrix product of 512 to 2048 rows.

    K B = T B / 4, but from 512 to 1024; 512 for 1 million weights and more, 2048 for 4 million;
    and a divisor of T if there is one between K/2 and K

    Fewer rows make the products of a chunk slow, and read and write dE/dW too often for the work
    between, above all where it outgrows the caches (32 MiB); more rows leave the caches themselves, and
    of a short sequence they are all of its memory. Measured on 2 cores in float32, value and gradient,
    ms for K B = 256, 512, 1024, 2048, all, at (T, B, H): LSTM (256, 64, 256) -, 178, 164, 171, 217;
    (1000, 32, 128) -, 118, 112, 123, 163; (4096, 8, 64) 54, 49, -, 41, 78; (96, 64, 512) -, 252, 255,
    270, -, GRU there -, 179, 194, 201, -; (64, 32, 1024) -, 347, 345, 300, 300, Elman there -, 64, 74,
    78, 78.
    """
    steps, batch, numbers = len(sequence.xs), math.prod(sequence.rows), num_parameters(weights)
    at_once = min(max(steps * batch // 4, 512), 1024)
    if numbers >= 1e6:
        at_once = 2048 if numbers >= 4e6 else 512
    longest = min(steps, max(1, at_once // batch))
    return next((k for k in range(longest, longest // 2, -1) if steps % k == 0), longest)

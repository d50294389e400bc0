"""The initial carry of a cell is zeros, or parameters such as h_0 where it is trained (see `learn_carry`)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.checks import as_arrays, check_batch_shape, is_floating
from jax_bptt.base.errors import bad, named
from jax_bptt.base.trees import apart
from jax_bptt.base.types import Foreign, S, Shape

INITIAL = "_0"  # a parameter h_0 is the initial value of the field h of the carry


def initial_of(
    carry_type: Callable[..., S], sizes: int | tuple[int, ...], params: Foreign, batch_shape: Shape
) -> S:
    """Each field of the initial carry, such as h, is the parameter h_0 in every row, or else zeros.

    The fields have one size, or one each.
    """
    named("cell.initial_carry")(check_batch_shape)(batch_shape)
    params = named("cell.initial_carry")(as_arrays)("params", params)
    first: Foreign = next(iter(jax.tree.leaves(params)), None)
    if not is_floating(first):
        raise bad("params", "floating arrays", params, "make them by cell.init(key)")
    fields: tuple[str, ...] = carry_type._fields  # type: ignore[attr-defined]
    by_field = zip(fields, (sizes,) * len(fields) if isinstance(sizes, int) else sizes, strict=True)

    def of_field(field: str, n: int) -> Array:
        s_0 = getattr(params, field + INITIAL, jnp.zeros(n, first.dtype))
        return jnp.broadcast_to(jnp.asarray(s_0), (*batch_shape, n))

    # without a batch axis broadcast_to returns the parameter itself
    return apart(carry_type(*(of_field(*each) for each in by_field)), params)

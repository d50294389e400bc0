"""Arrays in the memory of the host are read and written one entry at a time, also under jax.vmap.

    read      z[.., i, ..]                     the index goes along one axis of z              (HM1)
    write     z with new in place of it                                                        (HM2)
    mapped    the same, one axis further on    the index is the same for all that is mapped    (HM3)

By itself jax.vmap makes a gather of such a read and a scatter of such a write, and JAX has neither for the
memory of the host.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import custom_vmap

from jax_bptt.base.caching import cached
from jax_bptt.gradients.method import differentiated_once


def to_host(z: Array) -> Array:
    """z is moved into the memory of the host."""
    return jax.device_put(z, jax.memory.Space.Host)


def read(z: Array, i: Array) -> Array:
    """The entry z[i] of an array in the memory of the host comes into that of the device."""
    entry: Array = _read_along(0)(z, i)
    return jax.device_put(entry, jax.memory.Space.Device)


def write(z: Array, new: Array, i: Array) -> Array:
    """new, from the memory of the device, takes the place of the entry z[i] in the memory of the host."""
    written: Array = _write_along(0)(z, to_host(new), i)
    return written


# JAX has no derivative for the memory of the host
_of_first_order = functools.partial(
    differentiated_once,
    "a derivative through states in the memory of the host (hessian, grad of grad)",
    "use jb.checkpointed() without host",
)


@cached()
def _read_along(axis: int) -> Callable[..., Any]:
    @custom_vmap
    def read(z: Array, i: Array) -> Array:
        return jax.lax.dynamic_index_in_dim(z, i, axis, keepdims=False)  # (HM1)

    @read.def_vmap
    def _mapped(size: int, is_mapped: list[bool], z: Array, i: Array) -> tuple[Array, bool]:
        return _read_along(axis + 1)(z, i), True  # (HM3)

    return _of_first_order(read)


@cached()
def _write_along(axis: int) -> Callable[..., Any]:
    @custom_vmap
    def write(z: Array, new: Array, i: Array) -> Array:
        return jax.lax.dynamic_update_index_in_dim(z, new, i, axis)  # (HM2)

    @write.def_vmap
    def _mapped(size: int, is_mapped: list[bool], z: Array, new: Array, i: Array) -> tuple[Array, bool]:
        if not is_mapped[0]:
            z = jnp.broadcast_to(z, (size, *z.shape))
        if not is_mapped[1]:
            new = jnp.broadcast_to(new, (size, *new.shape))
        return _write_along(axis + 1)(z, new, i), True  # (HM3)

    return _of_first_order(write)

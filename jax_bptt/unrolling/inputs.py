"""The inputs of a sequence, or of one step, are checked here: arrays, or what an encoder reads."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.checks import as_arrays, is_array
from jax_bptt.base.errors import bad
from jax_bptt.base.types import DType, Foreign
from jax_bptt.engine.sequence import Unencoded


class Sizes(NamedTuple):
    """These are the sizes that the arguments of a cell or a network must have.

    Attributes:
      params: the shapes of the parameters.
      input_size: I, of the first cell.
      encoder: the encoder, which reads the inputs of a network; None where they are x_t itself.
    """

    params: Any
    input_size: int
    encoder: Any = None  # an AnyEncoder; this folder may not import that type

    def read(
        self, name: str, params: Foreign, xs: Foreign, dtype: DType, batch_axes: int | None
    ) -> Array | Unencoded:
        """The inputs xs are returned as arrays; batch_axes is how many there are, if that is known."""
        if self.encoder is None:
            return check_xs(xs, self.input_size, dtype)
        x_t = jax.ShapeDtypeStruct((self.input_size,), dtype)
        found: Unencoded = self.encoder.read(name, params.encoder, as_arrays(name, xs), x_t, batch_axes)
        if found.shape[0] == 0:
            raise bad(name, "T >= 1 steps", xs, "give at least one time step")
        return found

    @property
    def axes(self) -> str:
        """This is how the axes of the inputs are written."""
        return "[T, *batch, ...]" if self.encoder is not None else f"[T, *batch, {self.input_size}]"


def known_batch_axes(carry: Foreign, marks: list[tuple[Foreign, int]]) -> int | None:
    """How many batch axes do a mark or a carry have? A mark comes with its number of other axes."""
    paths: list[Any] = jax.tree_util.tree_leaves_with_path(carry)
    states = [(z, 1) for path, z in paths if path and getattr(path[-1], "name", None) == "h"]
    return next((z.ndim - others for z, others in (*marks, *states) if is_array(z)), None)


def check_xs(xs: Foreign, input_size: int, dtype: DType) -> Array:
    """xs must be one array [T, ..., I] of this dtype with T >= 1; it may have no rows."""
    shape = f"one array [T, ..., {input_size}]"
    xs = as_arrays("xs", xs)
    if not is_array(xs):
        raise bad("xs", shape, xs, "stack the steps; pad sequences of unequal length to one T")
    if not jnp.issubdtype(xs.dtype, jnp.floating):
        fix = "cast numbers; for classes give the network a jb.embedding, or take jax.nn.one_hot"
        raise bad("xs", f"{dtype} as params", xs, fix)
    if xs.ndim < 2 or xs.shape[-1] != input_size:
        raise bad("xs", shape, xs, "time comes first, features last")
    if xs.shape[0] == 0:  # for len, T must be a number
        raise bad("xs", f"{shape} with T >= 1", xs, "give at least one time step")
    if xs.dtype != dtype:
        raise bad("xs", f"{dtype} as params", xs, f"cast by xs.astype({str(dtype)!r})")
    found: Array = xs
    return found


def check_x(x: Foreign, input_size: int, dtype: DType) -> Array:
    """x must be one step of a sequence, [..., I] of this dtype."""
    if not is_array(x) or x.ndim < 1 or x.shape[-1] != input_size:
        raise bad("x", f"one step [..., {input_size}]", x, "pass a single step, features last")
    if x.dtype != dtype:
        raise bad("x", f"{dtype} as params", x, f"cast by x.astype({str(dtype)!r})")
    found: Array = x
    return found

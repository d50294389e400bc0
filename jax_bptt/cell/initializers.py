"""Initial values decide how large a gradient is before training begins.

    w_x     Var = 1/I, a truncated normal: u_t has the variance of x_t                    (I1)
    w_h     orthogonal: ‖h W_h‖ = ‖h‖, so that W_h alone makes no gradient vanish        (I2)
            identity: a ReLU network that begins as a sum over its inputs                (I3)
    b_f     chrono: log U(1, T_max − 1), so that σ(b_f) forgets over 1 to T_max steps     (I4)
            b_i = −b_f                                                                    (I5)
    b       zero otherwise

An initialiser is any hashable function (key, shape, dtype) -> array; those of jax.nn.initializers work too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import integer, is_function, number
from jax_bptt.base.errors import bad, running
from jax_bptt.base.types import DType, PRNGKey, Shape

Initializer = Callable[[PRNGKey, Shape, DType], Array]


def _gain(argument: str, value: object) -> float:
    return number(argument, "a finite number", value)


@dataclasses.dataclass(frozen=True, repr=False)
class Orthogonal:
    """An orthogonal matrix times a gain; made by `orthogonal`."""

    gain: float

    def __call__(self, key: PRNGKey, shape: Shape, dtype: DType) -> Array:
        """W, of this shape and dtype."""
        return jax.nn.initializers.orthogonal(self.gain)(key, shape, dtype)  # (I2)

    def __repr__(self) -> str:
        return "orthogonal()" if self.gain == 1 else f"orthogonal({self.gain})"


@dataclasses.dataclass(frozen=True, repr=False)
class Identity:
    """The identity times a gain; made by `identity`."""

    gain: float

    def __call__(self, key: PRNGKey, shape: Shape, dtype: DType) -> Array:
        """W, of this shape and dtype."""
        return self.gain * jnp.eye(shape[0], shape[1], dtype=dtype)  # (I3)

    def __repr__(self) -> str:
        return "identity()" if self.gain == 1 else f"identity({self.gain})"


@cached(gain=_gain)
def orthogonal(gain: float = 1.0) -> Initializer:
    """`orthogonal` draws an orthogonal matrix and multiplies it by a gain.

    W = gain · Q,   Qᵀ Q = 1   (I2)

    Args:
      gain: every singular value of W; with 1, W itself neither shrinks nor enlarges a gradient.

    Returns:
      The initialiser; the same object for the same gain.

    Raises:
      ValueError: a gain that is not a finite number.

    Reference: Saxe et al. 2014.
    """
    return Orthogonal(gain)


@cached(gain=_gain)
def identity(gain: float = 1.0) -> Initializer:
    """`identity` makes the identity matrix and multiplies it by a gain.

    W = gain · 1   (I3)

    Args:
      gain: every eigenvalue of W.

    Returns:
      The initialiser; the same object for the same gain.

    Raises:
      ValueError: a gain that is not a finite number.

    Reference: Le, Jaitly & Hinton 2015 (IRNN).
    """
    return Identity(gain)


class Chrono(NamedTuple):
    """This draws forget-gate biases for time scales from 1 to `longest` steps; `chrono` makes it."""

    longest: int

    def __call__(self, key: PRNGKey, units: int, dtype: DType) -> Array:
        """The result is b_f, [units]; the opposite gate gets −b_f."""
        return jnp.log(jax.random.uniform(key, (units,), dtype, 1, self.longest - 1))  # (I4)

    def __repr__(self) -> str:
        return f"chrono({self.longest})"


def _longest(argument: str, value: object) -> int:
    return integer(argument, value, 3, 2**31 - 1)


@cached(longest=_longest)
def chrono(longest: int) -> Chrono:
    """`chrono` sets the biases of the gates from the time scales of a task.

    b_f = log U(1, T_max − 1),   b_i = −b_f   (I4, I5)

    Args:
      longest: T_max, the longest memory that the task needs, in steps; at least 3.

    Returns:
      A value for `lstm(forget_bias=...)` or `gru(update_bias=...)`.

    Raises:
      ValueError: a T_max that is not an integer of at least 3.

    Reference: Tallec & Ollivier 2018, Can recurrent neural networks warp time?, section 2.
    """
    return Chrono(longest)


def gate_biases(
    key: PRNGKey, bias: float | Chrono, keeps: int, opposes: int | None, b: Array, units: int
) -> Array:
    """In b the block of gate `keeps` becomes the bias; under chrono that of `opposes` becomes minus it."""
    blocks = b.reshape(-1, units)
    if isinstance(bias, Chrono):
        b_f = bias(key, units, b.dtype)
        if opposes is not None:
            blocks = blocks.at[opposes].set(-b_f)  # (I5)
        return blocks.at[keeps].set(b_f).reshape(-1)
    return blocks.at[keeps].set(jnp.asarray(bias, b.dtype)).reshape(-1)


def gate_bias(argument: str, value: object) -> float | Chrono:
    """The bias of a gate must be a finite number or a `Chrono`, or a ValueError is raised."""
    return value if isinstance(value, Chrono) else number(argument, "a finite number", value)


def check_gate_bias(argument: str, value: float | Chrono, default: float, bias: bool) -> None:
    """The bias of a gate must be left at its default in a cell without biases, or a ValueError is raised."""
    if not bias and value != default:
        fix = f"a cell without biases has none to set, so leave out {argument} or bias=False"
        raise bad(argument, f"its default {default}, as bias=False", value, fix)


def check_initializer(argument: str, init: object) -> None:
    """An initialiser must be a hashable function, or a ValueError is raised."""
    if not is_function(init):
        fix = "pass jb.orthogonal(), jb.identity() or (key, shape, dtype) -> array"
        raise bad(argument, "a hashable initialiser", init, fix)


def matrices(
    key: PRNGKey,
    inputs: int,
    units: int,
    gates: int,
    recurrent: Initializer,
    heads: int = 1,
    outputs: int | None = None,
) -> tuple[Array, Array]:
    """The results are w_x [I, G*H] and w_h: [H, G*H], [n, H/n, G*H/n] of n > 1 heads, or [outputs, G*H]."""
    dtype = jnp.result_type(float)
    key_x, *keys_h = jax.random.split(key, 1 + heads * gates)
    w_x = jax.nn.initializers.lecun_normal()(key_x, (inputs, gates * units), dtype)  # (I1)
    shape = (outputs or units) // heads, units // heads
    # one block for each gate: a single wide matrix would not make every block orthogonal
    with running("recurrent"):
        blocks = [jnp.asarray(recurrent(k, shape, dtype)) for k in keys_h]
    for block in blocks:
        if (block.shape, block.dtype) != (shape, dtype):
            wanted = f"{dtype}[{shape[0]},{shape[1]}]"
            raise bad("recurrent", wanted, block, "return an array of the shape and dtype")
    of_heads = [jnp.concatenate(blocks[k : k + gates], axis=1) for k in range(0, len(blocks), gates)]
    return w_x, of_heads[0] if heads == 1 else jnp.stack(of_heads)

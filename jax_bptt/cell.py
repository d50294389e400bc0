"""What a recurrent cell is: two linear maps, which the engine owns, and a pointwise step.

    u_t = x_t W_x + b              one array per gate, each shaped like h
    v_t = h_{t−1} W_h (+ b_h)      one array per gate, each shaped like h
    s_t = step(s_{t−1}, u_t, v_t)  pointwise over units; h_t is a part of s_t

A cell knows its step and the adjoint of that step. It knows nothing about time, batches, layout or
gradients of matrices: those are in `sweep`. Its adjoint comes in two parts, so that the engine can do
the first for all time steps at once and only the second, which is linear in λ, inside the loop:

    a_t = linearise(s_{t−1}, u_t, v_t, s_t)            what the derivative of step needs, as arrays
    (∂s_t/∂(s_{t−1}, u_t, v_t, p))ᵀ λ_t = adjoint(a_t, λ_t)

p are the unit-wise parameters (a leak rate, a peephole): one number per unit, shape [H].
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.errors import bad

Gates = tuple[Array, ...]  # G arrays, one per gate, each shaped like h
Units = dict[str, Array]  # unit-wise parameters by name, shaped to broadcast against h


class Params(NamedTuple):
    """Parameters of a cell without extras; gate g owns columns gH to (g+1)H.

    Attributes:
      w_x: [I, G*H], input weights (the article's W_x).
      w_h: [H, G*H], recurrent weights (the article's W_s).
      b: [G*H], bias.
    """

    w_x: Array
    w_h: Array
    b: Array


class Carry(NamedTuple):
    """The state of a cell that remembers only what it emits (the article's S_t).

    Attributes:
      h: [..., H].
    """

    h: Array


class StepCotangent(NamedTuple):
    """(∂s_t/∂·)ᵀ λ_t for everything the step reads.

    Attributes:
      carry: towards s_{t−1}, without the way through v; shaped like the carry.
      u: towards u_t, G arrays shaped like h.
      v: towards v_t, G arrays shaped like h.
      units: towards p, by name, shaped like h (the engine sums over time and batch).
    """

    carry: Any
    u: Gates
    v: Gates
    units: Units


class Cell(NamedTuple):
    """A recurrent cell: sizes and pure functions, nothing else.

    Attributes:
      input_size: I, length of x_t.
      hidden_size: H, length of h_t.
      gates: G, blocks of W_x and W_h.
      step: (units, s_prev, u, v) -> s, pointwise.
      linearise: (units, s_prev, u, v, s) -> a, the derivative of the step, pointwise.
      adjoint: (units, a, lam) -> StepCotangent, pointwise and linear in lam.
      init: key -> params, a NamedTuple with w_x, w_h, b, perhaps b_h [G*H] and unit-wise [H] leaves.
      initial_carry: (params, batch_shape) -> carry of zeros, leaves [*batch_shape, H].
    """

    input_size: int
    hidden_size: int
    gates: int
    step: Callable[[Units, Any, Gates, Gates], Any]
    linearise: Callable[[Units, Any, Gates, Gates, Any], Any]
    adjoint: Callable[[Units, Any, Any], StepCotangent]
    init: Callable[[Array], Any]
    initial_carry: Callable[[Any, tuple[int, ...]], Any]

    def __repr__(self) -> str:
        return f"Cell(input_size={self.input_size}, hidden_size={self.hidden_size}, gates={self.gates})"


def make_cell(
    input_size: int,
    hidden_size: int,
    step: Callable[[Units, Any, Gates, Gates], Any],
    *,
    gates: int = 1,
    carry_type: Any = Carry,
    init: Callable[[Array], Any] | None = None,
    linearise: Callable[[Units, Any, Gates, Gates, Any], Any] | None = None,
    adjoint: Callable[[Units, Any, Any], StepCotangent] | None = None,
) -> Cell:
    """A cell from its pointwise step; every gradient method then works with it.

    s_t = step(units, s_{t−1}, x_t W_x + b, h_{t−1} W_h (+ b_h))

    Args:
      input_size: I.
      hidden_size: H.
      step: (units, s_prev, u, v) -> s, pointwise, a function of its arguments and of constants made
        outside jit; u and v are tuples of `gates` arrays shaped like
        h, units holds the parameters other than w_x, w_h, b, b_h, shaped to broadcast against h.
      gates: G.
      carry_type: NamedTuple class of the state, with a field h.
      init: key -> params, in JAX (it is traced for its shapes); None for `init_params`, which has no
        unit-wise parameters.
      linearise, adjoint: the hand-derived derivative (see `Cell`), both or neither; where they are
        None, jax.vjp of one step takes their place.

    Returns:
      The `Cell`; the same object for the same arguments.

    Raises:
      ValueError: a size below 1, a carry type without h, or one of linearise and adjoint alone.

    >>> leaky = lambda units, s_prev, u, v: Carry(0.9 * s_prev.h + 0.1 * jnp.tanh(u[0] + v[0]))
    >>> make_cell(3, 5, leaky)
    Cell(input_size=3, hidden_size=5, gates=1)
    """
    optional = {"init": init, "linearise": linearise, "adjoint": adjoint}
    for name, f in {"step": step, **{k: v for k, v in optional.items() if v is not None}}.items():
        if not (callable(f) and isinstance(f, Hashable)):
            raise bad(name, "a hashable function", f, "see jb.Cell for what it takes and returns")
    if not isinstance(carry_type, type) or "h" not in getattr(carry_type, "_fields", ()):
        raise bad("carry_type", "a NamedTuple class with a field h", carry_type, "name what the cell emits h")
    if (linearise is None) != (adjoint is None):
        lone = "adjoint alone" if linearise is None else "linearise alone"
        raise bad("linearise, adjoint", "both or neither", lone, "leave both out to have jax.vjp do it")
    sizes = size("input_size", input_size), size("hidden_size", hidden_size), size("gates", gates)
    return _make_cell(*sizes, step, carry_type, init, linearise, adjoint)


@functools.lru_cache(maxsize=256)
def _make_cell(
    input_size: int,
    hidden_size: int,
    gates: int,
    step: Any,
    carry_type: Any,
    init: Any,
    linearise: Any,
    adjoint: Any,
) -> Cell:
    def initial_carry(params: Any, batch_shape: tuple[int, ...]) -> Any:
        check_batch_shape(batch_shape)
        return carry_type(
            *(jnp.zeros((*batch_shape, hidden_size), jnp.result_type(params.w_h)) for _ in carry_type._fields)
        )

    if init is None:
        init = functools.partial(init_params, input_size=input_size, hidden_size=hidden_size, gates=gates)
    if adjoint is None:
        linearise, adjoint = keep_point, functools.partial(vjp_of_step, step)
    return Cell(input_size, hidden_size, gates, step, linearise, adjoint, init, initial_carry)


def init_params(key: Array, input_size: int, hidden_size: int, gates: int) -> Params:
    """Lecun-normal input weights, one orthogonal recurrent block per gate, zero bias.

    Var W_x = 1/I, a truncated normal;  W_hᵀ W_h = 1 per gate, so that no gradient grows or shrinks by
    W_h alone;  b = 0

    Args:
      key: a key from jax.random.key.
      input_size: I.
      hidden_size: H.
      gates: G.

    Returns:
      `Params` in the default float dtype.

    Raises:
      ValueError: a key that is none.

    Reference: Saxe et al. 2014 (orthogonal initial weights).

    >>> init_params(jax.random.key(0), 3, 5, gates=4).w_h.shape
    (5, 20)
    """
    check_key(key)
    dtype = jnp.result_type(float)
    key_x, *keys_h = jax.random.split(key, 1 + gates)
    orthogonal = jax.nn.initializers.orthogonal()
    w_x = jax.nn.initializers.lecun_normal()(key_x, (input_size, gates * hidden_size), dtype)
    w_h = jnp.concatenate([orthogonal(k, (hidden_size, hidden_size), dtype) for k in keys_h], axis=1)
    return Params(w_x, w_h, jnp.zeros(gates * hidden_size, dtype))


def keep_point(units: Units, s_prev: Any, u: Gates, v: Gates, s: Any) -> Any:
    """The linearise of a cell without a hand-derived adjoint: the point at which to differentiate."""
    return s_prev, u, v


def vjp_of_step(step: Any, units: Units, point: Any, lam: Any) -> StepCotangent:
    """The adjoint of a cell without a hand-derived one: jax.vjp of a single step, at any point."""
    s_prev, u, v = point
    spread = {name: jnp.broadcast_to(p, lam.h.shape) for name, p in units.items()}
    d_units, d_carry, d_u, d_v = jax.vjp(step, spread, s_prev, u, v)[1](lam)
    return StepCotangent(d_carry, d_u, d_v, d_units)


def size(argument: str, value: Any) -> int:
    """A size argument as a Python int of at least 1, or a ValueError that names it."""
    try:
        number = operator.index(value)
    except TypeError:
        raise bad(argument, "an integer >= 1", value, "sizes are Python integers") from None
    if number < 1 or isinstance(value, bool):
        raise bad(argument, "an integer >= 1", value, "sizes count units or rows")
    return number


def check_key(key: Any) -> None:
    """ValueError unless key is a PRNG key, of jax.random.key or the older raw kind."""
    dtype = getattr(key, "dtype", None)
    if dtype is None or not (jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == jnp.uint32):
        raise bad("key", "a PRNG key", key, "make one by jax.random.key(seed)")


def check_batch_shape(batch_shape: Any) -> None:
    """ValueError unless batch_shape is a tuple of positive ints."""
    if not isinstance(batch_shape, tuple):
        raise bad(
            "batch_shape", "a tuple such as (32,), or () for no batch axis", batch_shape, "wrap it in a tuple"
        )
    for n in batch_shape:
        size("batch_shape", n)

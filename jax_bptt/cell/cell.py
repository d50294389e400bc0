"""What a recurrent cell is: two linear maps, which the engine owns, and a pointwise step.

    u_t = x_t W_x + b              one array per gate, each shaped like h
    v_t = h_{t−1} W_h (+ b_h)      one array per gate, each shaped like h
    s_t = step(s_{t−1}, u_t, v_t)  pointwise over units; h_t is a part of s_t

A cell knows its step and the adjoint of that step. It knows nothing about time, batches, layout or
gradients of matrices: those are in `loops`. Its adjoint comes in two parts, so that the engine can do
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
import numpy as np
from jax import Array

from jax_bptt.base.errors import bad
from jax_bptt.cell.initializers import Initializer, check_initializer, matrices, orthogonal

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
      gate_names: of the G blocks of W_x and W_h, in their order.
      step: (units, s_prev, u, v) -> s, pointwise.
      linearise: (units, s_prev, u, v, s) -> a, the derivative of the step, pointwise.
      adjoint: (units, a, lam) -> StepCotangent, pointwise and linear in lam.
      init: key -> params, a NamedTuple with w_x, w_h, b, perhaps b_h [G*H] and unit-wise [H] leaves.
      initial_carry: (params, batch_shape) -> carry, leaves [*batch_shape, H]: zeros, or for each field
        such as h the parameter h_0 [H] where there is one (see `learn_carry`).
      dtype: what the operands of its matrix products are rounded to, None for nothing; see `unroll`,
        which sets it.
    """

    input_size: int
    hidden_size: int
    gate_names: tuple[str, ...]
    step: Callable[[Units, Any, Gates, Gates], Any]
    linearise: Callable[[Units, Any, Gates, Gates, Any], Any]
    adjoint: Callable[[Units, Any, Any], StepCotangent]
    init: Callable[[Array], Any]
    initial_carry: Callable[[Any, tuple[int, ...]], Any]
    dtype: Any = None

    @property
    def gates(self) -> int:
        """G, the number of gates."""
        return len(self.gate_names)

    def __repr__(self) -> str:
        return f"Cell(input_size={self.input_size}, hidden_size={self.hidden_size}, gates={self.gates})"


def make_cell(
    input_size: int,
    hidden_size: int,
    step: Callable[[Units, Any, Gates, Gates], Any],
    *,
    gates: int | tuple[str, ...] = 1,
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
        outside jit; u and v are tuples of G arrays shaped like h, units holds the parameters other
        than w_x, w_h, b, b_h, shaped to broadcast against h. With a w_h of shape [H] there is no
        recurrent product: v is (), and units holds w_h.
      gates: G, or the names of the gates, which `check_gradient` then uses.
      carry_type: NamedTuple class of the state, with a field h; all its fields are shaped like h.
      init: key -> params, in JAX (it is traced for its shapes); None for `init_params`, which has no
        unit-wise parameters. Names that end in _0, such as h_0, are the initial carry's.
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
    check_functions(step=step, **{name: f for name, f in optional.items() if f is not None})
    check_carry_type(carry_type)
    if (linearise is None) != (adjoint is None):
        lone = "adjoint alone" if linearise is None else "linearise alone"
        raise bad("linearise, adjoint", "both or neither", lone, "leave both out to have jax.vjp do it")
    sizes = size("input_size", input_size), size("hidden_size", hidden_size)
    is_named = isinstance(gates, tuple) and gates
    names = gate_names(gates) if is_named else tuple(map(str, range(size("gates", gates))))
    return _make_cell(*sizes, names, step, carry_type, init, linearise, adjoint)


@functools.lru_cache(maxsize=256)
def _make_cell(
    input_size: int,
    hidden_size: int,
    names: tuple[str, ...],
    step: Any,
    carry_type: Any,
    init: Any,
    linearise: Any,
    adjoint: Any,
) -> Cell:
    if init is None:
        init = functools.partial(
            init_params, input_size=input_size, hidden_size=hidden_size, gates=len(names)
        )
    if adjoint is None:
        linearise, adjoint = keep_point, functools.partial(vjp_of_step, step)
    initial_carry = functools.partial(initial_of, carry_type, hidden_size)
    return Cell(input_size, hidden_size, names, step, linearise, adjoint, init, initial_carry)


def init_params(
    key: Array, input_size: int, hidden_size: int, gates: int, recurrent: Initializer = orthogonal()
) -> Params:
    """Lecun-normal input weights, one recurrent block per gate, zero bias.

    Var W_x = 1/I;  W_hᵀ W_h = 1 per gate unless `recurrent` says otherwise;  b = 0

    Args:
      key: a key from jax.random.key.
      input_size: I.
      hidden_size: H.
      gates: G.
      recurrent: initialiser of each gate's block of W_h.

    Returns:
      `Params` in the default float dtype.

    Raises:
      ValueError: a key that is none.

    >>> init_params(jax.random.key(0), 3, 5, gates=4).w_h.shape
    (5, 20)
    """
    check_key(key)
    w_x, w_h = matrices(key, input_size, hidden_size, gates, recurrent)
    return Params(w_x, w_h, jnp.zeros(gates * hidden_size, w_x.dtype))


def init_of(
    input_size: int, hidden_size: int, gates: int, recurrent: Initializer
) -> Callable[[Array], Params]:
    """`init_params` of these sizes as a function of the key alone."""
    check_initializer("recurrent", recurrent)
    sizes = size("input_size", input_size), size("hidden_size", hidden_size)
    return lambda key: init_params(key, *sizes, gates, recurrent)


def initial_of(carry_type: Any, hidden_size: int, params: Any, batch_shape: tuple[int, ...]) -> Any:
    """The initial carry: for each field such as h the parameter h_0 in every row, or zeros."""
    check_batch_shape(batch_shape)
    first: Any = next(iter(jax.tree.leaves(params)), None)
    if not is_floating(first):
        raise bad("params", "floating arrays", params, "make them by cell.init(key)")
    shape, dtype = (*batch_shape, hidden_size), first.dtype
    learned = (getattr(params, f"{field}_0", jnp.zeros(hidden_size, dtype)) for field in carry_type._fields)
    return carry_type(*(jnp.broadcast_to(jnp.asarray(s_0), shape) for s_0 in learned))


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
    fix = "pass a positive Python integer, of 31 bits"
    return _integer(argument, "an integer >= 1", value, 1, 2**31 - 1, fix)


def integer(argument: str, value: Any, least: int, most: int) -> int:
    """An integer argument from least to most as a Python int, or a ValueError that names it."""
    expected = f"an integer from {least} to {most}"
    return _integer(argument, expected, value, least, most, "pass a Python integer in this range")


def _integer(argument: str, expected: str, value: Any, least: int, most: int, fix: str) -> int:
    try:
        found = operator.index(value)
    except TypeError:
        raise bad(argument, expected, value, "pass a Python integer") from None
    if not least <= found <= most or isinstance(value, bool):
        raise bad(argument, expected, value, fix)
    return found


def gate_names(gates: Any) -> tuple[str, ...]:
    """Names of gates as a tuple, or a ValueError."""
    if not (isinstance(gates, (tuple, list)) and all(isinstance(name, str) for name in gates)):
        raise bad("gates", "a tuple of names", gates, 'pass such as ("i", "f", "g", "o")')
    return tuple(gates)


def check_flag(argument: str, value: Any) -> None:
    """ValueError unless value is True or False."""
    if not isinstance(value, bool):
        raise bad(argument, "True or False", value, "pass a bool")


def check_functions(**functions: Any) -> None:
    """ValueError unless each is a function that can be a key of a cache."""
    for name, f in functions.items():
        if not (callable(f) and isinstance(f, Hashable)):
            raise bad(name, "a hashable function", f, "see jb.Cell and jb.StepCell for what it takes")


def check_carry_type(carry_type: Any) -> None:
    """ValueError unless carry_type is a NamedTuple class with a field h."""
    if not isinstance(carry_type, type) or "h" not in getattr(carry_type, "_fields", ()):
        raise bad("carry_type", "a NamedTuple class with a field h", carry_type, "name what the cell emits h")


def is_array(value: Any) -> bool:
    """Whether it is an array, and no mere shape."""
    return isinstance(value, (jax.Array, np.ndarray))


def is_floating(value: Any) -> bool:
    """Whether it is an array of a floating dtype."""
    return is_array(value) and jnp.issubdtype(value.dtype, jnp.floating)


def as_arrays(tree: Any) -> Any:
    """NumPy arrays of numbers as JAX arrays, in JAX's precision; everything else as it is."""

    def as_array(z: Any) -> Any:
        is_numeric = isinstance(z, np.ndarray) and (jnp.issubdtype(z.dtype, jnp.number) or z.dtype == bool)
        return jnp.asarray(z) if is_numeric else z

    return jax.tree.map(as_array, tree)


def check_key(key: Any) -> None:
    """ValueError unless key is a PRNG key, of jax.random.key or the older raw kind."""
    dtype = key.dtype if is_array(key) else None
    if dtype is None or not (jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == jnp.uint32):
        raise bad("key", "a PRNG key", key, "make one by jax.random.key(seed)")
    if key.ndim != (1 if dtype == jnp.uint32 else 0):
        raise bad("key", "one PRNG key", key, "pass one of the keys of jax.random.split")


def check_batch_shape(batch_shape: Any) -> None:
    """ValueError unless batch_shape is a tuple of positive ints."""
    if not isinstance(batch_shape, tuple):
        raise bad(
            "batch_shape", "a tuple such as (32,), or () for no batch axis", batch_shape, "wrap it in a tuple"
        )
    for n in batch_shape:
        size("batch_shape", n)

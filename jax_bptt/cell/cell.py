"""A recurrent cell is two linear maps, which the engine computes, and a pointwise step of its own.

    u_t = x_t W_x (+ b)            one array per gate, each shaped like h
    v_t = h_{t−1} W_h (+ b_h)      one array per gate, each shaped like h
    s_t = step(s_{t−1}, u_t, v_t)  pointwise over units; h_t is a part of s_t

A cell defines its step and the adjoint of that step, which takes a gradient one step back. Time, batches,
memory layout and the gradients of the matrices are in `engine`. The adjoint comes in two parts. The engine
computes the first for all time steps at once; only the second, which is linear in λ, runs inside the loop:

    a_t = linearise(s_{t−1}, u_t, v_t, s_t)            what the derivative of step needs, as arrays
    (∂s_t/∂(s_{t−1}, u_t, v_t, p))ᵀ λ_t = adjoint(a_t, λ_t)

p are the unit-wise parameters (a leak rate, a peephole): one number per unit, shape [H].
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, Generic, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import check_key, flag, function, or_none, size
from jax_bptt.base.errors import bad, named
from jax_bptt.base.made import Call, by_shape, made
from jax_bptt.base.types import DType, Gates, P, PRNGKey, S, Shape, Slopes, Units
from jax_bptt.base.variants import varied
from jax_bptt.cell.initial_carry import INITIAL, initial_of
from jax_bptt.cell.initializers import Initializer, check_initializer, matrices, orthogonal

BIASES = ("b", "b_h")


@by_shape
class Params(NamedTuple):
    """These are the parameters of a plain cell; gate g has columns gH to (g+1)H of each array.

    Attributes:
      w_x: [I, G*H], input weights (the article's W_x).
      w_h: [H, G*H], recurrent weights (the article's W_s).
      b: [G*H], bias.
    """

    w_x: Array
    w_h: Array
    b: Array


@by_shape
class Carry(NamedTuple):
    """This is the state of a cell that remembers only its output (the article's S_t).

    Attributes:
      h: the output, [..., H].
    """

    h: Array


class StepCotangent(NamedTuple, Generic[S]):
    """A step cotangent is (∂s_t/∂·)ᵀ λ_t for everything that the step reads.

    Attributes:
      carry: for s_{t−1}, without what reaches it through v; shaped like the carry.
      u: for u_t, G arrays shaped like h.
      v: for v_t, G arrays shaped like h.
      units: for p, by name, shaped like h (the engine sums over time and batch).
    """

    carry: S
    u: Gates
    v: Gates
    units: Units


class Layout(NamedTuple):
    """A layout says what each parameter of a pointwise cell is for; it is found once, by tracing `init`.

    Attributes:
      bias: whether there is a b [G*H], added to the product with the input.
      recurrent: whether w_h is a matrix [H, G*H] or its blocks [n, H/n, G*H/n], so that there is a recurrent
        product; else w_h is [H].
      heads: n, if w_h is the n blocks of a block-diagonal matrix; else 0.
      recurrent_bias: whether there is a b_h [G*H], added to the recurrent product.
      units: the names of the unit-wise parameters, which the step reads.
    """

    bias: bool
    recurrent: bool
    heads: int
    recurrent_bias: bool
    units: tuple[str, ...]


@made(run="run it by jb.unroll(cell, params, carry, xs)")
class Cell(NamedTuple, Generic[P, S]):
    """A recurrent cell holds its sizes and pure functions, nothing else.

    Attributes:
      input_size: I, length of x_t.
      hidden_size: H, length of h_t.
      gate_names: names of the G blocks of W_x and W_h, in their order.
      step: (units, s_prev, u, v) -> s, pointwise.
      linearise: (units, s_prev, u, v, s) -> a, which the derivative of the step needs, pointwise.
      adjoint: (units, a, lam) -> StepCotangent, pointwise and linear in lam.
      init: key -> params, a NamedTuple with w_x, w_h, perhaps b and b_h [G*H] and unit-wise [H] leaves;
        see `Layout`.
      initial_carry: (params, batch_shape) -> carry, leaves [*batch_shape, H]. A field such as h is the
        parameter h_0 [H] if there is one (see `learn_carry`), else zeros.
      dtype: the operands of its matrix products are rounded to this dtype; None for no rounding.
        `unroll` sets it.
      emission: the `Emission` that says what a step hands out; None for h. `unroll_states` sets it.
      engine: the `Engine` that runs it, for example one whose loops are a kernel; None for the engine of
        all pointwise cells. A gradient method may set it.
      made_by: the call that made it, by which it is printed, copied and pickled.
    """

    input_size: int
    hidden_size: int
    gate_names: tuple[str, ...]
    step: Callable[[Units, S, Gates, Gates], S]
    linearise: Callable[[Units, S, Gates, Gates, S], Slopes]
    adjoint: Callable[[Units, Any, S], StepCotangent[S]]
    init: Callable[[PRNGKey], P]
    initial_carry: Callable[[P, Shape], S]
    dtype: DType | None = None
    emission: Hashable | None = None  # an Emission; this folder may not import that type
    engine: Hashable | None = None  # an Engine
    made_by: Call | None = None

    @property
    def gates(self) -> int:
        """G is the number of gates."""
        return len(self.gate_names)

    @property
    def layout(self) -> Layout:
        """The layout says what each parameter of the cell is for."""
        return _layout(self.init)


def carry_class(argument: str, carry_type: object) -> type:
    """A carry type must be a NamedTuple class with a field h, or a ValueError is raised."""
    if not isinstance(carry_type, type) or "h" not in getattr(carry_type, "_fields", ()):
        raise bad(argument, "a NamedTuple class with a field h", carry_type, "name its output field h")
    return carry_type


def names_of_gates(argument: str, gates: object) -> tuple[str, ...]:
    """Gate names must be strings; they are returned as a tuple."""
    if not (isinstance(gates, (tuple, list)) and all(isinstance(name, str) for name in gates)):
        raise bad(argument, "a tuple of names", gates, 'pass, for example, ("i", "f", "g", "o")')
    return tuple(gates)


def _gates(argument: str, gates: object) -> tuple[str, ...]:
    """Gates are given by names or by their number; a number G makes the names "0" to "G − 1"."""
    is_named = isinstance(gates, (tuple, list)) and gates
    return names_of_gates(argument, gates) if is_named else tuple(map(str, range(size(argument, gates))))


@cached(
    input_size=size,
    hidden_size=size,
    step=function,
    gates=_gates,
    carry_type=carry_class,
    init=or_none(function),
    bias=flag,
    linearise=or_none(function),
    adjoint=or_none(function),
)
def make_cell(
    input_size: int,
    hidden_size: int,
    step: Callable[[Units, S, Gates, Gates], S],
    *,
    gates: int | tuple[str, ...] = 1,
    carry_type: Callable[..., S] = Carry,  # type: ignore[assignment]
    init: Callable[[PRNGKey], Any] | None = None,
    bias: bool = True,
    linearise: Callable[[Units, S, Gates, Gates, S], Slopes] | None = None,
    adjoint: Callable[[Units, Any, S], StepCotangent[S]] | None = None,
) -> Cell[Any, S]:
    """`make_cell` makes a cell from its pointwise step; every gradient method then works with it.

    s_t = step(units, s_{t−1}, x_t W_x (+ b), h_{t−1} W_h (+ b_h))

    Args:
      input_size: I.
      hidden_size: H.
      step: (units, s_prev, u, v) -> s, pointwise: no unit reads another one, for which `step_cell` is
        there. It may use only its arguments and constants made outside jit. u and v are tuples of G arrays
        shaped like h; units holds the parameters other than w_x, w_h, b, b_h, shaped to broadcast against
        h. If w_h has shape [H] there is no recurrent product: v is (), and units holds w_h. If it has shape
        [n, H/n, G*H/n] it is the n blocks of a block-diagonal W_h: each of n heads of h reads only itself.
      gates: G, or the names of the gates, which `check_gradient` then uses.
      carry_type: NamedTuple class of the state, with a field h; all its fields are shaped like h.
      init: key -> params, a JAX function (it is traced to find the shapes); None for `init_params`, which
        makes no unit-wise parameters. A parameter whose name ends in _0, such as h_0, is an initial value
        of the carry.
      bias: False leaves b and b_h out of what init makes. An init of your own may leave them out itself.
      linearise, adjoint: the hand-derived derivative (see `Cell`): pass both or neither. Without them
        jax.vjp differentiates one step at a time.

    Returns:
      The `Cell`; the same object for the same arguments.

    Raises:
      ValueError: a size below 1, a carry type without h, or one of linearise and adjoint alone.

    >>> leaky = lambda units, s_prev, u, v: Carry(0.9 * s_prev.h + 0.1 * jnp.tanh(u[0] + v[0]))
    >>> make_cell(3, 5, leaky)
    make_cell(3, 5, <lambda>)
    """
    if (linearise is None) != (adjoint is None):
        lone = "adjoint alone" if linearise is None else "linearise alone"
        raise bad("linearise, adjoint", "both or neither", lone, "leave both out and jax.vjp is used")
    assert isinstance(gates, tuple)  # `_gates` has turned a number into names
    if init is None:
        init = functools.partial(  # not a lambda, so that it can be pickled
            init_params, input_size=input_size, hidden_size=hidden_size, gates=len(gates)
        )
    if not bias:
        init = functools.partial(_init_without_biases, init)
    if linearise is None or adjoint is None:
        linearise, adjoint = keep_point, functools.partial(vjp_of_step, step)
    initial_carry = functools.partial(initial_of, carry_type, hidden_size)
    return Cell(input_size, hidden_size, gates, step, linearise, adjoint, init, initial_carry)


@cached()
def _layout(init: Callable[[PRNGKey], Any]) -> Layout:
    params = jax.eval_shape(lambda: init(jax.random.key(0)))
    recurrent = params.w_h.ndim > 1
    heads = len(params.w_h) if params.w_h.ndim == 3 else 0
    matrices_and_biases = {"w_x", *BIASES} | ({"w_h"} if recurrent else set())
    names = params._fields
    units = tuple(n for n in names if n not in matrices_and_biases and not n.endswith(INITIAL))
    return Layout("b" in names, recurrent, heads, recurrent and "b_h" in names, units)


def without_biases(params: Any) -> Any:
    """The same params without the fields b and b_h; what is no NamedTuple is for later checks to refuse."""
    fields = params._asdict() if hasattr(params, "_fields") else {}
    kept = {name: p for name, p in fields.items() if name not in BIASES}
    return params if len(kept) == len(fields) else varied(params, "WithoutBias", kept)


def _init_without_biases(init: Callable[[PRNGKey], Any], key: PRNGKey) -> Any:
    return without_biases(init(key))


def init_params(
    key: PRNGKey,
    input_size: int,
    hidden_size: int,
    gates: int,
    recurrent: Initializer = orthogonal(),
    heads: int = 1,
    outputs: int | None = None,
) -> Params:
    """`init_params` draws Lecun-normal input weights and one recurrent block per gate; the bias is zero.

    Var W_x = 1/I;  W_hᵀ W_h = 1 per gate unless `recurrent` says otherwise;  b = 0

    Args:
      key: a key from jax.random.key.
      input_size: I.
      hidden_size: H.
      gates: G.
      recurrent: initialiser of each gate's block of W_h, of each head.
      heads: n; with more than one, w_h is [n, H/n, G*H/n].
      outputs: the length of h_t, which is the number of rows of w_h; None for H.

    Returns:
      `Params` in the default float dtype.

    Raises:
      ValueError: a key that is not a PRNG key, or a recurrent that fails or returns another shape or dtype.

    >>> init_params(jax.random.key(0), 3, 5, gates=4).w_h.shape
    (5, 20)
    """
    named("cell.init")(check_key)(key)
    w_x, w_h = matrices(key, input_size, hidden_size, gates, recurrent, heads, outputs)
    return Params(w_x, w_h, jnp.zeros(gates * hidden_size, w_x.dtype))


def init_of(
    input_size: int,
    hidden_size: int,
    gates: int,
    recurrent: Initializer,
    heads: int = 1,
    outputs: int | None = None,
) -> Callable[[PRNGKey], Params]:
    """The result is `init_params` of these sizes, as a function of the key alone."""
    check_initializer("recurrent", recurrent)
    hidden_size, heads = size("hidden_size", hidden_size), size("heads", heads)
    if hidden_size % heads:
        fix = (
            f"choose a hidden_size that is a multiple of heads, such as {heads * (hidden_size // heads + 1)}"
        )
        raise bad("heads", f"a divisor of hidden_size {hidden_size}", heads, fix)
    return functools.partial(
        init_params,
        input_size=size("input_size", input_size),
        hidden_size=hidden_size,
        gates=gates,
        recurrent=recurrent,
        heads=heads,
        outputs=outputs,
    )


def keep_point(units: Units, s_prev: S, u: Gates, v: Gates, s: S) -> tuple[S, Gates, Gates]:
    """Without a hand-derived adjoint, linearise only stores the point at which to differentiate."""
    return s_prev, u, v


def vjp_of_step(
    step: Callable[[Units, S, Gates, Gates], S], units: Units, point: tuple[S, Gates, Gates], lam: S
) -> StepCotangent[S]:
    """Without a hand-derived adjoint, jax.vjp differentiates a single step at the stored point."""
    s_prev, u, v = point
    # p gets the shape of h first, so that its cotangent is per row; the engine sums over rows later
    spread = {name: jnp.broadcast_to(p, lam.h.shape) for name, p in units.items()}
    d_units, d_carry, d_u, d_v = jax.vjp(step, spread, s_prev, u, v)[1](lam)
    return StepCotangent(d_carry, d_u, d_v, d_units)

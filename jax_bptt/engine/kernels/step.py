"""A pointwise function is written again in the operations that a kernel may hold.

JAX traces the step, its slopes and its adjoint to a list of operations. The compiler of kernels (Mosaic) has
no rule for some of them, so each is replaced by others:

    σ(x) = tanh(x/2)/2 + 1/2                                   one operation of the GPU for two      (RW1)
    eˣ − 1 = 2t/(1 − t) with t = tanh(x/2) where |x| < 1/2     without the cancellation near zero    (RW2)
    log(1 + x) = x − x²/2 + x³/3 − x⁴/4 where |x| < 1/100      as above                              (RW3)
    xʸ = e^(y log |x|), with the sign that x < 0 gives it;  x⁻ⁿ = 1/xⁿ;  cosh by eˣ and e⁻ˣ            (RW4)
    sinh x = 2t/(1 − t²) with t = tanh(x/2) where |x| < 1/2, as in (RW2), elsewhere by eˣ and e⁻ˣ      (RW5)

(RW1) is exact to 6e-8 of 1, so that a σ far below that is zero.

Functions with a derivative of their own, and compiled functions inside, are written out. What is left and is
not in `_KNOWN` cannot be compiled: a gather, a sum over units, erf, atan, floor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr

from jax_bptt.base.types import ArrayTree

_INSIDE = {"custom_jvp_call", "custom_vjp_call", "jit", "pjit", "closed_call", "remat2", "checkpoint"}
_KNOWN = {
    *("abs", "add", "clamp", "convert_element_type", "cos", "div", "exp", "exp2", "integer_pow", "log"),
    *(
        "log2",
        "max",
        "min",
        "mul",
        "neg",
        "round",
        "rsqrt",
        "select_n",
        "sign",
        "sin",
        "sqrt",
        "square",
        "sub",
    ),
    *("tanh", "and", "eq", "ge", "gt", "le", "lt", "ne", "not", "or", "xor"),
}


def _near_zero(size: float, x: Any, near: Any, far: Any) -> Any:
    return lax.select(lax.abs(x) < size, near, far)


def _expm1(x: Any, **_: object) -> Any:
    t = lax.tanh(0.5 * x)
    return _near_zero(0.5, x, 2 * t / (1 - t), lax.exp(x) - 1)  # (RW2)


def _log1p(x: Any, **_: object) -> Any:
    near = x * (1 - x * (0.5 - x * (1 / 3 - x * 0.25)))
    return _near_zero(1e-2, x, near, lax.log(1 + x))  # (RW3)


def _pow(x: Any, y: Any, **_: object) -> Any:
    if isinstance(y, np.generic):
        n = float(y)
        return _integer_pow(x, int(n)) if n.is_integer() else lax.exp(n * lax.log(x))  # (RW4)
    size = lax.exp(y * lax.log(lax.abs(x)))
    is_odd, is_whole = 2 * jnp.round(0.5 * y) != y, jnp.round(y) == y
    below = jnp.where(is_whole, jnp.where(is_odd, -size, size), jnp.nan)
    return jnp.where(y == 0, 1.0, jnp.where(x < 0, below, size))  # (RW4)


def _sinh(x: Any, **_: object) -> Any:
    t = lax.tanh(0.5 * x)
    return _near_zero(0.5, x, 2 * t / (1 - t * t), 0.5 * (lax.exp(x) - lax.exp(-x)))  # (RW5)


def _integer_pow(x: Any, y: int, **_: object) -> Any:
    if y == 0:
        return lax.full_like(x, 1)
    power = lax.integer_pow(x, abs(y)) if abs(y) > 1 else x
    return power if y > 0 else 1 / power  # (RW4)


def _reshape(x: Any, new_sizes: tuple[int, ...], **_: object) -> Any:
    return x if jnp.shape(x) == new_sizes else lax.reshape(x, new_sizes)


def _broadcast(x: Any, shape: tuple[int, ...], broadcast_dimensions: tuple[int, ...], **_: object) -> Any:
    return x if jnp.shape(x) == shape else lax.broadcast_in_dim(x, shape, broadcast_dimensions)


def _as_it_is(x: Any, **_: object) -> Any:
    return x


_REWRITTEN: dict[str, Callable[..., Any]] = {
    "logistic": lambda x, **_: 0.5 * lax.tanh(0.5 * x) + 0.5,  # (RW1)
    "expm1": _expm1,
    "log1p": _log1p,
    "pow": _pow,
    "integer_pow": _integer_pow,
    "sinh": _sinh,
    "cosh": lambda x, **_: 0.5 * (lax.exp(x) + lax.exp(-x)),  # (RW4)
    "add_any": lambda x, y, **_: x + y,
    "one_minus_square": lambda x, **_: 1 - x * x,
    # on a mesh of devices these two carry a sharding, of which Mosaic knows nothing
    "reshape": _reshape,
    "broadcast_in_dim": _broadcast,
    **dict.fromkeys(("copy", "copy_p", "reshard", "pvary", "stop_gradient"), _as_it_is),
}


class Rewritten(NamedTuple):
    """This is a traced function of trees.

    Attributes:
      jaxpr: its operations, as JAX traced them.
      result: the structure of what it returns.
      reads_its_size: whether a number in it follows from how many units or rows there are.
    """

    jaxpr: Any
    result: jax.tree_util.PyTreeDef
    reads_its_size: bool

    def __call__(self, *args: ArrayTree) -> Any:
        """The operations are applied to arrays of the kernel, each as it is or replaced."""
        found = _applied(self.jaxpr.jaxpr, self.jaxpr.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(self.result, found)

    def foreign(self) -> str | None:
        """What in this function can a kernel not hold? The first such thing, or None."""
        if self.reads_its_size:
            return "a number that follows from how many units there are"
        return next(_foreign(self.jaxpr), None)


def rewritten(f: Callable[..., Any], *like: ArrayTree) -> Rewritten:
    """The function is traced at these shapes, [units, rows]."""
    trace = jax.make_jaxpr(f, return_shape=True)
    jaxpr, shapes = trace(*like)
    # a kernel has other units and rows than the cell, so the operations must be those of any number of them
    other, _ = trace(*jax.tree.map(lambda z: jax.ShapeDtypeStruct(z.shape[::-1], z.dtype), like))
    return Rewritten(jaxpr, jax.tree.structure(shapes), [*_operations(jaxpr)] != [*_operations(other)])


def _operations(closed: Any) -> Iterator[tuple[str, ...]]:
    """The name of every operation, and the numbers that stand in it."""
    yield "constants", *map(str, closed.consts)
    for equation in closed.jaxpr.eqns:
        inside = _inside(equation)
        if inside is not None:
            yield from _operations(inside)
        else:
            yield equation.primitive.name, *(str(v) for v in equation.invars if hasattr(v, "val"))


def _inside(equation: Any) -> Any:
    """The jaxpr inside a call, with its constants; None for any other operation."""
    if equation.primitive.name not in _INSIDE:
        return None
    names = (name for name in ("call_jaxpr", "jaxpr", "fun_jaxpr") if name in equation.params)
    inside = equation.params[next(names)]
    return inside if hasattr(inside, "consts") else ClosedJaxpr(inside, ())


def _foreign(closed: Any) -> Iterator[str]:
    if any(np.ndim(z) for z in closed.consts):
        yield "an array that the step reads from outside"
    for equation in closed.jaxpr.eqns:
        inside, name = _inside(equation), equation.primitive.name
        if inside is not None:
            yield from _foreign(inside)
        elif name not in _KNOWN and name not in _REWRITTEN:
            yield f"the operation {name}"
        else:
            dtypes = {v.aval.dtype for v in equation.outvars} - {np.dtype(bool), np.dtype(np.float32)}
            yield from (f"numbers of {dtype}" for dtype in dtypes)


def _applied(jaxpr: Any, consts: list[Any], args: list[Any]) -> list[Any]:
    known = dict(zip(jaxpr.invars, args, strict=True))
    known |= {v: v.aval.dtype.type(z) for v, z in zip(jaxpr.constvars, consts, strict=True)}

    def read(v: Any) -> Any:
        # a NumPy scalar stays a literal, where an array would be an argument that the kernel does not have
        return v.aval.dtype.type(v.val) if hasattr(v, "val") else known[v]

    for equation in jaxpr.eqns:
        values, inside = [read(v) for v in equation.invars], _inside(equation)
        if inside is not None:
            found = _applied(inside.jaxpr, inside.consts, values)
        elif values and all(isinstance(z, np.generic) for z in values) and not equation.outvars[0].aval.shape:
            with jax.ensure_compile_time_eval():  # of constants alone, such as the exponent of a derivative
                found = [np.asarray(equation.primitive.bind(*values, **equation.params))[()]]
        elif equation.primitive.name in _REWRITTEN:
            found = [_REWRITTEN[equation.primitive.name](*values, **equation.params)]
        else:
            found = [equation.primitive.bind(*values, **equation.params)]
        known |= dict(zip(equation.outvars, found, strict=True))
    return [read(v) for v in jaxpr.outvars]

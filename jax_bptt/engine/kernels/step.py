"""A pointwise function is written again in the operations that a kernel may hold.

JAX traces the step, its slopes and its adjoint to a list of operations. The compiler of kernels (Mosaic) has
no rule for some of them, so each is replaced by others:

    σ(x) = tanh(x/2)/2 + 1/2                                   one operation of the GPU for two      (RW1)
    eˣ − 1 = 2t/(1 − t) with t = tanh(x/2) where |x| < 1/2     without the cancellation near zero    (RW2)
    log(1 + x) = x − x²/2 + x³/3 − x⁴/4 where |x| < 1/100      as above                              (RW3)
    xʸ = e^(y log x),  x⁻ⁿ = 1/xⁿ,  sinh and cosh by eˣ and e⁻ˣ                                      (RW4)

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


def _integer_pow(x: Any, y: int, **_: object) -> Any:
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
    "pow": lambda x, y, **_: lax.exp(y * lax.log(x)),  # (RW4)
    "integer_pow": _integer_pow,
    "sinh": lambda x, **_: 0.5 * (lax.exp(x) - lax.exp(-x)),  # (RW4)
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
    """

    jaxpr: Any
    result: jax.tree_util.PyTreeDef

    def __call__(self, *args: ArrayTree) -> Any:
        """The operations are applied to arrays of the kernel, each as it is or replaced."""
        found = _applied(self.jaxpr.jaxpr, self.jaxpr.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(self.result, found)

    def foreign(self) -> str | None:
        """What in this function can a kernel not hold? The first such thing, or None."""
        if any(np.ndim(z) for z in self.jaxpr.consts):
            return "an array that the step reads from outside"
        return next(_foreign(self.jaxpr.jaxpr), None)


def rewritten(f: Callable[..., Any], *like: ArrayTree) -> Rewritten:
    """The function is traced at these shapes."""
    jaxpr, shapes = jax.make_jaxpr(f, return_shape=True)(*like)
    return Rewritten(jaxpr, jax.tree.structure(shapes))


def _inside(equation: Any) -> Any:
    """The jaxpr inside a call, with its constants; None for any other operation."""
    if equation.primitive.name not in _INSIDE:
        return None
    names = (name for name in ("call_jaxpr", "jaxpr", "fun_jaxpr") if name in equation.params)
    inside = equation.params[next(names)]
    return inside if hasattr(inside, "consts") else ClosedJaxpr(inside, ())


def _foreign(jaxpr: Any) -> Iterator[str]:
    for equation in jaxpr.eqns:
        inside, name = _inside(equation), equation.primitive.name
        if inside is not None:
            yield from _foreign(inside.jaxpr)
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
        elif equation.primitive.name in _REWRITTEN:
            found = [_REWRITTEN[equation.primitive.name](*values, **equation.params)]
        else:
            found = [equation.primitive.bind(*values, **equation.params)]
        known |= dict(zip(equation.outvars, found, strict=True))
    return [read(v) for v in jaxpr.outvars]

"""Is a function one of a single number, and the same as before? Its program answers both.

A gate or an activation of a framework is any function of arrays. It may stand in one of our cells only if it
gives each number a value of its own; if it reads nothing else, since a value from outside, such as a weight,
would get no gradient; and if its derivative is that of its program. The program is in the key of a cell, so
that a function which has changed since is another one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.checks import is_function
from jax_bptt.cell.activations import ActivationName

Function: TypeAlias = Callable[[Array], Array]

NAMES: dict[Function, ActivationName] = {
    jnp.tanh: "tanh",
    jax.nn.tanh: "tanh",
    jax.nn.sigmoid: "sigmoid",
    jax.nn.relu: "relu",
    jax.nn.identity: "identity",
}

_SHAPE = (3, 4)
# fmt: off
_OF_EACH_NUMBER = {  # operations that give each number of an array its own
    "abs", "acos", "acosh", "add", "and", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil",
    "clamp", "convert_element_type", "copy", "copy_p", "cos", "cosh", "digamma", "div", "eq", "erf",
    "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite",
    "le", "lgamma", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "nextafter",
    "not", "or", "pow", "reduce_precision", "rem", "round", "rsqrt", "select_n", "sign", "sin",
    "sinh", "sqrt", "square", "stop_gradient", "sub", "tan", "tanh", "xor",
}
# fmt: on
_OF_A_PROGRAM = {"checkpoint", "closed_call", "core_call", "custom_jvp_call", "jit", "pjit", "remat2"}


def program_of(f: Function) -> str | None:
    """What a function does to each number by itself, as a word; None if it does something else.

    Args:
      f: a function of an array, in whatever dtype.

    Returns:
      A name, or a digest of its program, equal for calls of the same function that compute the same; None for
      a function that reads several numbers at once, that reads a value from outside, that fails or changes
      the dtype, or whose derivative is its own (jax.custom_vjp).

    >>> program_of(jnp.tanh), program_of(jax.nn.softmax)
    ('tanh', None)
    """
    if not is_function(f) or not jax.tree_util.all_leaves([f]):
        return None  # it may hold weights
    if f in NAMES:
        return NAMES[f]
    texts = []
    for dtype in (jnp.bfloat16, jnp.float32, jnp.result_type(float)):
        z = jax.ShapeDtypeStruct(_SHAPE, dtype)
        try:
            program = jax.make_jaxpr(lambda z: f(z))(z)  # traced anew: JAX remembers f
        except Exception:  # it wants something else
            return None
        made = [(one.shape, one.dtype) for one in program.out_avals]
        if made != [(z.shape, z.dtype)] or program.consts or program.effects:
            return None
        if not all(map(_is_of_each_number, _steps(program.jaxpr))):
            return None
        texts.append(without_addresses(program))
    return hashlib.sha256("".join(texts).encode()).hexdigest()[:16]


def without_addresses(program: object) -> str:
    """A program as text, without the places in memory of what it calls."""
    return re.sub(r"0x[0-9a-f]+", "", str(program))


def _steps(program: Any) -> Iterator[Any]:
    """The operations of a program, and those of the programs in it."""
    for step in program.eqns:
        yield step
        if step.primitive.name in _OF_A_PROGRAM:
            for inner in jax.tree.leaves(step.params, is_leaf=lambda part: hasattr(part, "eqns")):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _steps(inner)


def _is_of_each_number(step: Any) -> bool:
    name = step.primitive.name
    if name == "broadcast_in_dim":
        return step.invars[0].aval.shape == ()
    return name in _OF_EACH_NUMBER or name in _OF_A_PROGRAM

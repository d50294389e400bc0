"""The body of a scan is traced once; the engine then runs its operations, and not the user's function.

What the function reads from outside, such as weights, becomes an argument of the body. So its gradient is
contracted for many steps together, and under jax.vmap or jax.grad of the caller it is what it is there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from jax_bptt.base.checks import is_other_key
from jax_bptt.base.errors import bad, describe, running, shown
from jax_bptt.base.types import DType
from jax_bptt.cell.body import Body, Leaves
from jax_bptt.engine.emission import of_leaves


class TracedBody(NamedTuple):
    """This is a body that was traced, with the arrays that it begins with and reads from outside.

    Attributes:
      jaxpr: f as operations on arrays.
      consts: what f reads from outside, in the order of the constants of jaxpr.
      init: the carry before the first step, in the dtypes that f returns.
      made: the shapes and dtypes of (carry, y).
    """

    jaxpr: Jaxpr
    consts: tuple[Any, ...]
    init: Any
    made: tuple[Any, Any]

    @property
    def carries(self) -> int:
        """This is the number of leaves of the carry."""
        return len(jax.tree.leaves(self.init))

    @property
    def params(self) -> Leaves:
        """These are the traced constants, by which JAX may differentiate; the others stay in the body."""
        return tuple(c for c in self.consts if isinstance(c, jax.core.Tracer))

    def body(self, is_masked: bool) -> Body:
        """In this body params stand for the traced constants; outputs that are states are read from s_t."""
        n, number_of_xs = self.carries, len(self.jaxpr.invars) - self.carries
        of_state = {id(v): place for place, v in enumerate(self.jaxpr.outvars[:n])}
        # where a step is masked, its outputs are zero and not the state, which is held
        places = tuple(None if is_masked else of_state.get(id(v)) for v in self.jaxpr.outvars[n:])

        dtypes = [z.dtype for z in jax.tree.leaves(self.made)]  # for outputs that are numbers of Python

        def run(jaxpr: Jaxpr, params: Leaves, carry: Leaves, x: Leaves) -> tuple[Leaves, Leaves]:
            given = iter(params)
            consts = [next(given) if isinstance(c, jax.core.Tracer) else c for c in self.consts]
            made = jaxpr_as_fun(ClosedJaxpr(jaxpr, consts))(*carry, *x[:number_of_xs])
            made = [
                z if isinstance(z, jax.Array) else jnp.asarray(z, dtype)
                for z, dtype in zip(made, dtypes, strict=True)
            ]
            own = (y for y, place in zip(made[n:], places, strict=True) if place is None)
            return tuple(made[:n]), tuple(own)

        silent = _silent(self.jaxpr)
        step, silent_step = (functools.partial(run, jaxpr) for jaxpr in (self.jaxpr, silent))
        in_order = _in_order(self.jaxpr, [True] * len(self.jaxpr.invars))
        reads_refs = any(type(v.aval).__name__ == "AbstractRef" for v in self.jaxpr.constvars)
        calls_host = reads_refs or _holds("io_callback", silent)
        is_small = not self.jaxpr.effects and _operations(self.jaxpr) <= 100
        return Body(step, silent_step, in_order, calls_host, is_small, of_leaves(places))


def trace(f: Callable[..., Any], init: Any, xs: Any) -> TracedBody:
    """f is traced at the types of the carry and of one step."""
    x = jax.make_jaxpr(lambda xs: jax.tree.map(lambda z: z[0], xs))(jax.tree.map(jax.typeof, xs)).out_avals
    type_of_x = jax.tree.unflatten(jax.tree.structure(xs), x)
    while True:
        with running("f"):
            closed, made = jax.make_jaxpr(f, return_shape=True)(jax.tree.map(jax.typeof, init), type_of_x)
        if not isinstance(made, (tuple, list)) or len(made) != 2:
            fix = "return carry, None where there is no y"
            raise bad("f", "a function that returns a pair (carry, y)", made, fix)
        promoted = _promoted(init, made[0])
        if promoted is None:
            return TracedBody(closed.jaxpr, tuple(closed.consts), init, (made[0], made[1]))
        init = promoted


def _promoted(init: Any, carry: Any) -> Any:
    """The result is init with numbers of Python in the dtypes of f, or None if f returns what it gets."""
    expected = "a function that returns a carry like the one it gets"
    structure: Any = jax.tree.structure(init)
    if structure != jax.tree.structure(carry):
        raise bad("f", expected, f"{describe(init)} in and {describe(carry)} out", "return the same pytree")
    is_new, leaves = False, []
    for (path, z), out in zip(jax.tree_util.tree_leaves_with_path(init), jax.tree.leaves(carry), strict=True):
        is_weak = jax.typeof(z).weak_type
        if is_weak and (out.dtype != z.dtype or not out.weak_type) and _rank(out.dtype) >= _rank(z.dtype):
            z, is_new = z.astype(out.dtype), True
        elif z.shape != out.shape or z.dtype != out.dtype:
            types = [f"{t.dtype}[{shown(t.shape)}]" for t in (z, out)]
            came = f"{types[0]} in and {types[1]} out for carry{jax.tree_util.keystr(path)}"
            raise bad("f", expected, came, "cast or reshape it in f, or change init")
        leaves.append(z)
    return structure.unflatten(leaves) if is_new else None


def _rank(dtype: DType) -> int:
    """Bools, integers, real and complex numbers, in this order: a Python number may move to a later kind."""
    kinds = jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating
    return next((rank for rank, kind in enumerate(kinds) if jnp.issubdtype(dtype, kind)), -1)


def _silent(jaxpr: Jaxpr) -> Jaxpr:
    """The same operations without those that have an effect, such as jax.debug.print, and no use."""
    used = {id(v) for v in jaxpr.outvars}
    kept = []
    for equation in reversed(jaxpr.eqns):
        if equation.effects and not any(id(v) in used for v in equation.outvars):
            continue
        kept.append(equation)
        used.update(map(id, equation.invars))
    effects = {effect for equation in kept for effect in equation.effects}
    return jaxpr.replace(eqns=kept[::-1], effects=effects)


def _holds(name: str, jaxpr: Jaxpr) -> bool:
    """Is there an operation of this name, also inside of others?"""
    return any(
        equation.primitive.name == name or any(_holds(name, inner) for inner in _inner(equation.params))
        for equation in jaxpr.eqns
    )


def _operations(jaxpr: Jaxpr) -> int:
    """This is the number of operations, with those inside of others."""
    inside = (_operations(inner) for equation in jaxpr.eqns for inner in _inner(equation.params))
    return len(jaxpr.eqns) + sum(inside)


def _in_order(jaxpr: Jaxpr, varies: list[bool]) -> bool:
    """Must the steps run one at a time (`Body.in_order`)? varies: which inputs differ from step to step."""
    varying = {id(v) for v, here in zip(jaxpr.invars, varies, strict=True) if here}
    for equation in jaxpr.eqns:
        here = [id(v) in varying for v in equation.invars]
        if not any(here):
            continue
        name = equation.primitive.name
        if (name == "cond" and here[0]) or name in _NOT_MAPPED or any(map(_is_other_key, equation.invars)):
            return True
        # the carry of an inner loop depends on all that it reads
        inside = [True] * len(here) if name in ("scan", "while") else here[1:] if name == "cond" else here
        for inner in _inner(equation.params):
            fits = len(inner.invars) == len(inside)
            if _in_order(inner, inside if fits else [True] * len(inner.invars)):
                return True
        varying.update(map(id, equation.outvars))
    return False


# under jax.vmap these draw other numbers, or call the host in another way
_NOT_MAPPED = ("rng_bit_generator", "rng_uniform", "pure_callback", "io_callback")


def _is_other_key(v: Any) -> bool:
    """Does this hold keys of another kind than threefry?"""
    return hasattr(v.aval, "dtype") and is_other_key(v.aval.dtype)


def _inner(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """These are the programs inside an operation, such as the body of an inner loop."""
    for value in params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, Jaxpr):
                yield one

"""`scan` is jax.lax.scan with a gradient method of one's choice.

    (c_t, y_t) = f(c̃_{t−1}, x_t),   t = 1..T      (`sequence` says what c̃ is under masks, resets and cuts)

Any body of a scan is a recurrence: linearise and contract are jax.vjp of the body for the steps of a chunk at
once, and the sweep goes back through the carry alone. f is traced once. What it reads from outside, such as
weights, becomes an argument of the traced body, so that its gradient is contracted for many steps together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from jax_bptt.base.checks import as_arrays, flag, function, is_array, size
from jax_bptt.base.errors import bad, named, running, shown
from jax_bptt.base.trees import flipped
from jax_bptt.base.types import Foreign, Mark, Shape, Tree
from jax_bptt.cell.body import Body, Leaves
from jax_bptt.engine.emission import of_leaves
from jax_bptt.engine.run import Run
from jax_bptt.engine.sequence import Sequence, without_padding
from jax_bptt.gradients.full import full
from jax_bptt.gradients.method import GradientMethod
from jax_bptt.unrolling.arguments import check_method
from jax_bptt.unrolling.unroll import run_with_gradient

_Carry = TypeVar("_Carry")


@named()
def scan(
    f: Callable[[_Carry, Any], tuple[_Carry, Any]],
    init: _Carry,
    xs: Any = None,
    length: int | None = None,
    reverse: bool = False,
    gradient: GradientMethod = full(),
    mask: Mark = None,
    reset: Mark = None,
    cut: Mark = None,
) -> tuple[_Carry, Any]:
    """`scan` has the arguments and the meaning of jax.lax.scan; `gradient` chooses its backward pass.

    (c_t, y_t) = f(c_{t−1}, x_t)

    It is differentiable by init, xs and what f reads from outside. Integers, bools and PRNG keys pass
    through and have no derivative. f may hold custom derivatives, jax.lax.cond, inner scans and while loops.
    A body with a jax.lax.cond on what differs from step to step is differentiated one step at a time.

    Args:
      f: (carry, x) -> (carry, y), as for jax.lax.scan. It is also run for many steps at once (jax.vmap).
      init: the carry before the first step, a pytree of arrays of any dtypes.
      xs: a pytree of arrays [T, ...], of which f gets one step at a time; None with a `length`.
      length: T, if there are no xs.
      reverse: whether to go from the last step to the first; marks and outputs stay at their steps.
      gradient: the gradient method that jax.grad uses. `artbp` needs `cut`; `parallel` with `newton` needs
        a carry of real numbers, `rtrl` and `parallel` no complex ones; `clipped` takes one norm of the
        whole carry; for jax.jvp use `autodiff`.
      mask: bool [T], or [T, *rows] where all leaves of the carry and of y begin with the axes rows. Where
        False the carry is held, y_t is zero, and x_t is not read: a NaN there affects nothing.
      reset: bool, shaped like mask; where True the step starts from init.
      cut: bool, shaped like mask; where True the step treats the carry as a constant (stop_gradient).

    Returns:
      (carry, ys): the carry after the last step, and the outputs of all steps, leaves [T, ...].

    Raises:
      ValueError: at trace time, if an argument is wrong; it says which one, what was expected and what was
        passed.

    Reference: Werbos 1990, Backpropagation through time: what it does and how to do it.

    >>> w = jnp.array([[0.0, 0.5], [-0.5, 0.0]])
    >>> def energy(w):
    ...     carry, ys = scan(lambda c, x: (jnp.tanh(w @ c + x), None), jnp.ones(2), jnp.ones((100, 2)))
    ...     return (carry**2).sum()
    >>> jax.grad(energy)(w).shape
    (2, 2)
    """
    check_method(gradient)
    flag("reverse", reverse)
    function("f", f)
    init, xs = _arrays("init", init), _arrays("xs", xs)
    steps = _steps(xs, length)
    if steps == 0:
        return jax.lax.scan(f, init, xs, length=0)
    traced = _traced(f, init, xs)
    inputs: Leaves = tuple(jax.tree.leaves(xs)) or (jnp.arange(steps),)
    marks = (
        _mark(name, mark, steps, traced) for name, mark in (("mask", mask), ("reset", reset), ("cut", cut))
    )
    sequence = without_padding(Sequence(inputs, *marks))
    carry: Leaves = tuple(jax.tree.leaves(traced.init))
    start: Any = None if reset is None else carry
    run = Run(traced.params, carry, start, flipped(sequence) if reverse else sequence)  # type: ignore[arg-type]
    body = gradient.on_engine(traced.body(is_masked=mask is not None))
    last, ys = run_with_gradient(body, gradient)(run)
    made = jax.tree.unflatten(traced.structure, [*last, *(flipped(ys) if reverse else ys)])
    return made[0], made[1]


def _arrays(argument: str, tree: Tree) -> Tree:
    return jax.tree.map(jnp.asarray, as_arrays(argument, tree))


def _steps(xs: Foreign, length: Foreign) -> int:
    """T, from xs and from length, which must agree."""
    leaves = jax.tree.leaves(xs)
    lengths = {z.shape[:1] for z in leaves}
    if len(lengths) > 1 or () in lengths:
        raise bad("xs", "arrays [T, ...] of one length T", xs, "every leaf has the steps on its first axis")
    if not leaves and length is None:
        raise bad("length", "the number of steps, as there are no xs", length, "pass length=T")
    if length is not None and leaves and lengths != {(length,)}:
        came = f"length {length} and xs of {shown(lengths.pop())} steps"
        raise bad("length", "the length of xs", came, "leave length out, or cut xs")
    steps: int = leaves[0].shape[0] if leaves else size("length", length) if length else 0
    return steps


class _Traced(NamedTuple):
    """This is a body that was traced, with the arrays that it is called with.

    Attributes:
      jaxpr: f as operations on arrays.
      consts: what f reads from outside, in the order of the constants of jaxpr.
      init: the carry before the first step, in the dtypes that f returns.
      structure: the tree of (carry, y).
    """

    jaxpr: Jaxpr
    consts: tuple[Any, ...]
    init: Any
    structure: jax.tree_util.PyTreeDef

    @property
    def carries(self) -> int:
        """This is the number of leaves of the carry."""
        return len(jax.tree.leaves(self.init))

    @property
    def params(self) -> Leaves:
        """Only what is being traced can be differentiated by; the rest stays in the body."""
        return tuple(c for c in self.consts if isinstance(c, jax.core.Tracer))

    def body(self, is_masked: bool) -> Body:
        """The body reads its params in place of traced constants; outputs that are states come from them."""
        n, number_of_xs = self.carries, len(self.jaxpr.invars) - self.carries
        of_state = {id(v): place for place, v in enumerate(self.jaxpr.outvars[:n])}
        # where a step is masked its outputs are zero, but the states are held
        places = tuple(None if is_masked else of_state.get(id(v)) for v in self.jaxpr.outvars[n:])

        def step(params: Leaves, carry: Leaves, x: Leaves) -> tuple[Leaves, Leaves]:
            given = iter(params)
            consts = [next(given) if isinstance(c, jax.core.Tracer) else c for c in self.consts]
            closed = ClosedJaxpr(self.jaxpr, consts)
            made = jaxpr_as_fun(closed)(*carry, *x[:number_of_xs])
            own = (y for y, place in zip(made[n:], places, strict=True) if place is None)
            return tuple(made[:n]), tuple(own)

        return Body(step, _branches(self.jaxpr, [True] * len(self.jaxpr.invars)), of_leaves(places))


def _traced(f: Callable[..., Any], init: Any, xs: Any) -> _Traced:
    """f is traced at the types of the carry and of one step."""
    x = jax.make_jaxpr(lambda xs: jax.tree.map(lambda z: z[0], xs))(jax.tree.map(jax.typeof, xs)).out_avals
    type_of_x = jax.tree.unflatten(jax.tree.structure(xs), x)
    while True:
        with running("f"):
            closed, made = jax.make_jaxpr(f, return_shape=True)(jax.tree.map(jax.typeof, init), type_of_x)
        if not isinstance(made, tuple) or len(made) != 2:
            raise bad(
                "f", "a function that returns a pair (carry, y)", made, "return carry, None if there is no y"
            )
        promoted = _promoted(init, made[0])
        if promoted is None:
            return _Traced(closed.jaxpr, tuple(closed.consts), init, jax.tree.structure(made))
        init = promoted


def _promoted(init: Any, carry: Any) -> Any:
    """None if f returns the type of carry that it gets; else init with Python numbers in the dtypes of f."""
    expected = "a function that returns a carry like the one it gets"
    came_in, came_out = jax.tree.structure(init), jax.tree.structure(carry)
    if came_in != came_out:
        raise bad("f", expected, f"{came_in} in and {came_out} out", "return the same pytree")
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
    return jax.tree.unflatten(came_in, leaves) if is_new else None


def _rank(dtype: Any) -> int:
    """Bools, integers, real and complex numbers, in this order: a Python number takes the later kind."""
    kinds = jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating
    return next((rank for rank, kind in enumerate(kinds) if jnp.issubdtype(dtype, kind)), -1)


def _mark(name: str, mark: Foreign, steps: int, traced: _Traced) -> Mark:
    """A mask, reset or cut must be bool [T, *rows], with the axes rows at the front of every leaf."""
    if mark is None:
        return None
    mark = as_arrays(name, mark)
    if not is_array(mark) or mark.dtype != bool or mark.shape[:1] != (steps,):
        raise bad(
            name,
            f"bool[{steps}] or bool[{steps}, *rows]",
            mark,
            "one bool for each step, or for each step and row",
        )
    rows: Shape = mark.shape[1:]
    outputs = traced.jaxpr.outvars[traced.carries :] if name == "mask" else []
    for what, types in (("carry", traced.jaxpr.outvars[: traced.carries]), ("y", outputs)):
        for v in types:
            if v.aval.shape[: len(rows)] != rows:
                fix = f"pass a {name} of the shape [{steps}], or use jax.vmap over rows"
                came = f"{shown(mark.shape)} for a leaf [{shown(v.aval.shape)}] of {what}"
                raise bad(name, f"bool[{steps}, *rows] with the axes rows in front of each leaf", came, fix)
    found: Array = jnp.asarray(mark)
    return found


def _branches(jaxpr: Jaxpr, varies: list[bool]) -> bool:
    """Does it hold a jax.lax.cond whose predicate depends on those of its inputs that vary?"""
    varying = {id(v) for v, here in zip(jaxpr.invars, varies, strict=True) if here}
    for equation in jaxpr.eqns:
        here = [id(v) in varying for v in equation.invars]
        if not any(here):
            continue
        name = equation.primitive.name
        if name == "cond" and here[0]:
            return True
        # the carry of an inner loop depends on all that it reads
        inside = [True] * len(here) if name in ("scan", "while") else here[1:] if name == "cond" else here
        for inner in _inner(equation.params):
            fits = len(inner.invars) == len(inside)
            if _branches(inner, inside if fits else [True] * len(inner.invars)):
                return True
        varying.update(map(id, equation.outvars))
    return False


def _inner(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """The operations of an equation, such as those of an inner loop."""
    for value in params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, Jaxpr):
                yield one

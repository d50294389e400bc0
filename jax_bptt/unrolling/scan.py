"""`scan` is jax.lax.scan with a gradient method of one's choice.

    (c_t, y_t) = f(c̃_{t−1}, x_t),   t = 1..T      (`sequence` says what c̃ is under masks, resets and cuts)

Any body of a scan is a recurrence. Its derivative is that of jax.vjp: by the parameters and inputs for all
steps of a chunk at once, and by the carry alone in the backward loop (`bodywise`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.checks import as_arrays, flag, integer, is_array, is_known
from jax_bptt.base.compiling import PROGRAMS
from jax_bptt.base.errors import bad, named, naming, shown
from jax_bptt.base.trees import differentiable, flipped
from jax_bptt.base.types import Foreign, Mark, Shape, Tree
from jax_bptt.cell.body import Leaves
from jax_bptt.engine.run import Outputs, Run
from jax_bptt.engine.sequence import Sequence, without_padding
from jax_bptt.gradients.full import full
from jax_bptt.gradients.method import GradientMethod
from jax_bptt.gradients.parallel import parallel
from jax_bptt.gradients.rtrl import rtrl
from jax_bptt.unrolling.arguments import check_method
from jax_bptt.unrolling.traced_body import TracedBody, trace
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
    Where jax.vmap would change f (a jax.lax.cond on what differs from step to step, keys of another kind
    than threefry, callbacks), it is differentiated one step at a time.

    Args:
      f: (carry, x) -> (carry, y), as for jax.lax.scan. It also runs for many steps at once (jax.vmap).
      init: the carry before the first step, a pytree of arrays of any dtypes.
      xs: a pytree of arrays [T, ...], of which f gets one step at a time; None with a `length`.
      length: T, if there are no xs.
      reverse: whether to go from the last step to the first; marks and outputs stay at their steps. xs and
        outputs are then copied once.
      gradient: the gradient method that jax.grad uses. `artbp` needs `cut`. `rtrl` and `parallel` refuse
        complex numbers, and `parallel` with `newton` all but real ones. `clipped` takes one norm of the
        whole carry. For jax.jvp use `autodiff`.
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
    if not callable(f):
        raise bad("f", "a function (carry, x) -> (carry, y)", f, "write it as for jax.lax.scan")
    init, xs = _arrays("init", init), _arrays("xs", xs)
    steps = _steps(xs, length)
    if steps == 0:
        return jax.lax.scan(f, init, xs, length=0)
    traced = trace(f, init, xs)
    inputs: Leaves = tuple(jax.tree.leaves(xs)) or (jnp.arange(steps),)
    given = {"mask": mask, "reset": reset, "cut": cut}
    mask, reset, cut = (_mark(name, mark, steps, traced.made) for name, mark in given.items())
    sequence = without_padding(Sequence(inputs, mask, reset, cut))
    carry: Any = tuple(jax.tree.leaves(traced.init))
    start = None if reset is None else carry
    run = Run(traced.params, carry, start, flipped(sequence) if reverse else sequence)
    counts_only = not jax.tree.leaves(differentiable(carry))
    if not carry or (counts_only and gradient in (rtrl(), parallel())):
        gradient = full()  # no derivative goes from step to step, so all methods are equal
    outputs: Any = _runner(traced, run, gradient, mask is not None)(run)
    ys = flipped(outputs.ys) if reverse else outputs.ys
    structure: Any = jax.tree.structure(traced.made)
    carry_and_ys: tuple[_Carry, Any] = structure.unflatten([*outputs.carry, *ys])
    return carry_and_ys


# Outside jax.jit a body is compiled once, as jax.lax.scan does it; the oldest of PROGRAMS is forgotten.
_COMPILED: dict[Any, tuple[TracedBody, Callable[[Run], Outputs]]] = {}


def _runner(
    traced: TracedBody, run: Run, gradient: GradientMethod, is_masked: bool
) -> Callable[[Run], Outputs]:
    """This runs the body with its gradient; called with arrays again, the same body is not compiled again."""

    def make() -> Callable[[Run], Outputs]:
        return run_with_gradient(gradient.on_engine(traced.body(is_masked)), gradient)

    if any(isinstance(z, jax.core.Tracer) for z in jax.tree.leaves(run)):
        return make()
    # JAX traces a function once for its types; what has been traced is kept, so that no other has its id
    key = id(traced.jaxpr), tuple(map(id, traced.consts)), gradient, is_masked
    if key not in _COMPILED:
        while len(_COMPILED) >= PROGRAMS:
            _COMPILED.pop(next(iter(_COMPILED)))
        _COMPILED[key] = traced, make()
    return _COMPILED[key][1]


def _arrays(argument: str, tree: Tree) -> Tree:
    tree = as_arrays(argument, tree)
    with naming(argument, "a pytree of arrays and numbers", "pass what jax.numpy.asarray takes"):
        return jax.tree.map(jnp.asarray, tree)


def _steps(xs: Foreign, length: Foreign) -> int:
    """T, from xs and from length, which must agree."""
    leaves = jax.tree.leaves(xs)
    lengths = {z.shape[:1] for z in leaves}
    if len(lengths) > 1 or () in lengths:
        raise bad("xs", "arrays [T, ...] of one length T", xs, "every leaf has the steps on its first axis")
    if not leaves and length is None:
        raise bad("length", "the number of steps, as there are no xs", length, "pass length=T")
    if length is not None and is_known(length):
        length = integer("length", length, 0, 2**31 - 1)
    if length is not None and leaves and lengths != {(length,)}:
        came = f"length {length} and xs of {shown(lengths.pop())} steps"
        raise bad("length", "the length of xs", came, "leave length out, or cut xs")
    steps: int = leaves[0].shape[0] if leaves else length
    return steps


def _mark(name: str, mark: Foreign, steps: int, made: tuple[Any, Any]) -> Mark:
    """A mask, reset or cut must be bool [T, *rows], with the axes rows at the front of every leaf."""
    if mark is None:
        return None
    mark = as_arrays(name, mark)
    if not is_array(mark) or mark.dtype != bool or mark.shape[:1] != (steps,):
        fix = "pass one bool for each step, or for each step and row"
        raise bad(name, f"bool[{steps}] or bool[{steps}, *rows]", mark, fix)
    rows: Shape = mark.shape[1:]
    for leaf in jax.tree.leaves(made if name == "mask" else made[0]):
        if leaf.shape[: len(rows)] != rows:
            fix = f"pass a {name} of the shape [{steps}], or use jax.vmap over rows"
            came = f"bool[{shown(mark.shape)}], and a leaf [{shown(leaf.shape)}]"
            raise bad(name, f"bool[{steps}, *rows] with the axes rows in front of each leaf", came, fix)
    found: Array = jnp.asarray(mark)
    return found

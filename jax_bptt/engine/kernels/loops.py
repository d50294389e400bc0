"""The two time loops of `loops`, each as one kernel of an NVIDIA GPU where that is possible.

    loop(arrays) = kernel(arrays)    where the program is compiled for such a GPU                     (FU1)
                   scan(arrays)      on every other device                                            (FU2)
    derivative   that of the scan: only a derivative of the gradient asks for it                      (FU3)
    vmap         an axis of the data becomes a batch axis, one of the parameters a loop               (FU4)

Where no kernel can be made (`plan`, `limits`) the loop is the scan, and a warning says why.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import custom_vmap

from jax_bptt.base.types import ArrayTree, Shape, Slopes, State
from jax_bptt.cell.step_cell import Projected
from jax_bptt.engine.engine import AnyEngine, Forward, Runnable, Swept, Transform
from jax_bptt.engine.kernels.both import backward_by_kernel, forward_by_kernel
from jax_bptt.engine.kernels.limits import reason_of_machine, reason_of_this_run, say_once
from jax_bptt.engine.kernels.plan import Plan, plan_or_reason
from jax_bptt.engine.loops import scan_backward, scan_forward
from jax_bptt.engine.run import Outputs, Run

_R = TypeVar("_R")
_ALL, _ROWS, _STEPS = -1, 0, 1  # where an array has its first batch axis; parameters have none
_OF_RUN: Any = Run(_ALL, _ROWS, _ROWS, _STEPS)  # type: ignore[arg-type]


def fused_forward(engine: AnyEngine, cell: Any, run: Run, u: Projected, keep_slopes: bool) -> Forward:
    """This is `loops.scan_forward` by a kernel where that is possible (FU1, FU2)."""
    run = run._replace(sequence=run.sequence._replace(xs=None))
    scan = functools.partial(scan_forward, engine, cell, keep_slopes=keep_slopes)
    like: Forward = jax.eval_shape(scan, run, u)
    plan = _plan_or_reason(cell, run.carry, like.states.h.shape, like.slopes, (run, u))
    kernel = functools.partial(forward_by_kernel, cell, plan, keep_slopes=keep_slopes)  # type: ignore[arg-type]
    results: Any = Forward(_ROWS, _STEPS, _STEPS, _STEPS)  # type: ignore[arg-type]
    return _loop(cell, plan, kernel, scan, (_OF_RUN, _STEPS), results)(run, u)


def fused_backward(
    engine: AnyEngine, cell: Any, run: Run, slopes: Slopes, d: Outputs, transform: Transform | None
) -> Swept:
    """This is `loops.scan_backward` by a kernel where that is possible (FU1, FU2)."""
    run = run._replace(carry=d.carry, sequence=run.sequence._replace(xs=None))
    scan = functools.partial(scan_backward, engine, cell, transform=transform)
    shape = jax.tree.leaves(d.ys)[0].shape
    plan = _plan_or_reason(cell, d.carry, shape, slopes, (run, slopes, d))
    if transform is not None:
        plan = "the method changes λ on its way back"
    kernel = functools.partial(backward_by_kernel, cell, plan)  # type: ignore[arg-type]
    results: Any = Swept(_ROWS, _ROWS, _STEPS, _STEPS)  # type: ignore[arg-type]
    places: Any = _OF_RUN, _STEPS, Outputs(_ROWS, _STEPS)  # type: ignore[arg-type]
    return _loop(cell, plan, kernel, scan, places, results)(run, slopes, d)


def _plan_or_reason(cell: Any, carry: State, shape: Shape, slopes: Slopes, arrays: ArrayTree) -> Plan | str:
    if any(a.shape != shape for a in jax.tree.leaves(slopes)):
        return "what linearise returns is not shaped like h"
    return plan_or_reason(cell, carry, shape, arrays)


def _loop(
    cell: Runnable,
    plan: Plan | str,
    kernel: Callable[..., _R],
    scan: Callable[..., _R],
    places: Any,
    results: Any,
) -> Callable[..., _R]:
    """The kernel on a GPU, the scan elsewhere; with places of the batch axes of arguments and results."""
    reason = plan if isinstance(plan, str) else reason_of_machine()
    if reason is not None:
        say_once(cell, reason)
        return scan
    if (reason := reason_of_this_run()) is not None:
        say_once(cell, reason)

    @custom_vmap
    def either(*args: Any) -> _R:
        found: _R = jax.lax.platform_dependent(*args, cuda=kernel, default=scan)  # (FU1), (FU2)
        return found

    @either.def_vmap
    def over_rows(size: int, is_mapped: Any, *args: Any) -> tuple[Any, Any]:  # (FU4)
        of_params = is_mapped[0].params
        if any(jax.tree.leaves(of_params)):
            found = _one_after_the_other(either, tuple(is_mapped), args)
        else:
            to_rows = functools.partial(_to_place, size)
            args = _by_place(to_rows, places, args, tuple(is_mapped))
            found = _by_place(_from_place, results, either(*args))
        return found, jax.tree.map(lambda _: True, found)

    loop = jax.custom_jvp(either)
    loop.defjvp(lambda args, tangents: jax.jvp(scan, args, tangents))  # (FU3)
    return loop


def _by_place(f: Callable[..., Array], places: Any, *trees: Any) -> Any:
    """f is applied to the places and the leaves of trees; a place stands for a whole subtree."""
    return jax.tree.map(lambda at, *below: jax.tree.map(functools.partial(f, at), *below), places, *trees)


def _to_place(size: int, place: int, z: Array, is_mapped: bool) -> Array:
    if place == _ALL:
        return z
    z = z if is_mapped else jnp.broadcast_to(z, (size, *z.shape))
    return jnp.moveaxis(z, 0, place)


def _from_place(place: int, z: Array) -> Array:
    return jnp.moveaxis(z, place, 0)


def _one_after_the_other(f: Callable[..., _R], is_mapped: Any, args: Any) -> _R:
    leaves, structure = jax.tree.flatten(args)
    mapped = jax.tree.leaves(is_mapped)
    moving = [z for z, moves in zip(leaves, mapped, strict=True) if moves]

    def one(now: list[Array]) -> _R:
        rest = iter(now)
        here = [next(rest) if moves else z for z, moves in zip(leaves, mapped, strict=True)]
        return f(*jax.tree.unflatten(structure, here))

    found: _R = jax.lax.map(one, moving)
    return found

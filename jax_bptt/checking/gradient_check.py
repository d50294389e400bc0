"""A gradient is compared with three independent computations, the witnesses; a report names what is wrong.

    E = Σ_t <w_t, h_t> + <w, s_T>, random w: its gradient is what the backward pass makes of w.

    jax.grad       of the plain scan:      ‖g − g′‖ / ‖g′‖                                  (K1)
    differences    <g, v> = <w, h(z + εv) − h(z − εv)> / 2ε,   ε = 1e-5                     (K2)
    forward mode   <g, v> = <w, J v>,   the dot-product identity <Jᵀw, v> = <w, Jv>         (K3)

Every leaf is compared in parts, each a gate or a time step, so that the report can name what is wrong. The
directions v are zero outside the part. (K2) and (K3) are divided by ‖g′‖/√n, the size of <g, v> for a
direction of n numbers ±1/√n. Differences are left out where those with 2ε differ from those with ε, as at a
kink or in a chaotic network. A part whose correct gradient is zero, up to rounding of the whole gradient, is
compared with the whole, and the report says that it proves nothing.

Everything runs in float64, within this call only. Biases, carry and w are random, so none of them is zero.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_bptt.base.checks import (
    as_arrays,
    check_arrays,
    check_batch_shape,
    check_key,
    flag,
    is_floating,
    size,
)
from jax_bptt.base.errors import bad, named
from jax_bptt.base.trees import differentiable, dot, fixed_part
from jax_bptt.base.types import ArrayTree, Foreign, Mark, PRNGKey, Shape
from jax_bptt.cell.cell import Cell
from jax_bptt.cell.step_cell import AnyCell, StepCell
from jax_bptt.checking.checked import Checked, Fixed, normal, random_inputs, rows_of_inputs
from jax_bptt.checking.parts import Point, parts_of
from jax_bptt.checking.report import DIFFERENCES, Line, Report
from jax_bptt.engine.phases import is_pointwise
from jax_bptt.engine.sequence import Sequence
from jax_bptt.gradients.full import full
from jax_bptt.gradients.independence import check_independence
from jax_bptt.gradients.method import GradientMethod
from jax_bptt.networks.network import Network
from jax_bptt.unrolling.arguments import check_method, check_step, parameter_shapes

_ROUNDING = 1e-14  # a part below this share of the whole gradient counts as zero
_DIRECTIONS = 3  # for each part; that a real error is orthogonal to all of them is next to impossible


@named()
def check_gradient(
    cell: AnyCell | Network,
    params: ArrayTree | None = None,
    carry: ArrayTree | None = None,
    xs: Foreign = None,
    *,
    gradient: GradientMethod = full(),
    mask: Mark = None,
    reset: Mark = None,
    cut: Mark = None,
    reverse: bool = False,
    steps: int = 5,
    batch_shape: Shape = (2,),
    key: PRNGKey | None = None,
) -> Report:
    """This checks the gradient through time of a cell or a network against three independent computations.

    <g, v> = <w, J v> = (E(z + εv) − E(z − εv)) / 2ε   (K1-K3)

    Args:
      cell: a cell or a network.
      params, carry, xs: the point at which to check, cast to float64. None uses random values: initial
        parameters with noise added (so that no bias is zero), and a normal carry and inputs. What is no
        floating number in the carry, such as a counter, is that of the initial carry. For a network with an
        encoder of your own xs is needed; integers in it stay as they are.
      gradient: the gradient method to check.
      mask, reset, cut: bool [T, ...], see `unroll`.
      reverse: see `unroll`; for cells only.
      steps: T, used if xs is None.
      batch_shape: the batch axes, used if xs is None.
      key: a key from jax.random.key for all random values; None for jax.random.key(0).

    Returns:
      A `Report` by leaf, gate and time step: print it, or read `.ok` and `.wrong`. A computation that does
      not apply shows as "-". These are finite differences under a cut, which they cannot see, and where
      they are unreliable; and forward mode, if the step holds a jax.custom_vjp.

    Raises:
      ValueError: cell is not a cell or network, or it cannot be run with these arguments.

    >>> import jax_bptt as jb
    >>> check_gradient(jb.lstm(3, 4)).ok
    True
    """
    if not isinstance(cell, (Cell, StepCell, Network)):
        raise bad("cell", "a Cell or a Network", cell, "pass one such as jb.lstm(3, 5)")
    flag("reverse", reverse)
    check_method(gradient)
    size("steps", steps)
    check_batch_shape(batch_shape)
    if key is not None:
        check_key(key)
    if reverse and isinstance(cell, Network):
        raise bad("reverse", "False for a network", reverse, "jb.layer(cell, backward=...) reads backwards")
    cells = [c for one in cell.layers for c in one.cells] if isinstance(cell, Network) else [cell]
    for each in cells:
        parameter_shapes(each)  # a wrong init is named before anything runs
    with jax.enable_x64(True):
        marks = {"mask": mask, "reset": reset, "cut": cut}
        given = [n for n, m in {**marks, "reverse": reverse or None}.items() if m is not None]
        keys = iter(jax.random.split(jax.random.key(0) if key is None else key, 8))
        if params is None:
            params = _with_noise(next(keys), cell.init(next(keys)))
        xs = random_inputs(next(keys), cell, (steps, *batch_shape)) if xs is None else xs
        at = _as_float64(params=params)[0]
        rows = rows_of_inputs(cell, at, carry, Sequence(xs, **marks))
        if 0 in rows:
            raise bad(
                "xs, batch_shape", "at least one row", xs, "a gradient of no rows is zero, right or wrong"
            )
        initial = cell.initial_carry(at, rows)
        if carry is None:
            numbers = _with_noise(next(keys), differentiable(initial), 1.0)
        else:
            numbers = _with_none(carry, where=fixed_part(initial))
        has_encoder = isinstance(cell, Network) and cell.encoder is not None
        xs = as_arrays("xs", xs) if has_encoder else xs
        fixed = Fixed(marks, fixed_part(xs) if has_encoder else None)
        point = _as_float64(params=params, carry=numbers, xs=differentiable(xs) if has_encoder else xs)
        run = Checked(cell, reverse, gradient, rows)
        weights = _with_noise(next(keys), jax.eval_shape(lambda: run.outputs(point, fixed)), 1.0)
        case = " ".join([f"{len(jax.tree.leaves(xs)[0])} steps", *given])
        return _compare(run, case, point, fixed, weights, next(keys))


@named()
def check_cell(cell: AnyCell, *, gradient: GradientMethod = full()) -> Report:
    """This makes all checks that a new cell should pass and returns one report.

    The cases are: one step, which tests the adjoint alone; several steps; masks, resets and cuts; reading
    backwards; no batch axis, and two of them.

    Args:
      cell: the cell.
      gradient: the gradient method.

    Returns:
      A `Report`, as that of `check_gradient`, over all of these cases.

    Raises:
      ValueError: cell is not a cell, or it cannot be run; or the step of a pointwise cell lets units or
        rows read each other, for which some gradient methods would be wrong.

    >>> import jax_bptt as jb
    >>> print(str(check_cell(jb.elman(2, 3))).splitlines()[-1])
    the gradient is right
    """
    if not isinstance(cell, (Cell, StepCell)):
        raise bad("cell", "a Cell", cell, "use jb.check_gradient for a network")
    check_method(gradient)
    params = parameter_shapes(cell)
    check_step(cell, params, (2,))
    if is_pointwise(cell):
        check_independence(cell, jax.tree.leaves(params)[0].dtype)
    pattern = np.arange(12).reshape(6, 2)
    marks: dict[str, np.ndarray] = {"mask": pattern % 5 != 1, "reset": pattern % 7 == 2}
    cases: list[dict[str, Any]] = [
        {"steps": 1},
        {"steps": 3, "batch_shape": ()},
        {"steps": 4, "batch_shape": (2, 1)},
        {"steps": 6, **marks},
        {"steps": 6, **marks, "cut": pattern % 5 == 3, "reverse": True},
    ]
    reports = [check_gradient(cell, gradient=gradient, **case) for case in cases]
    return Report(tuple(line for report in reports for line in report.lines))


@functools.partial(jax.jit, static_argnums=0)
def _gradient(run: Checked, point: Point, fixed: Fixed, weights: ArrayTree) -> Any:
    return jax.grad(run.error, argnums=0, has_aux=True)(point, fixed, weights)


@functools.partial(jax.jit, static_argnums=0)
def _along(
    run: Checked,
    point: Point,
    fixed: Fixed,
    weights: ArrayTree,
    found: Array,
    part: Array,
    sizes: Array,
    key: PRNGKey,
) -> Any:
    """Three gaps are returned for some directions v in every part.

    They are: <g, v> minus the finite differences; the differences with 2ε minus those with ε; <g, v> minus
    forward mode, or None if a step holds a jax.custom_vjp.
    """
    flat, unflatten = jax.flatten_util.ravel_pytree(point)

    def outputs(z: Array) -> Any:
        return run.outputs(unflatten(z), fixed)

    def one(number: Array) -> Any:
        this = number // _DIRECTIONS
        sign = jax.random.rademacher(jax.random.fold_in(key, number), flat.shape, flat.dtype)
        v = jnp.where(part == this, sign / jnp.sqrt(sizes[this]), 0.0)
        ours = jnp.where(part == this, v * found, 0.0).sum()  # a NaN stays in its own part

        def slope(e: float) -> Array:
            changes = jax.tree.map(jnp.subtract, outputs(flat + e * v), outputs(flat - e * v))
            return dot(weights, changes) / (2 * e)  # (K2)

        try:
            forward = ours - dot(weights, jax.jvp(outputs, (flat,), (v,))[1])  # (K3)
        except TypeError:  # JAX refuses forward mode through a jax.custom_vjp
            forward = None
        return ours - slope(1e-5), slope(2e-5) - slope(1e-5), forward

    count = len(sizes) * _DIRECTIONS
    batch = min(count, 64)
    numbers = jnp.arange(-(-count // batch) * batch) % count  # whole batches: one program is compiled
    return jax.tree.map(lambda gaps: gaps[:count], jax.lax.map(one, numbers, batch_size=batch))


def _compare(run: Checked, case: str, point: Point, fixed: Fixed, weights: ArrayTree, key: PRNGKey) -> Report:
    found, outputs = map(_flat, _gradient(run, point, fixed, weights))
    wanted, plain_outputs = map(_flat, _gradient(run.plain(), point, fixed, weights))
    names, part = parts_of(run.cell, point)
    sizes = np.bincount(part).astype(found.dtype)
    gaps = _along(run.plain(), point, fixed, weights, found, part, sizes, key)
    gaps = [g if g is None else _norm(np.reshape(g, (-1, _DIRECTIONS))) for g in gaps]

    norm, output_norm = _norm(wanted), _norm(plain_outputs)
    ratio = _ratio(_norm(outputs - plain_outputs), output_norm, output_norm)
    lines = [Line(case, "outputs", "", (ratio, None, None), False)]
    for number, (leaf, name) in enumerate(names):
        inside = part == number
        size, gap = _norm(wanted[inside]), _norm(found[inside] - wanted[inside])
        typical = (_DIRECTIONS / sizes[number]) ** 0.5  # ‖<g, v>‖ over the directions, if ‖g‖ = 1
        by_differences, unsure, by_forward = (
            None if g is None else _ratio(g[number] / typical, size, norm) for g in gaps
        )
        if fixed.marks["cut"] is not None or not (unsure is not None and unsure < DIFFERENCES):
            by_differences = None
        ratios = _ratio(gap, size, norm), by_differences, by_forward  # (K1)
        lines.append(Line(case, leaf, name, ratios, bool(size <= _ROUNDING * norm)))
    return Report(tuple(lines))


def _norm(z: np.ndarray) -> np.ndarray:
    """This is ‖z‖ over the last axis, divided by the largest entry first: its square may be infinite."""
    largest = np.max(np.abs(z), -1, initial=0, keepdims=True)
    scale = np.where((largest > 0) & np.isfinite(largest), largest, 1)
    norm: np.ndarray = scale[..., 0] * np.linalg.norm(z / scale, axis=-1)
    return norm


def _ratio(gap: np.ndarray, size: np.ndarray, norm: np.ndarray) -> float:
    """This is gap / size, or gap / norm if the part counts as zero; infinite for a NaN."""
    scale = norm if size <= _ROUNDING * norm else size
    ratio = 0.0 if gap == 0 else float(gap / scale) if scale else np.inf
    return ratio if np.isfinite(ratio) else np.inf


def _with_noise(key: PRNGKey, tree: ArrayTree, scale: float = 0.3) -> Any:
    """Normal noise is added to each leaf, less to matrices; a leaf that is only a shape counts as zeros."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))

    def noisy(leaf: Foreign, key: PRNGKey) -> Array:
        start = jnp.zeros(leaf.shape) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf.astype("float64")
        return start + scale * normal(key, leaf.shape) / max(1, leaf.ndim - 1)

    return jax.tree.unflatten(structure, map(noisy, leaves, keys))


def _with_none(tree: ArrayTree, where: ArrayTree) -> Any:
    """The tree with None in place of each leaf that where has; a tree of another kind stays as it is."""
    if not jax.tree.leaves(where):
        return tree
    return jax.tree.map(lambda w, z: z if w is None else None, where, tree, is_leaf=lambda w: w is None)


def _as_float64(**trees: object) -> tuple[Any, ...]:
    """Each tree is cast to float64; a ValueError names a tree that is not floating."""
    for name, tree in trees.items():
        check_arrays(name, tree)
        if not all(map(is_floating, jax.tree.leaves(tree))):
            raise bad(name, "floating arrays", tree, "omit it to use random values")
    return tuple(jax.tree.map(lambda z: jnp.asarray(z, "float64"), tree) for tree in trees.values())


def _flat(tree: ArrayTree) -> np.ndarray:
    return np.asarray(jax.flatten_util.ravel_pytree(tree)[0])

"""Is a gradient right? Three independent witnesses, and a report of what is wrong where.

    E = Σ_t <w_t, h_t> + <w, s_T>, random w: its gradient is what the backward pass makes of w.

    jax.grad       of the plain scan:      ‖g − g′‖ / ‖g′‖                                  (K1)
    differences    <g, v> = (E(z + εv) − E(z − εv)) / 2ε,   ε = 1e-5                        (K2)
    forward mode   <g, v> = <w, J v>,   the dot-product identity <Jᵀw, v> = <w, Jv>         (K3)

Every leaf is compared in parts, a gate or a time step each, with directions v that are zero outside
the part, so that the report names what is wrong. (K2) and (K3) are divided by ‖g′‖/√n, the size of
<g, v> for a direction of n signs ±1/√n. A ratio of norms, never scaled by size.

Everything runs in float64, within this call only. Biases, carry and w are random, none is zero.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_bptt.cell import Cell
from jax_bptt.errors import bad
from jax_bptt.gradients.autodiff import autodiff
from jax_bptt.gradients.full import full
from jax_bptt.gradients.method import GradientMethod
from jax_bptt.network import Network, NetworkParams
from jax_bptt.report import Line, Report
from jax_bptt.step_cell import StepCell
from jax_bptt.unroll import unroll

_DIRECTIONS = 3  # for each part: the chance that a real error is orthogonal to all is nil


def check_gradient(
    cell: Cell | StepCell | Network,
    params: Any = None,
    carry: Any = None,
    xs: Any = None,
    *,
    gradient: GradientMethod = full(),
    mask: Array | None = None,
    reset: Array | None = None,
    cut: Array | None = None,
    reverse: bool = False,
    steps: int = 5,
    batch_shape: tuple[int, ...] = (2,),
    key: Array | None = None,
) -> Report:
    """The gradient through time of a cell or a network, against three witnesses.

    <g, v> = <w, J v> = (E(z + εv) − E(z − εv)) / 2ε   (K1-K3)

    Args:
      cell: a cell or a network.
      params, carry, xs: where to check, cast to float64; None for random ones: initial parameters
        with noise on all (no bias is zero), a carry and inputs that are normal.
      gradient: the gradient method to check.
      mask, reset, cut: bool [T, ...], see `unroll`.
      reverse: see `unroll`; cells only.
      steps: T, where xs is None.
      batch_shape: where xs is None.
      key: a key from jax.random.key for all that is random; None for key(0).

    Returns:
      A `Report` by leaf, gate and time step: print it, or ask `.ok` and `.wrong`. Under a cut there
      are no differences: they do not see where a gradient is cut.

    Raises:
      ValueError: a cell or arguments that cannot be run.

    >>> import jax_bptt as jb
    >>> check_gradient(jb.lstm(3, 4)).ok
    True
    """
    if not isinstance(cell, (Cell, StepCell, Network)):
        raise bad("cell", "a Cell or a Network", cell, "pass one such as jb.lstm(3, 5)")
    if reverse and isinstance(cell, Network):
        raise bad("reverse", "False for a network", reverse, "its layers say which way they read")
    with jax.enable_x64(True):
        marks = {"mask": mask, "reset": reset, "cut": cut}
        given = [n for n, m in {**marks, "reverse": reverse or None}.items() if m is not None]
        keys = iter(jax.random.split(jax.random.key(0) if key is None else key, 8))
        if params is None:
            params = _with_noise(next(keys), cell.init(next(keys)))
        xs = _normal(next(keys), (steps, *batch_shape, _input_size(cell))) if xs is None else xs
        if carry is None:
            rows = np.shape(xs)[1:-1]
            carry = _with_noise(next(keys), cell.initial_carry(_as_float64(params), rows), 1.0)
        point = _as_float64((params, carry, xs))
        run = _Run(cell, reverse, gradient)
        weights = _with_noise(next(keys), jax.eval_shape(lambda: run.outputs(point, marks)), 1.0)
        case = " ".join([f"{len(point[2])} steps", *given])
        return _compare(run, case, point, marks, weights, next(keys))


def check_cell(cell: Cell | StepCell, *, gradient: GradientMethod = full()) -> Report:
    """Everything that a new cell should be checked for, in one report.

    One step, which shows the adjoint alone; several; masks, resets and cuts; backwards; without a
    batch axis and with two.

    Args:
      cell: the cell.
      gradient: the gradient method.

    Returns:
      A `Report`, as of `check_gradient`, over all of these cases.

    Raises:
      ValueError: what is no cell, or cannot be run.

    >>> import jax_bptt as jb
    >>> print(str(check_cell(jb.elman(2, 3))).splitlines()[-1])
    the gradient is right
    """
    if not isinstance(cell, (Cell, StepCell)):
        raise bad("cell", "a Cell", cell, "check a network by jb.check_gradient")
    pattern = np.arange(12).reshape(6, 2)
    marks: dict[str, Any] = {"mask": pattern % 5 != 1, "reset": pattern % 7 == 2}
    cases: list[dict[str, Any]] = [
        {"steps": 1},
        {"steps": 3, "batch_shape": ()},
        {"steps": 4, "batch_shape": (2, 1)},
        {"steps": 6, **marks},
        {"steps": 6, **marks, "cut": pattern % 5 == 3, "reverse": True},
    ]
    reports = [check_gradient(cell, gradient=gradient, **case) for case in cases]
    return Report(tuple(line for report in reports for line in report.lines))


class _Run(NamedTuple):
    """What is differentiated: the outputs of a cell or a network as a function of (params, carry, xs)."""

    cell: Any
    reverse: bool
    gradient: GradientMethod

    def outputs(self, point: Any, marks: Any) -> Any:
        if isinstance(self.cell, Network):
            return self.cell.apply(*point, gradient=self.gradient, **marks)
        return unroll(self.cell, *point, gradient=self.gradient, reverse=self.reverse, **marks)

    def error(self, point: Any, marks: Any, weights: Any) -> tuple[Array, Any]:
        outputs = self.outputs(point, marks)
        return _dot(weights, outputs), outputs

    def plain(self) -> _Run:
        return self._replace(gradient=autodiff())


@functools.partial(jax.jit, static_argnums=0)
def _gradient(run: _Run, point: Any, marks: Any, weights: Any) -> Any:
    return jax.grad(run.error, argnums=0, has_aux=True)(point, marks, weights)


@functools.partial(jax.jit, static_argnums=0)
def _differences(run: _Run, point: Any, marks: Any, weights: Any, v: Any) -> Array:
    def along(v: Any) -> Array:
        def error(e: float) -> Array:
            return run.error(jax.tree.map(lambda z, d: z + e * d, point, v), marks, weights)[0]

        return (error(1e-5) - error(-1e-5)) / 2e-5  # (K2)

    return jax.vmap(along)(v)


@functools.partial(jax.jit, static_argnums=0)
def _forward_mode(run: _Run, point: Any, marks: Any, weights: Any, v: Any) -> Array:
    def along(v: Any) -> Array:
        return jax.jvp(lambda z: run.error(z, marks, weights)[0], (point,), (v,))[1]  # (K3)

    return jax.vmap(along)(v)


def _compare(run: _Run, case: str, point: Any, marks: Any, weights: Any, key: Array) -> Report:
    flat, unflatten = jax.flatten_util.ravel_pytree(point)
    parts = _parts(run.cell, point)
    where = jnp.asarray([inside for *_, inside in parts], flat.dtype)
    signs = jax.random.rademacher(key, (len(parts), _DIRECTIONS, len(flat)), flat.dtype)
    v = (signs * where[:, None] / where.sum(1)[:, None, None] ** 0.5).reshape(-1, len(flat))
    directions = jax.vmap(unflatten)(v)  # some for each part

    found, outputs = map(_flat, _gradient(run, point, marks, weights))
    wanted, plain_outputs = map(_flat, _gradient(run.plain(), point, marks, weights))
    products = [vs[:, inside] @ found[inside] for vs, (*_, inside) in zip(_by_part(v), parts, strict=True)]
    along = np.concatenate(products)  # <g, v>, part by part: a NaN stays in its own
    by_forward = along - np.asarray(_forward_mode(run.plain(), point, marks, weights, directions))
    by_differences = None
    if marks["cut"] is None:
        by_differences = along - np.asarray(_differences(run.plain(), point, marks, weights, directions))

    ratio = _ratio(outputs - plain_outputs, np.linalg.norm(plain_outputs))
    lines = [Line(case, "outputs", "", (ratio, None, None), False)]
    for number, (leaf, part, inside) in enumerate(parts):
        mine = slice(number * _DIRECTIONS, (number + 1) * _DIRECTIONS)
        size = np.linalg.norm(wanted[inside])
        typical = size * (_DIRECTIONS / inside.sum()) ** 0.5
        ratios = (
            _ratio(found[inside] - wanted[inside], size),  # (K1)
            None if by_differences is None else _ratio(by_differences[mine], typical),
            _ratio(by_forward[mine], typical),
        )
        lines.append(Line(case, leaf, part, ratios, bool(size == 0)))
    return Report(tuple(lines))


def _by_part(v: Array) -> list[np.ndarray]:
    return np.split(np.asarray(v), len(v) // _DIRECTIONS)


def _ratio(difference: np.ndarray, size: Any) -> float:
    """‖difference‖ / size; infinite where it is no number, or something stands where zero should."""
    gap = float(np.linalg.norm(difference))
    if size == 0:
        return 0.0 if gap < 1e-9 else np.inf  # differences of E carry its rounding
    return gap / float(size) if np.isfinite(gap) else np.inf


def _parts(cell: Any, point: Any) -> list[tuple[str, str, np.ndarray]]:
    """(leaf, part, where it is in the flat point) for every gate, every time step, every other leaf."""
    gates = jax.tree.leaves(_gate_names(cell, point[0]), is_leaf=lambda n: isinstance(n, _Names))
    leaves = jax.tree_util.tree_leaves_with_path(point)
    sizes = [leaf.size for _, leaf in leaves]
    starts, parts = np.cumsum([0, *sizes]), []
    for number, (path, leaf) in enumerate(leaves):
        name = ("params", "carry", "xs")[path[0].idx] + jax.tree_util.keystr(path[1:])
        where = np.arange(leaf.size).reshape(leaf.shape)
        if name == "xs":
            split = {f"step {t}": where[t] for t in range(len(leaf))}
        else:
            names = gates[number].names if number < len(gates) else ()
            split = {
                f"gate {g}": w for g, w in zip(names, np.split(where, len(names) or 1, -1), strict=False)
            }
        for part, indices in (split or {"": where}).items():
            inside = np.zeros(sum(sizes), bool)
            inside[starts[number] + indices.reshape(-1)] = True
            parts.append((name, part, inside))
    return parts


class _Names(NamedTuple):
    names: tuple[str, ...]


def _gate_names(cell: Any, params: Any) -> Any:
    """params with the names of its gates in the place of each leaf."""
    if isinstance(cell, Network):
        cells = tuple(one.each(_gate_names, p) for one, p in zip(cell.layers, params.cells, strict=True))
        return NetworkParams(cells, jax.tree.map(lambda _: _Names(()), params.readout))

    def of(path: Any, leaf: Array) -> _Names:
        blocks = leaf.shape[-1:] == (len(cell.gate_names) * cell.hidden_size,)
        named = len(cell.gate_names) > 1 and getattr(path[0], "name", "") in ("w_x", "w_h", "b", "b_h")
        return _Names(cell.gate_names if blocks and named else ())

    return jax.tree_util.tree_map_with_path(of, params)


def _input_size(cell: Any) -> int:
    return (cell.layers[0] if isinstance(cell, Network) else cell).input_size


def _with_noise(key: Array, tree: Any, scale: float = 0.3) -> Any:
    """Each leaf (zeros for a mere shape) plus normal noise, less of it in matrices."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))

    def noisy(leaf: Any, key: Array) -> Array:
        start = jnp.zeros(leaf.shape) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf.astype("float64")
        return start + scale * _normal(key, leaf.shape) / max(1, leaf.ndim - 1)

    return jax.tree.unflatten(structure, map(noisy, leaves, keys))


def _normal(key: Array, shape: Any) -> Array:
    return jax.random.normal(key, tuple(shape), "float64")


def _as_float64(tree: Any) -> Any:
    return jax.tree.map(lambda z: jnp.asarray(z, "float64"), tree)


def _flat(tree: Any) -> np.ndarray:
    return np.asarray(jax.flatten_util.ravel_pytree(tree)[0])


def _dot(a: Any, b: Any) -> Any:
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))

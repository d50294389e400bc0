"""The arguments of `unroll` are checked here at trace time, before anything is computed."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import as_arrays, check_like, flag, is_array, is_floating, is_known, is_other_key
from jax_bptt.base.errors import adding, bad, describe, naming, running, shown
from jax_bptt.base.trees import differentiable, with_fields
from jax_bptt.base.types import ArrayTree, DType, Foreign, Mark, Shape, Slopes, State
from jax_bptt.cell.cell import Cell, StepCotangent
from jax_bptt.cell.step_cell import AnyCell, StepCell
from jax_bptt.engine.linear_maps import PointwiseCell, unit_wise
from jax_bptt.engine.phases import engine_of, is_pointwise
from jax_bptt.engine.sequence import Sequence, Unencoded
from jax_bptt.gradients.full import full
from jax_bptt.gradients.method import GradientMethod
from jax_bptt.unrolling.inputs import Sizes, check_x, known_batch_axes

_Owner = TypeVar("_Owner")


def check_cell(cell: object) -> None:
    """cell must be a `Cell` or a `StepCell`, or a ValueError is raised."""
    if not isinstance(cell, (Cell, StepCell)):
        raise bad("cell", "a Cell", cell, "make one by jb.elman(input_size, hidden_size) or jb.make_cell")


def check_unroll(
    cell: Foreign,
    params: Foreign,
    carry: Foreign,
    sequence: Sequence,
    gradient: Foreign = full(),
    reverse: Foreign = False,
) -> tuple[Any, Any, Sequence]:
    """params, carry and sequence of `unroll` are returned as arrays; a wrong one raises a ValueError."""
    check_cell(cell)
    flag("reverse", reverse)
    check_method(gradient)
    sizes = Sizes(parameter_shapes(cell), cell.input_size)
    params, carry, sequence = check_inputs("cell", cell, sizes, params, carry, sequence)
    if gradient.backward is not None:  # without one, JAX differentiates, and any step will do
        check_step(gradient.on_engine(cell), params, sequence.rows)
    return params, carry, sequence


def check_inputs(
    name: str,
    owner: Foreign,
    sizes: Sizes,
    params: Foreign,
    carry: Foreign,
    sequence: Sequence,
) -> tuple[Any, Any, Sequence]:
    """params, carry and sequence must fit each other and their owner, a cell or a network.

    They are returned as arrays.
    """
    params, carry = as_arrays("params", params), as_arrays("carry", carry)
    dtype = check_params(params, sizes.params, f"make them by {name}.init(key)")
    given = {"mask": sequence.mask, "reset": sequence.reset, "cut": sequence.cut}
    known = known_batch_axes(carry, [(mark, 1) for mark in given.values()])
    sequence = sequence._replace(xs=sizes.read("xs", params, sequence.xs, dtype, known))
    rows = sequence.rows
    axes = (
        f"xs is {sizes.axes}, time first: it is read as T = {sequence.steps} steps of "
        f"batch {rows}. If your batch comes first, pass xs.swapaxes(0, 1); else "
    )
    check_carry(name, owner, params, carry, rows, axes)
    mask, reset, cut = (check_mark(name, mark, sequence.leading) for name, mark in given.items())
    starts = _check_starts(owner, params, sequence, dtype)
    return params, carry, sequence._replace(mask=mask, reset=reset, cut=cut, starts=starts)


def _check_starts(owner: Foreign, params: ArrayTree, sequence: Sequence, dtype: DType) -> Any:
    """starts must be None, or like the initial carry of T steps, with resets."""
    if sequence.starts is None:
        return None
    if sequence.reset is None:
        raise bad("starts", "resets, which go back to them", "no reset", "pass reset, bool [T, ...]")
    starts: Any = as_arrays("starts", sequence.starts)
    initial = jax.eval_shape(lambda: owner.initial_carry(params, sequence.leading))
    fix = "pass a carry for each step, as jb.unroll_states returns; any numbers where reset is False"
    check_like("starts", fill_missing_carry(starts, initial), initial, dtype, fix)
    return starts


def check_one_step(
    name: str,
    owner: Foreign,
    sizes: Sizes,
    params: Foreign,
    carry: Foreign,
    x: Foreign,
    mask: Foreign,
    reset: Foreign,
) -> tuple[Any, Any, Sequence]:
    """params, carry and a sequence of one step are returned; arguments are as for `check_inputs`."""
    params, carry, x = as_arrays("params", params), as_arrays("carry", carry), as_arrays("x", x)
    dtype = check_params(params, sizes.params, f"make them by {name}.init(key)")
    if sizes.encoder is None:
        xs: Array | Unencoded = check_x(x, sizes.input_size, dtype)[None]
    else:
        known = known_batch_axes(carry, [(mask, 0), (reset, 0)])
        with adding("to x an axis for time has been added in front, of length 1"):
            one_step = jax.tree.map(lambda z: z[None] if is_array(z) else z, x)
            xs = sizes.read("x", params, one_step, dtype, known)
    rows = xs.shape[1:-1]
    check_carry(name, owner, params, carry, rows)
    marks = (check_mark("mask", mask, rows), check_mark("reset", reset, rows))
    return params, carry, Sequence(xs, *(None if mark is None else mark[None] for mark in marks))


def check_carry(
    name: str, owner: Foreign, params: ArrayTree, carry: Foreign, rows: Shape, axes: str = ""
) -> None:
    """A carry must be None or like the initial one; axes says for an error how the axes of xs were read."""
    if carry is None:
        return
    dtype = jax.tree.leaves(params)[0].dtype
    initial = jax.eval_shape(lambda: owner.initial_carry(params, rows))
    fix = f"{axes}make the carry by {name}.initial_carry(params, {rows})"
    whole = fill_missing_carry(carry, initial)
    came: Any = jax.tree.structure(whole)
    if came != jax.tree.structure(initial):  # the axes of the batch are then not the question
        fix = f"make it by {name}.initial_carry(params, {rows})"
    check_like("carry", whole, initial, dtype, fix)


def fill_missing_carry(carry: object, initial: object) -> Any:
    """Where the carry of a cell is None, the initial one takes its place, if the structures agree."""

    def filled(c: object, i: object) -> Foreign:
        return i if c is None and (hasattr(i, "_fields") or i == ()) else c

    try:
        return jax.tree.map(filled, carry, initial, is_leaf=lambda c: c is None)
    except ValueError:  # of another structure: the check that follows names what is wrong
        return carry


def check_mark(name: str, mark: Foreign, shape: Shape) -> Mark:
    """A mask, reset or cut must be a bool array [T, ...], or None."""
    if mark is None:
        return None
    mark = as_arrays(name, mark)
    if not is_array(mark) or mark.shape != shape or mark.dtype != bool:
        fix = "one bool for each step and row of xs; a mask of lengths is jb.mask_of_lengths(lengths, T)"
        raise bad(name, f"bool[{shown(shape)}]", mark, fix)
    found: Array = mark
    return found


def with_dtype(dtype: object, owner: _Owner, params: ArrayTree) -> _Owner:
    """The result is the cell or readout with matrix products whose operands have this dtype."""
    if dtype is None:
        return owner
    own = jax.tree.leaves(params)[0].dtype
    try:
        asked = jnp.dtype(dtype) if isinstance(dtype, (str, type, np.dtype)) else None
    except TypeError:
        asked = None
    if asked is not None and asked == own:  # NumPy would take None for float64
        return owner
    if asked is None or asked.name not in ("bfloat16", "float32") or asked.itemsize >= own.itemsize:
        fix = "pass jnp.bfloat16, or None to compute in the dtype of params"
        if asked == jnp.float16:
            fix = (
                f"{fix}; in float16 a derivative below 6e-8 is zero, and that of a mean loss is often smaller"
            )
        came = dtype if asked is None else asked.name
        raise bad("dtype", f"bfloat16 or float32, not wider than params, {own}", came, fix)
    if not getattr(owner, "takes_dtype", hasattr(owner, "dtype")):
        fix = "round the operands inside your step; make_cell and the built-in pointwise cells do it for you"
        raise bad("dtype", f"None for a cell whose step makes its own products, {owner}", asked.name, fix)
    return with_fields(owner, dtype=asked)


def check_method(gradient: object) -> None:
    """gradient must be a gradient method, or a ValueError is raised."""
    if isinstance(gradient, GradientMethod):
        return
    is_found = isinstance(getattr(gradient, "gradient", None), GradientMethod)  # by jb.fastest
    fix = "pass its field: gradient=found.gradient" if is_found else "pass jb.full(), with parentheses"
    raise bad("gradient", "a gradient method", gradient, fix)


def check_params(params: Foreign, shapes: ArrayTree, fix: str) -> DType:
    """params must have these shapes and one floating dtype, which is returned."""
    first: Foreign = next(iter(jax.tree.leaves(params)), None)
    if not is_floating(first):
        raise bad("params", f"floating arrays {describe(shapes)}", params, fix)
    dtype: DType = first.dtype
    check_like("params", params, shapes, dtype, fix)
    return dtype


@cached()
def parameter_shapes(cell: AnyCell) -> ArrayTree:
    """The result is the shapes of what cell.init makes; a parameter of unknown use raises a ValueError."""

    def init() -> ArrayTree:
        with running("init"):
            return cell.init(jax.random.key(0))

    with naming("init", "a pytree of floating arrays", "keep other values in a closure"):
        params = jax.eval_shape(init)
    if not is_pointwise(cell):
        dtypes = {p.dtype for p in jax.tree.leaves(params)}
        if len(dtypes) != 1 or not jnp.issubdtype(next(iter(dtypes)), jnp.floating):
            fix = "init must return a pytree of floating arrays of one dtype"
            raise bad("params", f"floating arrays {describe(params)}", params, fix)
        return params
    names, wide = getattr(params, "_fields", ()), cell.gates * cell.hidden_size
    if not {"w_x", "w_h"} <= set(names):
        raise bad("init", "a NamedTuple with w_x, w_h", params, "return jb.Params or one with more fields")
    layout = {"w_x": (cell.input_size, wide), "w_h": (cell.hidden_size, wide), "b": (wide,), "b_h": (wide,)}
    for name, p in zip(names, params, strict=True):
        shape, wanted = getattr(p, "shape", None), layout.get(name, (cell.hidden_size,))
        if shape != wanted and not (name == "w_h" and _is_without_matrix(cell, shape)):
            fix = "parameters other than w_x, w_h, b, b_h must have one number per unit"
            if name == "w_h":
                fix = "return a matrix, the blocks of n heads, [n, H/n, G*H/n], or one number per unit, [H]"
            raise bad(f"init: {name}", f"shape [{shown(wanted)}]", p, fix)
    return params


def _is_without_matrix(cell: PointwiseCell, shape: Shape | None) -> bool:
    """Are these the shapes of a w_h of one number per unit, or of the blocks of some heads?"""
    hidden, heads = cell.hidden_size, shape[0] if shape else 0
    if heads == 0 or hidden % heads:
        return False
    return shape in ((hidden,), (heads, hidden // heads, cell.gates * hidden // heads))


def check_step(cell: AnyCell, params: ArrayTree, rows: Shape) -> None:
    """One step and its adjoint are traced, to check shapes and that no traced value comes from outside."""
    leaves, structure = jax.tree.flatten(params)
    some_rows = tuple(n if is_known(n) else 2 for n in rows)  # a step is the same for any number of rows
    _check_step(cell, structure, tuple(jax.ShapeDtypeStruct(p.shape, p.dtype) for p in leaves), some_rows)


@cached()
def _check_step(
    cell: AnyCell, structure: jax.tree_util.PyTreeDef, leaves: tuple[jax.ShapeDtypeStruct, ...], rows: Shape
) -> None:
    dtype, shapes = leaves[0].dtype, jax.tree.unflatten(structure, leaves)

    def once(params: ArrayTree, x: Array) -> ArrayTree:
        engine = engine_of(cell)
        with running("initial_carry"):
            s_prev = cell.initial_carry(params, rows)
        check_initial_carry(cell, s_prev, rows, dtype)
        with running("project"):
            u = engine.project(cell, params, x)
        v = engine.recur(cell, params, s_prev)
        with running("step"):
            s = engine.step(cell, params, s_prev, u, v).state
        check_like("step", s, s_prev, dtype, "return the carry type, every leaf like the carry's")
        # s_prev stands in for every later state and λ: only the shapes count here
        lam = differentiable(s_prev)
        with running("linearise"):
            a = engine.linearise(cell, params, s_prev, u, v, s_prev)
        if is_pointwise(cell):
            check_adjoint(cell, params, a, s_prev)
        prepared = engine.before_sweep(cell, params)
        with running("adjoint"):
            towards = engine.backward_step(cell, params, prepared, a, lam, ())
        fix = "return the cotangent of s_prev, like the carry; None for what is no floating array"
        check_like("adjoint", towards, lam, dtype, fix)
        every, every_a, every_lam = jax.tree.map(lambda z: jnp.asarray(z)[None], (s_prev, a, lam))
        with running("contract"):
            d_params, d_x = engine.contract(cell, params, every, x[None], every_a, every_lam, ())
        check_like("contract", d_params, params, dtype, "return the gradient of params, like params")
        return towards, d_params, d_x

    x = jax.ShapeDtypeStruct((*rows, cell.input_size), dtype)
    captured = [c for c in jax.make_jaxpr(once)(shapes, x).consts if isinstance(c, jax.core.Tracer)]
    if captured:
        came = f"a captured tracer {describe(captured[0])}"
        fix = "make values that change, or that you differentiate by, a part of params (cell.init)"
        raise bad("cell", "functions of their arguments alone", came, fix)


def check_initial_carry(cell: AnyCell, carry: object, rows: Shape, dtype: DType) -> None:
    """Every leaf must have the batch axes first, and this dtype if it is floating; h must be [..., H]."""
    h = {"h": jax.ShapeDtypeStruct((*rows, cell.hidden_size), dtype)}
    came = {"h": getattr(carry, "h", None)}
    check_like("initial_carry", came, h, dtype, "return a NamedTuple with h [..., H]")
    for path, leaf in jax.tree_util.tree_leaves_with_path(carry):
        name, shape = f"initial_carry{jax.tree_util.keystr(path)}", shown((*rows, "..."))
        is_number = jnp.issubdtype(leaf.dtype, jnp.inexact)
        if leaf.shape[: len(rows)] != rows or (is_number and leaf.dtype != dtype):
            fix = "put the batch axes first; every floating leaf of a carry has the dtype of params"
            raise bad(name, f"{dtype if is_number else leaf.dtype}[{shape}]", leaf, fix)
        if is_other_key(leaf.dtype):
            fix = "jax.random.key(seed, impl='threefry2x32') makes one; others draw other numbers in jax.vmap"
            raise bad(name, "keys of the kind threefry", leaf, fix)


def check_adjoint(cell: PointwiseCell, params: ArrayTree, a: Slopes, s: State) -> None:
    """The adjoint of a pointwise step must return what the engine reads, or a ValueError is raised."""
    units = unit_wise(cell, params, s.h.ndim)
    with running("adjoint"):
        towards = cell.adjoint(units, a, s)
    v = (s.h,) * cell.gates if cell.layout.recurrent else ()
    wanted = StepCotangent(s, (s.h,) * cell.gates, v, dict.fromkeys(units, s.h))
    check_like("adjoint", towards, wanted, s.h.dtype, "return a StepCotangent, every leaf like h")

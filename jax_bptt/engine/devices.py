"""Every device runs its own rows; sums over devices are taken once, outside every loop.

    E = Σ_d E_d,   dE/dθ = Σ_d dE_d/dθ,   d the devices                                       (G1)

By default XLA would compute Σ_d where dE/dθ is accumulated: in every iteration of the loop over chunks. To
avoid that, everything runs in one jax.shard_map over the mesh. Each device has its own copy of θ, all loops
run on local rows as on one device, and the sum over devices comes last.

Array shardings determine which device holds which rows. On a mesh with Explicit axes the type of xs has its
sharding, and the rows stay where they are. With Auto axes the type has no sharding, so rows are split by
every axis of the mesh, in order, whose size divides the number of rows that a device still has. Parameters
that are split over devices are gathered before the first loop. On Explicit axes they are known to be: if
each device has a piece of a parameter, split over all devices that split rows, it gets that piece of the sum
(a reduce-scatter, half of the bytes of an all-reduce). On Auto axes that is left to XLA.

Inside a jax.shard_map of the caller the same sums go over the axes along which the rows vary and the
parameters do not. If the parameters vary too, no sums are taken across devices. The same holds with
check_vma=False, because JAX then does not track what varies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

import jax
from jax import Array
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_bptt.base.types import ArrayTree, Shape, Tree
from jax_bptt.engine.sequence import Unencoded

AnyMesh: TypeAlias = AbstractMesh | Mesh
Axes: TypeAlias = tuple[str, ...] | str | None  # the mesh axes that split one axis of an array

ALL, ROWS, STEPS = "all", "rows", "steps"  # kinds: θ and E; arrays [..., features]; arrays [T, ..., features]


class Rows(NamedTuple):
    """This says how rows are split over a mesh.

    Attributes:
      mesh: the abstract mesh.
      axes: for each batch axis the mesh axes that split it, or None.
    """

    mesh: AbstractMesh
    axes: tuple[Axes, ...]

    def spec(self, kind: str) -> P:
        """The result is the PartitionSpec of an array of this kind."""
        return {ALL: P(), ROWS: P(*self.axes), STEPS: P(None, *self.axes)}[kind]


def rows_of(xs: Array | Unencoded, *others: object) -> Rows | None:
    """How are the rows of xs, [T, ..., I], split? None on one device, and inside a jax.shard_map.

    The mesh is that of xs, or else that of another array, or else that of jax.set_mesh.
    """
    meshes = [jax.typeof(z).sharding.mesh for z in jax.tree.leaves((xs, others))]
    mesh = next((m for m in (*meshes, jax.sharding.get_abstract_mesh()) if not m.empty), None)
    if mesh is None or AxisType.Manual in mesh.axis_types:
        return None
    rows = xs.shape[1:-1]
    sharding = jax.typeof(jax.tree.leaves(xs)[0]).sharding
    if AxisType.Explicit in sharding.mesh.axis_types:
        return Rows(mesh, tuple(sharding.spec[1 : 1 + len(rows)]))
    axes = choose_axes(rows, mesh)
    return Rows(mesh, axes) if num_parts(mesh, axes) > 1 or AxisType.Explicit in mesh.axis_types else None


def choose_axes(rows: Shape, mesh: AnyMesh) -> tuple[Axes, ...]:
    """Each batch axis is split by every mesh axis that divides its length on a device so far."""
    axes: list[tuple[str, ...] | None] = []
    left = list(mesh.axis_names)
    for n in rows:
        by: tuple[str, ...] = ()
        for name in left:
            if n % num_parts(mesh, [(*by, name)]) == 0:
                by = (*by, name)
        left = [name for name in left if name not in by]
        axes.append(by or None)
    return tuple(axes)


def num_parts(mesh: AnyMesh, axes: Iterable[Axes]) -> int:
    """Into how many parts do these axes split the rows?"""
    return math.prod([mesh.shape[name] for names in axes for name in names or ()])


def on_devices(
    f: Callable[..., Any], rows: Rows | None, inputs: tuple[str, ...], outputs: tuple[str | ArrayTree, ...]
) -> Callable[..., Any]:
    """The result runs f on every device, each with its own rows.

    Args:
      f: a function written for one device; it returns a tuple.
      rows: from `rows_of`; None for f itself.
      inputs: the kind of each argument, ALL, ROWS or STEPS.
      outputs: the kind of each result, or its `pieces_of`; a result of kind ALL must be equal on all devices.

    Returns:
      The function of arrays with the rows of all devices.
    """
    if rows is None:
        return f
    in_specs = tuple(map(rows.spec, inputs))
    out_specs = tuple(rows.spec(kind) if isinstance(kind, str) else kind for kind in outputs)
    sharded = jax.shard_map(f, mesh=rows.mesh, in_specs=in_specs, out_specs=out_specs)

    def run(*args: object) -> Any:
        return sharded(*(_placed(arg, rows.mesh, spec) for arg, spec in zip(args, in_specs, strict=True)))

    return run


def pieces_of(tree: ArrayTree, rows: Rows | None) -> ArrayTree:
    """The PartitionSpec of each array that is split over just the devices that split the rows; P() of others.

    An array on Auto axes is not known to be split.
    """
    of_rows = _names(rows.axes) if rows else set()

    def one(z: Array) -> P:
        spec = jax.typeof(z).sharding.spec
        return spec if of_rows and _names(spec) == of_rows else P()

    return jax.tree.map(one, tree)


def _names(axes: Iterable[Axes]) -> set[str]:
    """The names of all these axes."""
    return {name for names in axes for name in ((names,) if isinstance(names, str) else names or ())}


def _placed(tree: Tree, mesh: AnyMesh, spec: P) -> Tree:
    """On Explicit axes the tree is resharded as jax.shard_map needs it; on Auto axes XLA does that."""
    if AxisType.Explicit not in mesh.axis_types:
        return tree
    return jax.tree.map(lambda z: jax.reshard(z, NamedSharding(mesh, spec)), tree)


def replicate(tree: Tree) -> Tree:
    """On Explicit axes every device gets the whole tree, for code that does not split rows."""
    return jax.tree.map(lambda z: _placed(z, jax.typeof(z).sharding.mesh, P()), tree)


def placed_like(tree: Tree, like: Tree) -> Tree:
    """On Explicit axes the tree gets the shardings of another tree."""

    def one(z: Array, other: Array) -> Array:
        sharding = jax.typeof(other).sharding
        return jax.reshard(z, sharding) if AxisType.Explicit in sharding.mesh.axis_types else z

    return jax.tree.map(one, tree, like)


def varying(tree: ArrayTree) -> set[str]:
    """Along which axes of a jax.shard_map does any leaf differ from device to device?"""
    return {a for z in jax.tree.leaves(tree) for a in jax.typeof(z).manual_axis_type.varying}


def is_split(tree: ArrayTree) -> bool:
    """Are arrays of this tree split over the Explicit axes of a mesh?"""
    shardings = [jax.typeof(z).sharding for z in jax.tree.leaves(tree)]
    return any(AxisType.Explicit in s.mesh.axis_types and any(s.spec) for s in shardings)


def to_local(tree: Tree, like: ArrayTree) -> Tree:
    """Each device gets its own copy of a tree, along all axes along which any leaf of like varies."""
    axes = varying(like)
    return jax.tree.map(lambda z: jax.lax.pcast(z, tuple(sorted(axes - varying(z))), to="varying"), tree)


def reduce_axes(rows: ArrayTree, params: ArrayTree) -> tuple[str, ...]:
    """Σ_d goes over the axes along which the rows differ from device to device, and θ does not."""
    return tuple(sorted(varying(rows) - varying(params)))


def typed_as(tree: Tree, like: Tree) -> Tree:
    """In a jax.shard_map of the caller, derivatives get the types of what they are derivatives by.

    Where each device has a part of a derivative by an array that is the same on all devices, the parts are
    summed (G1).
    """

    def one(z: Array, other: Array) -> Array:
        axes = tuple(sorted(varying(z) - varying(other)))
        return to_local(jax.lax.psum(z, axes) if axes else z, other)

    return jax.tree.map(one, tree, like)


def sum_over_devices(tree: Tree, axes: tuple[str, ...]) -> Tree:
    """Σ_d is computed over these axes; a value that is equal on all devices counts once for each."""
    if not axes:
        return tree
    if not varying(tree):  # equal values need no communication: their sum is a multiple
        return jax.tree.map(lambda z: z * jax.lax.axis_size(axes), tree)
    return jax.lax.psum(to_local(tree, tree), axes)  # (G1)


def sum_in_pieces(
    whole: ArrayTree, tree: Tree, axes: tuple[str, ...], pieces: ArrayTree
) -> tuple[ArrayTree, Tree]:
    """Σ_d is computed over these axes; of an array in pieces, see `pieces_of`, each device gets its own."""
    tree = to_local(tree, tree)
    others = jax.tree.map(lambda z, spec: () if any(spec) else z, tree, pieces)
    whole, others = sum_over_devices((whole, others), axes)
    return whole, jax.tree.map(
        lambda z, spec, sum_: _own_piece(z, spec) if any(spec) else sum_, tree, pieces, others
    )


def _own_piece(z: Array, spec: P) -> Array:
    for axis, names in enumerate(spec):
        if names:
            z = jax.lax.psum_scatter(z, names, scatter_dimension=axis, tiled=True)  # (G1)
    return z

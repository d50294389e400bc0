"""Rows over devices: each runs rows of its own, and sums over rows meet once, outside every loop.

    E = Σ_d E_d,   dE/dθ = Σ_d dE_d/dθ,   d the devices                                       (G1)

Left to itself XLA forms Σ_d where dE/dθ is added up: in the loop over chunks, in each iteration. So what
is run is one jax.shard_map over the mesh: θ enters it as each device's own copy, all loops run on local
rows as on one device, and the sum over devices is the last thing that is done.

Which rows are where, the arrays say. On a mesh of Explicit axes their type does: rows stay as xs has
them. On one of Auto axes no type says how an array lies, so rows are split by every axis of the mesh, in
order, that divides what is left of them. Parameters that are spread over devices are gathered before
the first loop.

In a jax.shard_map of the caller's own the same sums go over the axes by which the rows vary and the
parameters do not; where the parameters vary too, every device is on its own. So it is with check_vma=False,
under which JAX does not tell what varies.
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

AnyMesh: TypeAlias = AbstractMesh | Mesh
Axes: TypeAlias = tuple[str, ...] | str | None  # the mesh axes that one axis of an array is split by

ALL, ROWS, STEPS = "all", "rows", "steps"  # θ and E; arrays [..., features]; arrays [T, ..., features]


class Rows(NamedTuple):
    """How rows lie on a mesh.

    Attributes:
      mesh: the abstract mesh.
      axes: for each batch axis the mesh axes that it is split by, or None.
    """

    mesh: AbstractMesh
    axes: tuple[Axes, ...]

    def spec(self, kind: str) -> P:
        """How an array of this kind lies."""
        return {ALL: P(), ROWS: P(*self.axes), STEPS: P(None, *self.axes)}[kind]


def rows_of(xs: Array, *others: object) -> Rows | None:
    """How the rows of xs, [T, ..., I], are split; None on one device, and inside a jax.shard_map.

    The mesh is that of xs, or else of another array, or else of jax.set_mesh.
    """
    meshes = [jax.typeof(z).sharding.mesh for z in jax.tree.leaves((xs, others))]
    mesh = next((m for m in (*meshes, jax.sharding.get_abstract_mesh()) if not m.empty), None)
    if mesh is None or AxisType.Manual in mesh.axis_types:
        return None
    of_xs = jax.typeof(xs).sharding
    if AxisType.Explicit in of_xs.mesh.axis_types:
        return Rows(mesh, tuple(of_xs.spec[1:-1]))
    axes = choose_axes(xs.shape[1:-1], mesh)
    return Rows(mesh, axes) if num_parts(mesh, axes) > 1 or AxisType.Explicit in mesh.axis_types else None


def choose_axes(rows: Shape, mesh: AnyMesh) -> tuple[Axes, ...]:
    """The mesh axes that each batch axis is split by: every one that divides what is left of it."""
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
    """How many parts rows are in, split like this."""
    return math.prod([mesh.shape[name] for names in axes for name in names or ()])


def on_devices(
    f: Callable[..., Any], rows: Rows | None, inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> Callable[..., Any]:
    """f, each device with its own rows.

    Args:
      f: of arrays, as on one device; it returns a tuple.
      rows: from `rows_of`; None for f itself.
      inputs: the kind of each argument, ALL, ROWS or STEPS.
      outputs: the kind of all that f returns; what is of ALL must be equal on all devices.

    Returns:
      The function of whole arrays.
    """
    if rows is None:
        return f
    taken, made = (tuple(map(rows.spec, kinds)) for kinds in (inputs, outputs))
    spread = jax.shard_map(f, mesh=rows.mesh, in_specs=taken, out_specs=made)

    def run(*args: object) -> Any:
        return spread(*(_placed(arg, rows.mesh, spec) for arg, spec in zip(args, taken, strict=True)))

    return run


def _placed(tree: Tree, mesh: AnyMesh, spec: P) -> Tree:
    """The tree where jax.shard_map wants it; on Auto axes that is XLA's own affair."""
    if AxisType.Explicit not in mesh.axis_types:
        return tree
    return jax.tree.map(lambda z: jax.reshard(z, NamedSharding(mesh, spec)), tree)


def replicate(tree: Tree) -> Tree:
    """A tree for what is not run by rows: on Explicit axes all of it on every device."""
    return jax.tree.map(lambda z: _placed(z, jax.typeof(z).sharding.mesh, P()), tree)


def placed_like(tree: Tree, like: Tree) -> Tree:
    """A tree that lies as another does, where Explicit axes say how."""

    def one(z: Array, other: Array) -> Array:
        lies = jax.typeof(other).sharding
        return jax.reshard(z, lies) if AxisType.Explicit in lies.mesh.axis_types else z

    return jax.tree.map(one, tree, like)


def varying(tree: ArrayTree) -> set[str]:
    """The axes of a jax.shard_map by which any leaf differs from device to device."""
    return {a for z in jax.tree.leaves(tree) for a in jax.typeof(z).manual_axis_type.varying}


def to_local(tree: Tree, like: ArrayTree) -> Tree:
    """A tree as each device's own copy, by all axes by which any leaf of like varies."""
    axes = varying(like)
    return jax.tree.map(lambda z: jax.lax.pcast(z, tuple(sorted(axes - varying(z))), to="varying"), tree)


def reduce_axes(rows: ArrayTree, params: ArrayTree) -> tuple[str, ...]:
    """The axes over which Σ_d goes: those by which the rows differ from device to device, and θ does not."""
    return tuple(sorted(varying(rows) - varying(params)))


def sum_over_devices(tree: Tree, axes: tuple[str, ...]) -> Tree:
    """Σ_d, over these axes; what is the same on every device counts once for each."""
    if not axes:
        return tree
    if not varying(tree):
        return jax.tree.map(lambda z: z * jax.lax.axis_size(axes), tree)
    return jax.lax.psum(to_local(tree, tree), axes)  # (G1)

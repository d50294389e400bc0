"""Shardings place the state and the data of training on a mesh of devices.

Use them with jax.device_put and to restore checkpoints. θ stands for the parameters.

    data parallel     θ and the optimizer on every device, rows split                         (SH1)
    fully sharded     of θ and the optimizer each of N devices keeps 1/N of every array that
                      has an axis which N divides; θ is gathered before the first loop        (SH2)

The program stays the same, see `devices`: every axis of the mesh splits rows. Splitting a recurrent layer by
hidden units instead would require gathering h in every step.
"""

from __future__ import annotations

import jax
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_bptt.base.checks import check_arrays, integer, is_array
from jax_bptt.base.errors import bad, named
from jax_bptt.base.types import Foreign, Tree
from jax_bptt.engine.devices import choose_axes, num_parts
from jax_bptt.training.state import TrainState


@named()
def by_rows(mesh: Mesh, tree: Tree, axis: int = 1) -> Tree:
    """These shardings split arrays by the rows of the batch.

    Args:
      mesh: from jax.make_mesh; all its axes split rows.
      tree: a pytree of arrays, or of their shapes, such as a `Batch`.
      axis: the axis of each array that counts its rows: 1 in a batch, [T, B, ...]; 2 in the batches of
        `make_train_steps`, [K, T, B, ...]; 0 in a carry, and in targets with `last`.

    Returns:
      A NamedSharding for each array. An array without this axis, such as a key, is on every device. Pass
      them to jax.device_put(tree, ...); or, if each process makes its own rows, to
      jax.make_array_from_process_local_data, one array at a time.

    Raises:
      ValueError: mesh is not a Mesh, tree holds something else than arrays and shapes, or the number of
        rows is not divisible by the number of devices.

    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> by_rows(mesh, jb.Batch(jnp.ones((7, 8, 3)), jnp.ones((7, 8, 2)))).xs.spec
    P(None, 'data')
    """
    _check_mesh(mesh)
    axis = integer("axis", axis, 0, 31)

    def lies(z: Foreign) -> NamedSharding:
        if not isinstance(z, jax.ShapeDtypeStruct):
            check_arrays("tree", z)
            if not is_array(z):
                raise bad("tree", "arrays or their shapes", z, "pass for example a jb.Batch")
        if len(z.shape) <= axis:
            return NamedSharding(mesh, P())
        if z.shape[axis] % mesh.size:
            fix = f"choose a batch size divisible by {mesh.size}, the number of devices"
            raise bad("tree", f"a multiple of {mesh.size} rows on axis {axis}", z, fix)
        return NamedSharding(mesh, P(*[None] * axis, mesh.axis_names))

    return jax.tree.map(lies, tree)


@named()
def data_parallel(mesh: Mesh, state: TrainState) -> TrainState:
    """These shardings put parameters and optimizer on every device and split the carry by rows.

    Args:
      mesh: from jax.make_mesh.
      state: from `init_train_state`, or its shapes by jax.eval_shape.

    Returns:
      A `TrainState` of NamedShardings. Pass it to jax.device_put(state, ...), or as out_shardings to a
      jitted `init_train_state` if the whole state does not fit on one device.

    Raises:
      ValueError: mesh is not a Mesh, state is not a `TrainState`, or the number of rows is not divisible by
        the number of devices.

    >>> net = jb.network([jb.elman(3, 4)], jb.readout(4, 2))
    >>> state = jb.init_train_state(jax.random.key(0), net, optax.sgd(0.1), (8,))
    >>> state = jax.device_put(state, data_parallel(jax.make_mesh((1,), ("data",)), state))
    >>> state.carry[0].h.sharding.spec, state.params.readout.w_y.sharding.spec
    (P('data',), P())
    """
    _check(mesh, state)
    everywhere = jax.tree.map(lambda z: NamedSharding(mesh, P()), state)  # (SH1)
    return everywhere._replace(carry=_carry_by_rows(mesh, state.carry))


@named()
def fully_sharded(mesh: Mesh, state: TrainState) -> TrainState:
    """These shardings split parameters, optimizer and carry, so that each device holds a part of them.

    The carry is split by rows. Any other array is split on its largest axis whose size is divisible by the
    number of devices; an array without such an axis is on every device.

    Args:
      mesh, state: as for `data_parallel`.

    Returns:
      A `TrainState` of NamedShardings, used as that of `data_parallel`. A training step gathers the
      parameters before its first loop. On Explicit axes each device gets its pieces of the gradient only, by
      a reduce-scatter after the last loop, and its norm is that of the pieces; on Auto axes the whole
      gradient is summed, as in `data_parallel`. Some optimizers combine several numbers of a parameter to
      update one of them (optax.adafactor, sm3, adaptive_grad_clip, contrib.muon); these need a mesh of Auto
      axes.

    Raises:
      ValueError: as for `data_parallel`.

    Reference: Rajbhandari et al. 2020, ZeRO: memory optimizations toward training trillion parameter
    models (its stage 3).

    >>> net = jb.network([jb.elman(3, 4)], jb.readout(4, 2))
    >>> state = jb.init_train_state(jax.random.key(0), net, optax.sgd(0.1), (8,))
    >>> fully_sharded(jax.make_mesh((1,), ("data",)), state).params.cells[0].w_x.spec
    P(None, 'data')
    """
    _check(mesh, state)

    def lies(z: Array) -> NamedSharding:
        divisible = [axis for axis, n in enumerate(z.shape) if n % mesh.size == 0]
        if not divisible:
            return NamedSharding(mesh, P())
        axis = max(divisible, key=lambda a: z.shape[a])
        return NamedSharding(mesh, P(*[None] * axis, mesh.axis_names))  # (SH2)

    return jax.tree.map(lies, state)._replace(carry=_carry_by_rows(mesh, state.carry))


def _carry_by_rows(mesh: Mesh, carry: Tree) -> Tree:
    """The carry is split by the batch axes of h; without such an axis it is on every device."""
    leaves = jax.tree_util.tree_leaves_with_path(carry)
    rows = next((z.shape[:-1] for path, z in leaves if getattr(path[-1], "name", None) == "h"), ())
    axes = choose_axes(rows, mesh)
    if rows and num_parts(mesh, axes) != mesh.size:
        fix = f"choose a batch_shape whose rows are a multiple of {mesh.size}"
        raise bad("state.carry", f"a number of rows divisible by {mesh.size} (the devices)", str(rows), fix)
    return jax.tree.map(lambda z: NamedSharding(mesh, P(*axes)), carry)


def _check(mesh: object, state: object) -> None:
    _check_mesh(mesh)
    if not isinstance(state, TrainState):
        raise bad("state", "a TrainState", state, "make one by jb.init_train_state")


def _check_mesh(mesh: object) -> None:
    if not isinstance(mesh, Mesh):
        raise bad("mesh", "a Mesh", mesh, 'make one by jax.make_mesh((devices,), ("data",))')

"""Where training lies on a mesh of devices: shardings for jax.device_put and for checkpoints.

    data parallel     θ and the optimizer on every device, rows split                         (SH1)
    fully sharded     of θ and the optimizer each of N devices keeps 1/N of every array that
                      has an axis which N divides; θ is gathered before the first loop        (SH2)

What runs does not change, see `devices`: every axis of the mesh splits rows. A recurrent layer split by
hidden units instead would have to gather h in every step.
"""

from __future__ import annotations

import jax
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_bptt.base.checks import integer, is_array
from jax_bptt.base.errors import bad, named
from jax_bptt.base.types import Foreign, Tree
from jax_bptt.engine.devices import choose_axes, num_parts
from jax_bptt.training.train import TrainState


@named()
def by_rows(mesh: Mesh, tree: Tree, axis: int = 1) -> Tree:
    """Arrays split by rows.

    Args:
      mesh: from jax.make_mesh; all its axes split rows.
      tree: a pytree of arrays, or of their shapes, such as a `Batch`.
      axis: which axis of each array its rows are: 1 in a batch, [T, B, ...]; 2 in the batches of
        `make_train_steps`, [K, T, B, ...]; 0 in a carry, and in targets under `last`.

    Returns:
      A NamedSharding for each array; one that ends before this axis, such as a key, is on every device.
      For jax.device_put(tree, ...), or, where each process makes its own rows, for
      jax.make_array_from_process_local_data array by array.

    Raises:
      ValueError: what is no mesh, or rows that its devices do not divide.

    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> by_rows(mesh, jb.Batch(jnp.ones((7, 8, 3)), jnp.ones((7, 8, 2)))).xs.spec
    P(None, 'data')
    """
    _check_mesh(mesh)
    axis = integer("axis", axis, 0, 31)

    def lies(z: Foreign) -> NamedSharding:
        if not (is_array(z) or isinstance(z, jax.ShapeDtypeStruct)):
            raise bad("tree", "arrays or their shapes", z, "pass such as a Batch")
        if len(z.shape) <= axis:
            return NamedSharding(mesh, P())
        if z.shape[axis] % mesh.size:
            fix = "choose a batch size that they divide"
            raise bad("tree", f"rows, axis {axis}, that {mesh.size} devices divide", z, fix)
        return NamedSharding(mesh, P(*[None] * axis, mesh.axis_names))

    return jax.tree.map(lies, tree)


@named()
def data_parallel(mesh: Mesh, state: TrainState) -> TrainState:
    """Parameters and optimizer on every device, the carry split by rows.

    Args:
      mesh: from jax.make_mesh.
      state: from `init_train_state`, or its shapes by jax.eval_shape.

    Returns:
      A `TrainState` of NamedShardings, for jax.device_put(state, ...), or as out_shardings of a jitted
      `init_train_state` where no device has room for the whole.

    Raises:
      ValueError: what is no mesh or no state, or rows that the devices do not divide.

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
    """Parameters and optimizer in pieces, one on each device; the carry split by rows.

    The largest axis of an array that the number of devices divides is split; an array without one is on
    every device.

    Args:
      mesh, state: as for `data_parallel`.

    Returns:
      A `TrainState` of NamedShardings, as of `data_parallel`. A training step gathers the parameters
      before its first loop; gradients are summed over devices as in `data_parallel`. Optimizers that
      compare or mix more than a number and its own derivative (optax.adafactor, adaptive_grad_clip,
      apply_if_finite) want a mesh of Auto axes.

    Raises:
      ValueError: as `data_parallel`.

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
    """By the batch axes of h; without one, on every device."""
    leaves = jax.tree_util.tree_leaves_with_path(carry)
    rows = next((z.shape[:-1] for path, z in leaves if getattr(path[-1], "name", None) == "h"), ())
    axes = choose_axes(rows, mesh)
    if rows and num_parts(mesh, axes) != mesh.size:
        fix = "choose a batch_shape that they divide"
        raise bad("state.carry", f"rows that {mesh.size} devices divide", str(rows), fix)
    return jax.tree.map(lambda z: NamedSharding(mesh, P(*axes)), carry)


def _check(mesh: object, state: object) -> None:
    _check_mesh(mesh)
    if not isinstance(state, TrainState):
        raise bad("state", "a TrainState", state, "make one by jb.init_train_state")


def _check_mesh(mesh: object) -> None:
    if not isinstance(mesh, Mesh):
        raise bad("mesh", "a Mesh", mesh, 'make one by jax.make_mesh((devices,), ("data",))')

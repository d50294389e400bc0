"""What a training step reads and returns: state, batch and metrics, and the checks of them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jax_bptt.base.checks import check_like, is_array
from jax_bptt.base.errors import bad
from jax_bptt.base.made import by_shape
from jax_bptt.base.types import ArrayTree, Foreign, Mark, PRNGKey, Shape, Targets, Weight
from jax_bptt.engine.sequence import Sequence
from jax_bptt.networks.network import Network
from jax_bptt.networks.params import NetworkCarry, NetworkParams
from jax_bptt.training.optimizers import read_by_network


@by_shape
class TrainState(NamedTuple):
    """All that training remembers; a pytree of arrays.

    Attributes:
      step: number of batches read, int32; an update is made of each that is finite.
      params: `NetworkParams`; with optax.lookahead an optax.LookaheadParams of two: read the slow ones.
      opt_state: the optimizer's.
      carry: s_0 of the next batch, one per layer, None in the place of a cell that reads backwards; or
        None for all of it, where every batch begins at the initial carry.
      skipped: number of batches of which no update was made, int32; see `Metrics.finite`.
    """

    step: Array
    params: NetworkParams
    opt_state: optax.OptState
    carry: NetworkCarry | None
    skipped: Array


@by_shape
class Batch(NamedTuple):
    """Some steps of every row: whole sequences, or a chunk of sequences that go on.

    Attributes:
      xs: [T, *batch_shape, I]; with an encoder what that reads, leaves [T, *batch_shape, ...]. Without rows
        a sum such as `squared_error` is 0, and so is its gradient; a mean is NaN, so that no update is made.
      targets: what the loss takes, as [T, *batch_shape, O] or integer classes [T, *batch_shape].
      mask, reset, cut: bool [T, *batch_shape] or None, see `unroll`.
      key: a key from jax.random.key, of its own for each batch, where the network has dropout.
      weight: how much each output counts in the loss, [T, *batch_shape], or [*batch_shape] with `last`, in
        the dtype of the params; None for 1. A step of weight 0 is read, but not scored; see `value_and_grad`.
      starts: the states to which resets go back, a carry of the network with leaves [T, *batch_shape, H];
        None for the initial carry.
    """

    xs: ArrayTree
    targets: Targets
    mask: Mark = None
    reset: Mark = None
    cut: Mark = None
    key: PRNGKey | None = None
    weight: Weight = None
    starts: NetworkCarry | None = None

    @property
    def sequence(self) -> Sequence:
        """The inputs with their marks."""
        return Sequence(self.xs, self.mask, self.reset, self.cut, starts=self.starts)


class Metrics(NamedTuple):
    """What one step saw, before its update.

    Attributes:
      loss: E, a scalar.
      grad_norm: ‖dE/dθ‖ over all parameters, a scalar in float32 at least.
      finite: bool, whether both and the carry are finite; where not, no update was made.
    """

    loss: Array
    grad_norm: Array
    finite: Array


def _check_state(state: object) -> None:
    if not isinstance(state, TrainState):
        raise bad("state", "a TrainState", state, "make one by jb.init_train_state")
    count = jax.ShapeDtypeStruct((), jnp.int32)
    for name, came in (("step", state.step), ("skipped", state.skipped)):
        check_like(f"state.{name}", came, count, count.dtype, "make the state by jb.init_train_state")


def check_batches(net: Network, state: Foreign, batches: Foreign) -> None:
    _check_state(state)
    if not isinstance(batches, Batch):
        raise bad("batches", "a Batch", batches, "pass jb.Batch(xs, targets), each [K, T, ...]")
    lengths = {jnp.shape(z)[:1] for z in jax.tree.leaves(batches)}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        fix = "stack K >= 1 batches: jax.tree.map(lambda *z: jnp.stack(z), *batches)"
        raise bad("batches", "one more axis, K, in front of every array", batches, fix)
    if net.encoder is None and not is_array(batches.xs):
        raise bad("batches.xs", "an array [K, T, *batch_shape, I]", batches.xs, "stack K >= 1 batches")
    _check_rows("batches.xs", net, state, batches.xs, time=1)
    if state.carry is not None:
        rows = rows_of_carry(state.carry)
        carry = jax.eval_shape(lambda: net.next_carry(net.initial_carry(read_by_network(state.params), rows)))
        check_like("state.carry", state.carry, carry, None, "make the state by jb.init_train_state")


def rows_of_carry(carry: Foreign) -> Shape:
    """The batch axes of a carry, those of a field h; () for one without it."""
    leaves = jax.tree_util.tree_leaves_with_path(carry)
    shapes = (z.shape[:-1] for path, z in leaves if getattr(path[-1], "name", None) == "h" and is_array(z))
    found: Shape = next(shapes, ())
    return found


def _check_rows(argument: str, net: Network, state: TrainState, xs: Foreign, time: int) -> None:
    """ValueError where the carry of the state is that of a batch of another shape; time is the axis of T."""
    first: Array = jax.tree.leaves(xs)[0]
    wanted, end = rows_of_carry(state.carry), None if net.encoder is not None else -1
    rows = first.shape[1 + time : end]
    rows = rows if net.encoder is None else rows[: len(wanted)]  # the axes of one input are the encoder's
    if state.carry is not None and jax.tree.leaves(state.carry) and wanted != rows:
        fix = (
            f"time comes first: this is read as T = {first.shape[time]} steps of batch {rows}. If "
            "sequences are independent, make the state without batch_shape: jb.init_train_state(key, net, "
            "optimizer). If rows go on from batch to batch, leave out a smaller last batch, or fill it up "
            "with rows whose mask is False"
        )
        axes = ", ".join(["K"] * time + ["T", "*batch", "I" if net.encoder is None else "..."])
        raise bad(argument, f"[{axes}] with the batch axes {wanted} of state.carry", xs, fix)


def check_state_and_batch(net: Network, state: Foreign, batch: Foreign) -> None:
    _check_state(state)
    if not isinstance(batch, Batch):
        raise bad("batch", "a Batch", batch, "pass jb.Batch(xs, targets)")
    if net.encoder is not None or (is_array(batch.xs) and batch.xs.ndim > 1):
        _check_rows("batch.xs", net, state, batch.xs, time=0)
    if batch.key is None and any(layer.dropout or layer.recurrent_dropout for layer in net.layers):
        fix = "pass a new one with every batch; jax.random.fold_in(key, step) makes one"
        raise bad("batch.key", "a PRNG key for the network's dropout", batch.key, fix)

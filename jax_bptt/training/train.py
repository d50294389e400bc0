"""Training: one optax update for each batch, of sequences that are independent or go on from batch to batch.

(E, s_T), dE/dθ = value_and_grad(θ, s_0, batch)                                           (T1)
θ ← θ + optimizer(dE/dθ)                                                                  (T2)
s_0 of the next batch:   the initial carry, where sequences are independent;
                         s_T as a constant, where they go on: the gradient ends there     (T3)
where E, ‖dE/dθ‖ or s_T is NaN or infinite, θ, the optimizer and s_0 stay as they were    (T4)

A state made without a batch shape has no carry: its batches are independent. A cell that reads backwards
begins every batch anew in either case, since its sequence ended with the batch before.

K batches can be given in one call. Their updates are then one loop on the device: nothing is dispatched
between them, and temporaries stay in place instead of being allocated anew.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import DTypeLike

from jax_bptt.base.checks import check_like, flag, is_array
from jax_bptt.base.compiling import Jitted
from jax_bptt.base.errors import bad, named
from jax_bptt.base.made import by_shape
from jax_bptt.base.trees import norm_of
from jax_bptt.base.types import ArrayTree, Foreign, Mark, PRNGKey, Shape, Targets, Weight
from jax_bptt.engine.devices import placed_like
from jax_bptt.engine.sequence import Sequence
from jax_bptt.gradients.full import full
from jax_bptt.gradients.method import GradientMethod
from jax_bptt.networks.losses import Loss, check_loss
from jax_bptt.networks.network import Network, check_network, filled_carry
from jax_bptt.networks.params import NetworkCarry, NetworkParams
from jax_bptt.networks.value_and_grad import Inputs, Objective, Result, run_value_and_grad
from jax_bptt.training.optimizers import (
    begin,
    check_opt_state,
    check_optimizer,
    check_update,
    read_by_network,
    update,
)
from jax_bptt.unrolling.arguments import check_method


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
        the dtype of xs; None for 1. A step of weight 0 is read, but not scored; see `value_and_grad`.
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


TrainStep: TypeAlias = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


@named()
def init_train_state(
    key: PRNGKey,
    net: Network,
    optimizer: optax.GradientTransformation,
    batch_shape: Shape | None = None,
) -> TrainState:
    """The state that training begins with: for independent sequences, or for ones that go on.

    Without batch_shape every batch begins at the initial carry, which is right for independent sequences.
    With batch_shape row r of a batch goes on where row r of the batch before ended, which is right for a
    long text or stream that is cut into batches.

    Args:
      key: a key from jax.random.key.
      net: from `network`.
      optimizer: an optax optimizer. If its update takes optax's extra arguments, it is also given the loss
        of the batch, as value=E: optax.contrib.reduce_on_plateau and optax.polyak_sgd need it. Some need
        more than that, and are refused by `make_train_step`: line searches as in optax.lbfgs,
        optax.contrib.sophia and optax.contrib.dpsgd.
      batch_shape: None for independent sequences, in batches of any size. For sequences that go on, the
        batch axes of every batch, such as (32,), or () for a single sequence.

    Returns:
      A `TrainState` with freshly copied buffers, so that a training step may reuse them.

    Raises:
      ValueError: a wrong optimizer or batch shape.

    >>> net = jb.network([jb.elman(1, 4)], jb.readout(4, 1))
    >>> init_train_state(jax.random.key(0), net, optax.sgd(1e-2)).carry is None
    True
    >>> init_train_state(jax.random.key(0), net, optax.sgd(1e-2), (2,)).carry[0].h.shape
    (2, 4)
    """
    check_network(net)
    check_optimizer(optimizer)
    params = net.init(key)
    carry = None if batch_shape is None else net.next_carry(net.initial_carry(params, batch_shape))
    trained, opt_state = begin(optimizer, params)
    none = jnp.zeros((), jnp.int32)
    state = TrainState(none, trained, opt_state, carry, none)
    return jax.tree.map(jnp.copy, state)


@named()
def make_train_step(
    net: Network,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    gradient: GradientMethod = full(),
    dtype: DTypeLike | None = None,
    donate: bool = True,
) -> TrainStep:
    """A pure, jitted training step.

    θ ← θ + optimizer(dE/dθ),   s_0 ← s_T where sequences go on   (T1-T3)

    One bad batch destroys nothing: where loss, gradient or carry is not finite, parameters, optimizer and
    carry stay as they were, `Metrics.finite` is False, and `TrainState.skipped` counts it   (T4)

    Args:
      net: from `network`.
      loss: as for `value_and_grad`.
      optimizer: as for `init_train_state`; chain optax.clip_by_global_norm before it to clip.
      gradient: the gradient method, see `unroll`.
      dtype: jnp.bfloat16 for mixed precision, see `unroll`; parameters, gradients and the optimizer
        keep the dtype of params.
      donate: True to reuse the memory of the state that goes in, which cannot be read afterwards. To keep
        an earlier state, copy it: `best = jax.tree.map(jnp.copy, state.params)`. False to keep every
        state readable, for jax.grad through a step, or several runs from one state.

    Returns:
      (state, batch) -> (state, metrics). The state says whether sequences are independent or go on, see
      `init_train_state`. On many devices it stays as it was placed, see `data_parallel`,
      `fully_sharded` and `by_rows`.

    Raises:
      ValueError: a wrong network or optimizer here; a wrong batch at the first step.

    >>> net = jb.network([jb.elman(1, 4)], jb.readout(4, 1))
    >>> state = jb.init_train_state(jax.random.key(0), net, optax.sgd(1e-2))
    >>> train_step = jb.make_train_step(net, jb.squared_error, optax.sgd(1e-2))
    >>> state, metrics = train_step(state, Batch(jnp.ones((3, 2, 1)), jnp.zeros((3, 2, 1))))
    >>> int(state.step), bool(metrics.finite)
    (1, True)
    """
    return _jitted(_step(Objective(net, loss, gradient, dtype), optimizer), donate)


@named()
def make_train_steps(
    net: Network,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    gradient: GradientMethod = full(),
    dtype: DTypeLike | None = None,
    donate: bool = True,
) -> TrainStep:
    """K training steps in one dispatch; pure and jitted.

    The same numbers as K calls of `make_train_step`'s, one after the other   (T1-T4, K times)

    Args:
      net, loss, optimizer, gradient, dtype, donate: as for `make_train_step`.

    Returns:
      (state, batches) -> (state, metrics): batches is a `Batch` with one more axis, K, in front of each
      of its arrays, xs [K, T, *batch_shape, I] and key [K] among them; so have the metrics, [K]. A single
      batch without that axis is read as K = T batches.

    Raises:
      ValueError: a wrong network or optimizer here; wrong batches at the first call.

    >>> net = jb.network([jb.elman(1, 4)], jb.readout(4, 1))
    >>> state = jb.init_train_state(jax.random.key(0), net, optax.sgd(1e-2))
    >>> train_steps = jb.make_train_steps(net, jb.squared_error, optax.sgd(1e-2))
    >>> state, metrics = train_steps(state, Batch(jnp.ones((5, 3, 2, 1)), jnp.zeros((5, 3, 2, 1))))
    >>> int(state.step), metrics.loss.shape
    (5, (5,))
    """
    train_step = _step(Objective(net, loss, gradient, dtype), optimizer)

    @named("train_steps")
    def train_steps(state: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
        _check_batches(net, state, batches)
        return jax.lax.scan(train_step, state, batches)

    return _jitted(train_steps, donate)


def _jitted(step: TrainStep, donate: bool) -> TrainStep:
    donated = ("state",) if flag("donate", donate) else ()
    return Jitted(step, donate_argnames=donated)


def _step(objective: Objective, optimizer: optax.GradientTransformation) -> TrainStep:
    """(T1-T4)."""
    net = objective.net
    check_optimizer(optimizer)
    check_method(objective.gradient)
    check_network(net)
    check_loss(objective.loss)
    check_update(optimizer, net)

    @named("train_step")
    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        _check_state_and_batch(net, state, batch)
        check_opt_state(optimizer, state.opt_state, state.params)
        read = read_by_network(state.params)
        inputs = Inputs(read, state.carry, batch.sequence, batch.targets, batch.key, batch.weight)
        found = run_value_and_grad(objective, inputs)  # (T1)
        updates, opt_state = update(optimizer, found.grads, state.opt_state, state.params, found.error)
        params = optax.apply_updates(state.params, updates)  # (T2)
        norm = norm_of(found.grads)
        finite = jnp.isfinite(found.error) & jnp.isfinite(norm) & (found.nonfinite_devices == 0)
        before, carry = _carries(net, inputs, found)
        after = TrainState(state.step + 1, params, opt_state, carry, state.skipped)  # (T3)
        unchanged = state._replace(step=after.step, carry=before, skipped=state.skipped + 1)
        kept: TrainState = jax.tree.map(functools.partial(jnp.where, finite), after, unchanged)  # (T4)
        return kept, Metrics(found.error, norm, finite)

    return train_step


def _carries(net: Network, inputs: Inputs, found: Result) -> tuple[NetworkCarry | None, NetworkCarry | None]:
    """s_0 of this batch and of the next, on the devices of the state; None where batches are independent."""
    if inputs.carry is None:
        return None, None
    before = net.next_carry(filled_carry(net, inputs.params.cells, inputs.carry, _rows_of(found.carry)))
    carry = placed_like(net.next_carry(found.carry), before)
    return placed_like(before, carry), carry


def _check_state(state: object) -> None:
    if not isinstance(state, TrainState):
        raise bad("state", "a TrainState", state, "make one by jb.init_train_state")
    count = jax.ShapeDtypeStruct((), jnp.int32)
    for name, came in (("step", state.step), ("skipped", state.skipped)):
        check_like(f"state.{name}", came, count, count.dtype, "make the state by jb.init_train_state")


def _check_batches(net: Network, state: Foreign, batches: Foreign) -> None:
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
        rows = _rows_of(state.carry)
        carry = jax.eval_shape(lambda: net.next_carry(net.initial_carry(read_by_network(state.params), rows)))
        check_like("state.carry", state.carry, carry, None, "make the state by jb.init_train_state")


def _rows_of(carry: Foreign) -> Shape:
    """The batch axes of a carry, those of a field h; () for one without it."""
    leaves = jax.tree_util.tree_leaves_with_path(carry)
    shapes = (z.shape[:-1] for path, z in leaves if getattr(path[-1], "name", None) == "h" and is_array(z))
    found: Shape = next(shapes, ())
    return found


def _check_rows(argument: str, net: Network, state: TrainState, xs: Foreign, time: int) -> None:
    """ValueError where the carry of the state is that of a batch of another shape; time is the axis of T."""
    first: Array = jax.tree.leaves(xs)[0]
    wanted, end = _rows_of(state.carry), None if net.encoder is not None else -1
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


def _check_state_and_batch(net: Network, state: Foreign, batch: Foreign) -> None:
    _check_state(state)
    if not isinstance(batch, Batch):
        raise bad("batch", "a Batch", batch, "pass jb.Batch(xs, targets)")
    if net.encoder is not None or (is_array(batch.xs) and batch.xs.ndim > 1):
        _check_rows("batch.xs", net, state, batch.xs, time=0)
    if batch.key is None and any(layer.dropout for layer in net.layers):
        fix = "pass a new one with every batch; jax.random.fold_in(key, step) makes one"
        raise bad("batch.key", "a PRNG key for the network's dropout", batch.key, fix)

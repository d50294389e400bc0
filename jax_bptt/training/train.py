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
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from jax_bptt.base.checks import flag
from jax_bptt.base.compiling import Jitted
from jax_bptt.base.errors import named
from jax_bptt.base.trees import norm_of
from jax_bptt.base.types import PRNGKey, Shape
from jax_bptt.engine.devices import placed_like
from jax_bptt.gradients.full import full
from jax_bptt.gradients.method import GradientMethod
from jax_bptt.networks.losses import Loss, check_loss
from jax_bptt.networks.network import Network, check_network, filled_carry
from jax_bptt.networks.params import NetworkCarry
from jax_bptt.networks.value_and_grad import Inputs, Objective, Result, run_value_and_grad
from jax_bptt.training.optimizers import (
    begin,
    check_opt_state,
    check_optimizer,
    check_update,
    read_by_network,
    update,
)
from jax_bptt.training.state import (
    Batch,
    Metrics,
    TrainState,
    check_batches,
    check_state_and_batch,
    rows_of_carry,
)
from jax_bptt.unrolling.arguments import check_method

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
        check_batches(net, state, batches)
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
        check_state_and_batch(net, state, batch)
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
    before = net.next_carry(filled_carry(net, inputs.params.cells, inputs.carry, rows_of_carry(found.carry)))
    carry = placed_like(net.next_carry(found.carry), before)
    return placed_like(before, carry), carry

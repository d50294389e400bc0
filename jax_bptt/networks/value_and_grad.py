"""The loss of a network and its gradient, by hand from E back to the first W_x.

article   E = Σ_t (d_t − Y_t)²,   Y_t = g₂(W_y S_t)

forward   h_t = layers(x_t)                 `network`                                     (V1)
          E, and G_t = dE/dh_t              `readout_and_loss`                            (V2)
back      dE/dW_x, dE/dW_h of each layer    from G_t: the summed rule, in `gradients`;    (V3)
          G_t of the layer below            is dE/dx_t of this one

No jax.grad goes through time: (V3) is the backward pass of the gradient method. It goes layer after
layer, all steps of one before the next; or chunk after chunk, all layers, readout and loss of one chunk
before the next, where the gradient method wants to hold no layer's outputs for all steps:

          dE/dθ = Σ dE/dθ of the chunks,    dE/ds of a chunk's begin from dE/ds of its end      (V4)

That is possible where time runs one way only: no layer reads backwards, and the loss is a sum over steps.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jax_bptt.base.compiling import compiled
from jax_bptt.base.errors import named
from jax_bptt.base.trees import plus
from jax_bptt.base.types import Mark, PRNGKey, Targets
from jax_bptt.engine.devices import (
    ALL,
    ROWS,
    STEPS,
    on_devices,
    reduce_axes,
    rows_of,
    sum_over_devices,
    to_local,
)
from jax_bptt.engine.sequence import Sequence
from jax_bptt.gradients.full import full
from jax_bptt.gradients.method import GradientMethod, Recurrence, Reversed, Streamed
from jax_bptt.networks.layers import dropout_keys
from jax_bptt.networks.losses import Counted, Loss, check_loss, check_targets, count, is_additive
from jax_bptt.networks.network import (
    Network,
    NetworkCarry,
    NetworkParams,
    check_network,
    check_run,
    features,
    filled_carry,
    network_with_dtype,
)
from jax_bptt.networks.readout import outputs_lie
from jax_bptt.networks.readout_and_loss import Judged, loss_and_grad, loss_and_grad_of_steps


class ValueAndGrad(Protocol):
    """What `value_and_grad` returns: a pure function, to be called inside jax.jit."""

    def __call__(
        self,
        params: NetworkParams,
        carry: NetworkCarry | None,
        xs: Array,
        targets: Targets,
        *,
        gradient: GradientMethod = full(),
        mask: Mark = None,
        reset: Mark = None,
        cut: Mark = None,
        key: PRNGKey | None = None,
        dtype: DTypeLike | None = None,
    ) -> tuple[tuple[Array, NetworkCarry], NetworkParams]:
        """((E, s_T of every layer), dE/dparams); the arguments are those of `Network.apply`."""


@named()
def value_and_grad(net: Network, loss: Loss) -> ValueAndGrad:
    """The loss and its gradient by every parameter, by hand from E to W_x.

    dE/dW_y = Σ_t h_tᵀ δz_t;   dE/dW_h, dE/dW_x by the summed rule from G_t = δz_t W_yᵀ   (V3, V4)

    Args:
      net: from `network`.
      loss: `squared_error`, `softmax_cross_entropy`, or any (ys, targets) -> scalar, which is called
        as (ys, targets, mask=mask) where there is a mask.

    Returns:
      A pure function, to be called inside jax.jit, (params, carry, xs, targets, *, gradient=full(),
      mask=None, reset=None, cut=None, key=None, dtype=None) -> ((loss, carry), grads), with loss a
      scalar, carry the last state of every layer and grads like params; the arguments are those of
      `Network.apply`. The gradient ends at the carry that came in; a carry that is None, and a reset,
      begin at the initial carry, which is trained.
      Steps where mask is False count in no loss; under `last`, rows without any valid step.
      On a mesh of devices, and in a jax.shard_map in which params are the same everywhere, both are of
      the rows of all devices, see `devices`; in the latter a loss of your own is summed over them.

    Raises:
      ValueError: at trace time, naming the argument, what was expected and what came.

    Reference: Werbos 1990; Williams & Zipser 1995 (epochwise BPTT).

    >>> net = jb.network([jb.elman(1, 4)], jb.readout(4, 1))
    >>> params = net.init(jax.random.key(0))
    >>> carry = net.initial_carry(params, (2,))
    >>> xs, targets = jnp.ones((3, 2, 1)), jnp.zeros((3, 2, 1))
    >>> (error, carry), grads = value_and_grad(net, jb.squared_error)(params, carry, xs, targets)
    >>> grads.readout.w_y.shape
    (4, 1)
    """
    check_network(net)
    check_loss(loss)

    @named("value_and_grad")
    def run(
        params: NetworkParams,
        carry: NetworkCarry | None,
        xs: Array,
        targets: Targets,
        *,
        gradient: GradientMethod = full(),
        mask: Mark = None,
        reset: Mark = None,
        cut: Mark = None,
        key: PRNGKey | None = None,
        dtype: DTypeLike | None = None,
    ) -> tuple[tuple[Array, NetworkCarry], NetworkParams]:
        inputs = Inputs(params, carry, Sequence(xs, mask, reset, cut), targets, key)
        result = _compiled(Objective(net, loss, gradient, dtype), inputs)
        return (result.error, result.carry), result.grads

    return run


class Objective(NamedTuple):
    """What is differentiated, and how: known before any array is.

    Attributes:
      net: from `network`.
      loss: as for `value_and_grad`.
      gradient: the gradient method.
      dtype: of the operands of matrix products, None for that of the parameters.
    """

    net: Network
    loss: Loss
    gradient: GradientMethod
    dtype: DTypeLike | None


class Inputs(NamedTuple):
    """The arrays that an objective reads.

    Attributes:
      params: of the network.
      carry: s_0 of every layer, or None.
      sequence: x_1..x_T and the marks.
      targets: whatever the loss takes.
      key: for dropout, or None.
    """

    params: NetworkParams
    carry: NetworkCarry | None
    sequence: Sequence
    targets: Targets
    key: PRNGKey | None


class Result(NamedTuple):
    """What a run of a network gives.

    Attributes:
      error: E, a scalar.
      carry: s_T of every layer.
      grads: dE/dθ.
      nonfinite_devices: on how many devices s_T is not finite, a number of the dtype of E.
    """

    error: Array
    carry: NetworkCarry
    grads: NetworkParams
    nonfinite_devices: Array


@compiled("objective")
def _compiled(objective: Objective, inputs: Inputs) -> Result:
    return run_value_and_grad(objective, inputs)


def run_value_and_grad(objective: Objective, inputs: Inputs) -> Result:
    """Like `value_and_grad`; also says whether the final carry is finite. One all-reduce."""
    net, loss, gradient, dtype = objective
    params, carry, sequence = check_run(
        net, inputs.params, inputs.carry, inputs.sequence, gradient, inputs.key
    )
    check_outputs(net, loss, sequence, inputs.targets)
    run = functools.partial(_run, objective._replace(net=network_with_dtype(dtype, net, params)))
    rows = rows_of(sequence.xs, params, carry) if is_additive(loss) else None  # others need all of Y
    taken, made = (ALL, ROWS, STEPS, outputs_lie(net.readout), STEPS), (ALL, ROWS, ALL, ALL)
    keys = dropout_keys(inputs.key, sequence)
    return Result(*on_devices(run, rows, taken, made)(params, carry, sequence, inputs.targets, keys))


class _Local(NamedTuple):
    """One device's share: `Inputs` with a key for each step and row, and N of all devices."""

    params: NetworkParams
    carry: NetworkCarry | None
    sequence: Sequence
    targets: Targets
    keys: PRNGKey | None
    n: Counted

    def judged(self, net: Network) -> Judged:
        """What the outputs are compared with."""
        return Judged(self.targets, steps_that_count(net, self.sequence.mask), self.n)


def _run(
    objective: Objective,
    params: NetworkParams,
    carry: NetworkCarry | None,
    sequence: Sequence,
    targets: Targets,
    keys: PRNGKey | None,
) -> tuple[Array, NetworkCarry, NetworkParams, Array]:
    """E and dE/dθ of the rows of all devices, and s_T of this one's."""
    net, loss, gradient, _ = objective
    rows = carry, sequence, targets, keys
    axes = reduce_axes(rows, params)
    params, carry, sequence, keys = to_local((params, carry, sequence, keys), (params, *rows))
    n = sum_over_devices(count(loss, targets, steps_that_count(net, sequence.mask)), axes)
    local = _Local(params, carry, sequence, targets, keys, n)
    if gradient.stream is not None and _runs_one_way(net, loss):
        error, last, grads = _by_chunks(objective, local)
    else:
        error, last, grads = _by_layers(objective, local)
    finite = [jnp.isfinite(s).all() for s in jax.tree.leaves(last)]
    is_broken = 1 - jnp.stack(finite).all().astype(error.dtype)
    error, grads, broken = sum_over_devices((error, grads, is_broken), axes)
    return error, last, grads, broken


def _runs_one_way(net: Network, loss: Loss) -> bool:
    one_way = all(layer.backward is None for layer in net.layers)
    return one_way and is_additive(loss) and not net.readout.of_last


def _by_layers(objective: Objective, local: _Local) -> tuple[Array, NetworkCarry, NetworkParams]:
    """All steps of one layer before the next."""
    net, loss, gradient, _ = objective
    params, carry, sequence = local.params, local.carry, local.sequence

    def run(cells: tuple[Any, ...]) -> tuple[Array, NetworkCarry]:
        last, hs = features(net, cells, carry, sequence, gradient, local.keys)
        return hs, last

    hs, backward, last = jax.vjp(run, params.cells, has_aux=True)  # (V1)
    rows = rows_of(sequence.xs, params, carry)
    found = loss_and_grad(net.readout, loss, params.readout, hs, local.judged(net), rows)  # (V2)
    (d_cells,) = backward(found.hs)  # (V3)
    return found.error, last, NetworkParams(d_cells, found.params)


def _by_chunks(objective: Objective, local: _Local) -> tuple[Array, NetworkCarry, NetworkParams]:
    """All layers, readout and loss of one chunk before the next."""
    net, loss, gradient, _ = objective
    params, sequence = local.params, local.sequence
    of_chunk = full()._replace(engine=gradient.engine)
    Chunk = tuple[Sequence, Targets, PRNGKey | None]

    def run(cells: tuple[Any, ...], carry: NetworkCarry, here: Chunk) -> tuple[NetworkCarry, Array]:
        sequence, _, keys = here
        return features(net, cells, carry, sequence, of_chunk, keys)  # (V1)

    def advance(params: NetworkParams, carry: NetworkCarry, here: Chunk) -> NetworkCarry:
        return run(params.cells, carry, here)[0]

    def reverse(params: NetworkParams, carry: NetworkCarry, here: Chunk, d_carry: NetworkCarry) -> Reversed:
        (last, hs), backward = jax.vjp(lambda cells, s: run(cells, s, here), params.cells, carry)
        sequence, targets, _ = here
        judged = Judged(targets, sequence.mask, local.n)
        found = loss_and_grad_of_steps(net.readout, loss, params.readout, hs, judged)  # (V2)
        d_cells, d_carry = backward((d_carry, found.hs))  # (V3)
        return Reversed(last, NetworkParams(d_cells, found.params), d_carry, found.error)

    def begin(cells: tuple[Any, ...]) -> NetworkCarry:
        s_0 = filled_carry(net, params._replace(cells=cells), local.carry, sequence.rows)
        return to_local(s_0, sequence)

    assert gradient.stream is not None  # `_run` asks
    s_0, back_to_cells = jax.vjp(begin, params.cells)
    data: Chunk = sequence, local.targets, local.keys
    streamed: Streamed = gradient.stream(Recurrence(advance, reverse), params, s_0, sequence, data)  # (V4)
    d_params: NetworkParams = streamed.d_weights
    d_params = d_params._replace(cells=plus(d_params.cells, back_to_cells(streamed.d_carry)[0]))
    error = functools.reduce(jnp.add, [errors.sum() for errors in streamed.out])
    return error, streamed.carry, d_params


def steps_that_count(net: Network, mask: Mark) -> Mark:
    """Where an output counts: the mask, or under `last` the rows with any valid step."""
    return mask.any(0) if mask is not None and net.readout.of_last else mask


def check_outputs(net: Network, loss: Loss, sequence: Sequence, targets: Targets) -> None:
    """ValueError unless the targets fit an additive loss of the outputs."""
    if is_additive(loss):
        leading = sequence.rows if net.readout.of_last else sequence.xs.shape[:-1]
        ys = jax.ShapeDtypeStruct((*leading, net.readout.output_size), sequence.xs.dtype)
        check_targets(loss, ys, targets, steps_that_count(net, sequence.mask))

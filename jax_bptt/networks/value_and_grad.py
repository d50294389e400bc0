"""The gradient of a network's loss is derived by hand, from E back to the W_x of the first layer.

article   E = Σ_t (d_t − Y_t)²,   Y_t = g₂(W_y S_t)

forward   h_t = layers(x_t)                 `network`                                     (V1)
          E, and G_t = dE/dh_t              `readout_and_loss`                            (V2)
back      dE/dW_x, dE/dW_h of each layer    from G_t: the summed rule, in `gradients`;    (V3)
          G_t of the layer below            is dE/dx_t of this one

No jax.grad goes through time: (V3) is the backward pass of the gradient method. It has two orders. By
layers: all steps of one layer, then the next layer. By chunks: all layers, readout and loss of a chunk of
steps, then the next chunk. A method that must not store any layer's outputs for all steps uses chunks:

          dE/dθ = Σ dE/dθ of the chunks,    dE/ds of a chunk's begin from dE/ds of its end      (V4)

Chunks need that no layer reads backwards and that the loss adds up errors of steps.
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
from jax_bptt.base.trees import differentiable, merged, plus
from jax_bptt.base.types import ArrayTree, Mark, PRNGKey, Targets, Weight
from jax_bptt.engine.devices import (
    ALL,
    ROWS,
    STEPS,
    on_devices,
    pieces_of,
    placed_like,
    reduce_axes,
    rows_of,
    sum_in_pieces,
    sum_over_devices,
    to_local,
)
from jax_bptt.engine.sequence import Sequence
from jax_bptt.gradients.full import full
from jax_bptt.gradients.method import GradientMethod, Recurrence, Reversed, Streamed
from jax_bptt.networks.features import features, network_with_dtype
from jax_bptt.networks.head import gradient_of_tied, with_own_readout
from jax_bptt.networks.judged import Judged
from jax_bptt.networks.layers import dropout_keys
from jax_bptt.networks.losses import Loss, check_loss, count, is_additive
from jax_bptt.networks.network import Network, check_network, filled_carry
from jax_bptt.networks.network_arguments import check_outputs, check_run, leading_of_outputs, steps_that_count
from jax_bptt.networks.params import NetworkCarry, NetworkParams
from jax_bptt.networks.readout import outputs_lie
from jax_bptt.networks.readout_and_loss import loss_and_grad, loss_and_grad_of_steps
from jax_bptt.networks.recurrent_dropout import Kept, kept_units, thinned


class ValueAndGrad(Protocol):
    """`value_and_grad` returns such a function. It is pure, and compiled once for each shape."""

    def __call__(
        self,
        params: NetworkParams,
        carry: NetworkCarry | None,
        xs: ArrayTree,
        targets: Targets,
        *,
        gradient: GradientMethod = full(),
        mask: Mark = None,
        reset: Mark = None,
        cut: Mark = None,
        key: PRNGKey | None = None,
        weight: Weight = None,
        starts: NetworkCarry | None = None,
        dtype: DTypeLike | None = None,
    ) -> tuple[tuple[Array, NetworkCarry], NetworkParams]:
        """It returns ((E, s_T of every layer), dE/dparams); `value_and_grad` says what the arguments are."""


@named()
def value_and_grad(net: Network, loss: Loss) -> ValueAndGrad:
    """This makes a function that returns the loss of a network and its gradient by every parameter.

    dE/dW_y = Σ_t h_tᵀ δz_t;   dE/dW_h, dE/dW_x by the summed rule from G_t = δz_t W_yᵀ   (V3, V4)

    Args:
      net: from `network`.
      loss: such as `squared_error` (a sum); one of your own by `sum_over_steps` or `mean_over_steps`; or any
        function (ys, targets) -> scalar, which is also given mask=mask, weight=weight where there are any.

    Returns:
      A pure function (params, carry, xs, targets, *, gradient=full(), mask=None, reset=None, cut=None,
      key=None, weight=None, starts=None, dtype=None) -> ((loss, carry), grads), whose arguments are those of
      `Network.apply`, and weight. loss is a scalar, carry the last state of every layer, grads like params.
      It is compiled once for each shape and loss. So define a loss of your own once, not anew for every
      call, and pass what changes in targets: what a loss reads from outside, such as a global, is fixed at
      its first call, as in any jax.jit.
      The gradient ends at a carry and at starts that you pass. If carry is None, and at every reset without
      starts, the network begins at its initial carry, and the gradient goes on into the params that make it.
      Steps where mask is False do not count in the loss; with `last`, rows without any valid step do not.
      weight says how much each output counts, [T, ...], or [...] with `last`, in the dtype of params; None
      for 1. A step of weight 0 is read, unlike one where mask is False: it moves the carry, and the gradient
      of later steps goes through it; only its error is not scored. See `squared_error`.
      On a mesh of devices, and in a jax.shard_map with the same params on every device, loss and grads are
      those of the rows of all devices, see `devices`. In a jax.shard_map a loss of your own is computed on
      each device and summed.

    Raises:
      ValueError: at trace time; it names the argument, what was expected and what was passed.

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

    @named("value_and_grad(net, loss)")
    def run(
        params: NetworkParams,
        carry: NetworkCarry | None,
        xs: ArrayTree,
        targets: Targets,
        *,
        gradient: GradientMethod = full(),
        mask: Mark = None,
        reset: Mark = None,
        cut: Mark = None,
        key: PRNGKey | None = None,
        weight: Weight = None,
        starts: NetworkCarry | None = None,
        dtype: DTypeLike | None = None,
    ) -> tuple[tuple[Array, NetworkCarry], NetworkParams]:
        sequence = Sequence(xs, mask, reset, cut, starts=starts)
        inputs = Inputs(params, carry, sequence, targets, key, weight)
        result = _compiled(Objective(net, loss, gradient, dtype), inputs)
        return (result.error, result.carry), result.grads

    return run


class Objective(NamedTuple):
    """An objective says what is differentiated and how; it holds no arrays.

    Attributes:
      net: from `network`.
      loss: as for `value_and_grad`.
      gradient: the gradient method.
      dtype: the dtype of the operands of matrix products; None for the dtype of the parameters.
    """

    net: Network
    loss: Loss
    gradient: GradientMethod
    dtype: DTypeLike | None


class Inputs(NamedTuple):
    """These are the arrays that an objective reads.

    Attributes:
      params: the parameters of the network.
      carry: s_0 of every layer, or None.
      sequence: x_1..x_T and the marks.
      targets: whatever the loss takes.
      key: a key for dropout, or None.
      weight: how much each output counts, or None.
    """

    params: NetworkParams
    carry: NetworkCarry | None
    sequence: Sequence
    targets: Targets
    key: PRNGKey | None
    weight: Weight


class Result(NamedTuple):
    """These are the results of `run_value_and_grad`.

    Attributes:
      error: E, a scalar.
      carry: s_T of every layer.
      grads: dE/dθ.
      nonfinite_devices: zero where s_T is finite on every device, in the dtype of E.
    """

    error: Array
    carry: NetworkCarry
    grads: NetworkParams
    nonfinite_devices: Array


@compiled("objective")
def _compiled(objective: Objective, inputs: Inputs) -> Result:
    return run_value_and_grad(objective, inputs)


def run_value_and_grad(objective: Objective, inputs: Inputs) -> Result:
    """This is `value_and_grad` that also reports whether the final carry is finite, in one all-reduce."""
    net, loss, gradient, dtype = objective
    params, carry, sequence = check_run(net, *inputs[:3], gradient, inputs.key)
    targets, weight = check_outputs(net, loss, params, sequence, inputs.targets, inputs.weight)
    rows = rows_of(sequence.xs, params, carry) if is_additive(loss) else None  # others need every device's Y
    lie, pieces = outputs_lie(net.readout), pieces_of(params, rows)
    run = functools.partial(_run, objective._replace(net=network_with_dtype(dtype, net, params)), pieces)
    taken, made = (ALL, ROWS, STEPS, lie, lie, STEPS, ALL), (ALL, ROWS, pieces, ALL)
    keys, kept = dropout_keys(inputs.key, sequence), kept_units(net.layers, params.cells, inputs.key)
    found = Result(*on_devices(run, rows, taken, made)(params, carry, sequence, targets, weight, keys, kept))
    return found._replace(grads=placed_like(found.grads, params))


class _Local(NamedTuple):
    """These are one device's `Inputs`, with a key for each step and row, and N of all devices in judged."""

    params: NetworkParams
    carry: NetworkCarry | None
    sequence: Sequence
    judged: Judged
    keys: PRNGKey | None


def _run(
    objective: Objective,
    pieces: ArrayTree,
    params: NetworkParams,
    carry: NetworkCarry | None,
    sequence: Sequence,
    targets: Targets,
    weight: Weight,
    keys: PRNGKey | None,
    kept: Kept,
) -> tuple[Array, NetworkCarry, NetworkParams, Array]:
    """Each device returns E and dE/dθ, or its pieces, of the rows of all devices, and s_T of its own rows."""
    net, loss, gradient, _ = objective
    rows = carry, sequence, targets, weight, keys
    axes = reduce_axes(rows, params)
    params, carry, sequence, keys = to_local((params, carry, sequence, keys), (params, *rows))
    params = params._replace(cells=thinned(params.cells, kept))
    whole, (net, params) = net, with_own_readout(net, params)
    judged = Judged(targets, steps_that_count(net, sequence.mask), weight)
    n = sum_over_devices(count(loss, judged, leading_of_outputs(net, sequence)), axes)
    local = _Local(params, carry, sequence, judged._replace(n=n), keys)
    by = _by_chunks if gradient.stream is not None and _runs_one_way(net, loss) else _by_layers
    error, last, grads = by(objective._replace(net=net), local)
    grads = gradient_of_tied(whole, grads)
    grads = grads._replace(cells=thinned(grads.cells, kept))  # before the sum: devices may draw differently
    finite = [jnp.isfinite(s).all() for s in jax.tree.leaves(differentiable(last))]
    nonfinite = 1 - functools.reduce(jnp.logical_and, finite, jnp.array(True)).astype(error.dtype)
    # a number of the dtype of E, so that it joins the one sum over devices
    (error, nonfinite_devices), grads = sum_in_pieces((error, nonfinite), grads, axes, pieces)
    return error, last, grads, nonfinite_devices


def _runs_one_way(net: Network, loss: Loss) -> bool:
    one_way = all(layer.backward is None for layer in net.layers)
    remembers = any(layer.is_recurrent for layer in net.layers)
    return one_way and remembers and is_additive(loss) and not net.readout.of_last


def _by_layers(objective: Objective, local: _Local) -> tuple[Array, NetworkCarry, NetworkParams]:
    """The layers run one after the other, each over all steps."""
    net, loss, gradient, _ = objective
    params, carry, sequence = local.params, local.carry, local.sequence

    def run(below: NetworkParams) -> tuple[Array, NetworkCarry]:
        last, hs = features(net, below, carry, sequence, gradient, local.keys)
        return hs, last

    hs, backward, last = jax.vjp(run, params._replace(readout=None), has_aux=True)  # (V1)
    rows = rows_of(sequence.xs, params, carry)
    found = loss_and_grad(net.readout, loss, params.readout, hs, local.judged, rows)  # (V2)
    (d_below,) = backward(found.hs)  # (V3)
    return found.error, last, d_below._replace(readout=found.params)


def _by_chunks(objective: Objective, local: _Local) -> tuple[Array, NetworkCarry, NetworkParams]:
    """The chunks run one after the other, each through all layers, the readout and the loss."""
    net, loss, gradient, _ = objective
    params, sequence = local.params, local.sequence
    # within a chunk the gradient is exact; the method decides what happens between chunks
    of_chunk = full()._replace(engine=gradient.engine)
    forward_only = of_chunk._replace(backward=None)  # JAX can differentiate it in any mode
    Chunk = tuple[Sequence, Array, PRNGKey | None]  # the array holds the numbers of the steps

    def run(
        below: NetworkParams, carry: NetworkCarry, here: Chunk, method: GradientMethod = of_chunk
    ) -> tuple[NetworkCarry, Array]:
        sequence, _, keys = here
        return features(net, below, carry, sequence, method, keys)  # (V1)

    def advance(params: NetworkParams, carry: NetworkCarry, here: Chunk) -> NetworkCarry:
        return run(params, carry, here, forward_only)[0]

    def reverse(params: NetworkParams, carry: NetworkCarry, here: Chunk, d_carry: NetworkCarry) -> Reversed:
        def of_numbers(below: NetworkParams, s: NetworkCarry) -> tuple[tuple[NetworkCarry, Array], Any]:
            last, hs = run(below, merged(s, carry), here)
            return (differentiable(last), hs), last

        below = params._replace(readout=None)
        (_, hs), backward, last = jax.vjp(of_numbers, below, differentiable(carry), has_aux=True)
        first = here[1][0]
        found = loss_and_grad_of_steps(net.readout, loss, params.readout, hs, local.judged, first)  # (V2)
        d_below, d_carry = backward((d_carry, found.hs))  # (V3)
        return Reversed(last, d_below._replace(readout=found.params), d_carry, found.error)

    def begin(cells: tuple[Any, ...]) -> tuple[NetworkCarry, NetworkCarry]:
        s_0 = filled_carry(net, cells, local.carry, sequence.rows)
        s_0 = to_local(s_0, sequence)
        return differentiable(s_0), s_0

    assert gradient.stream is not None  # `_run` asks
    _, back_to_cells, s_0 = jax.vjp(begin, params.cells, has_aux=True)
    data: Chunk = sequence, jnp.arange(sequence.steps), local.keys
    streamed: Streamed = gradient.stream(Recurrence(advance, reverse), params, s_0, sequence, data)  # (V4)
    d_params: NetworkParams = streamed.d_weights
    d_params = d_params._replace(cells=plus(d_params.cells, back_to_cells(streamed.d_carry)[0]))
    error = functools.reduce(jnp.add, [errors.sum() for errors in streamed.out])
    return error, streamed.carry, d_params

"""The loss of a network and its gradient, by hand from E back to the first W_x.

article   E = Σ_t (d_t − Y_t)²,   Y_t = g₂(W_y S_t)

forward   h_t = layers(x_t)                 `network`                                     (V1)
          E, and G_t = dE/dh_t              `reading`                                     (V2)
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
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jax_bptt.engine.devices import ALL, ROWS, STEPS, as_own, on_devices, rows_of, shared_by, total
from jax_bptt.engine.loops import plus
from jax_bptt.engine.sequence import Sequence
from jax_bptt.gradients.full import full
from jax_bptt.gradients.method import GradientMethod, Recurrence, Streamed
from jax_bptt.networks.layers import dropout_keys
from jax_bptt.networks.losses import Loss, check_loss, check_targets, count, is_additive
from jax_bptt.networks.network import (
    Network,
    NetworkParams,
    check_network,
    check_run,
    computing,
    features,
)
from jax_bptt.networks.readout import outputs_lie
from jax_bptt.networks.readout_and_loss import read, read_steps


def value_and_grad(net: Network, loss: Loss) -> Callable[..., tuple[tuple[Array, Any], NetworkParams]]:
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

    def run(
        params: NetworkParams,
        carry: Any,
        xs: Array,
        targets: Any,
        *,
        gradient: GradientMethod = full(),
        mask: Array | None = None,
        reset: Array | None = None,
        cut: Array | None = None,
        key: Array | None = None,
        dtype: DTypeLike | None = None,
    ) -> tuple[tuple[Array, Any], NetworkParams]:
        sequence = Sequence(xs, mask, reset, cut)
        solved = solve(net, loss, params, carry, sequence, targets, gradient, key, dtype)
        return (solved.error, solved.carry), solved.grads

    return run


class Solved(NamedTuple):
    """What a run of a network gives.

    Attributes:
      error: E, a scalar.
      carry: s_T of every layer.
      grads: dE/dθ.
      broken: on how many devices s_T is not finite, a number of the dtype of E.
    """

    error: Array
    carry: Any
    grads: NetworkParams
    broken: Array


def solve(
    net: Network,
    loss: Loss,
    params: NetworkParams,
    carry: Any,
    sequence: Sequence,
    targets: Any,
    gradient: GradientMethod,
    key: Array | None,
    dtype: DTypeLike | None,
) -> Solved:
    """`value_and_grad`, and whether the carry can be gone on with; all sums over devices are one."""
    params, carry, sequence = check_run(net, params, carry, sequence, gradient, key)
    check_outputs(net, loss, sequence, targets)
    run = functools.partial(_solve, computing(dtype, net, params), loss, gradient)
    rows = rows_of(sequence.xs, params, carry) if is_additive(loss) else None  # another sees all of Y
    inputs, outputs = (ALL, ROWS, STEPS, outputs_lie(net.readout), STEPS), (ALL, ROWS, ALL, ALL)
    keys = dropout_keys(key, sequence)
    return Solved(*on_devices(run, rows, inputs, outputs)(params, carry, sequence, targets, keys))


class _Problem(NamedTuple):
    """What the gradient is of; keys are of `dropout_keys`, n is `loss.count` over all devices."""

    net: Network
    loss: Loss
    params: NetworkParams
    carry: Any
    sequence: Sequence
    targets: Any
    keys: Array | None
    n: Any


def _solve(
    net: Network,
    loss: Loss,
    gradient: GradientMethod,
    params: NetworkParams,
    carry: Any,
    sequence: Sequence,
    targets: Any,
    keys: Array | None,
) -> tuple[Array, Any, NetworkParams, Array]:
    """E and dE/dθ of the rows of all devices, and s_T of this one's."""
    rows = carry, sequence, targets, keys
    axes = shared_by(rows, params)
    params, carry, sequence, keys = as_own((params, carry, sequence, keys), (params, *rows))
    n = total(count(loss, targets, steps_that_count(net, sequence.mask)), axes)
    problem = _Problem(net, loss, params, carry, sequence, targets, keys, n)
    if gradient.stream is not None and _runs_one_way(net, loss):
        error, last, grads = _by_chunks(problem, gradient.stream)
    else:
        error, last, grads = _by_layers(problem, gradient)
    finite = [jnp.isfinite(s).all() for s in jax.tree.leaves(last)]
    broken = 1 - jnp.stack(finite).all().astype(error.dtype)
    error, grads, broken = total((error, grads, broken), axes)
    return error, last, grads, broken


def _runs_one_way(net: Network, loss: Loss) -> bool:
    one_way = all(layer.backward is None for layer in net.layers)
    return one_way and is_additive(loss) and not net.readout.of_last


def _by_layers(problem: _Problem, gradient: GradientMethod) -> tuple[Array, Any, NetworkParams]:
    net, loss, params, carry, sequence, targets, keys, n = problem

    def run(cells: tuple[Any, ...]) -> tuple[Array, Any]:
        last, hs = features(net, cells, carry, sequence, gradient, keys)
        return hs, last

    hs, backward, last = jax.vjp(run, params.cells, has_aux=True)  # (V1)
    counted = steps_that_count(net, sequence.mask)
    rows = rows_of(sequence.xs, params, carry)
    error, d_readout, d_hs = read(net.readout, loss, params.readout, hs, targets, counted, n, rows)  # (V2)
    (d_cells,) = backward(d_hs)  # (V3)
    return error, last, NetworkParams(d_cells, d_readout)


def _by_chunks(problem: _Problem, stream: Callable[..., Streamed]) -> tuple[Array, Any, NetworkParams]:
    net, loss, params, carry, sequence, targets, keys, n = problem

    def run(cells: tuple[Any, ...], carry: Any, here: Any) -> tuple[Any, Array]:
        sequence, _, keys = here
        return features(net, cells, carry, sequence, full(), keys)  # (V1)

    def advance(params: NetworkParams, carry: Any, here: Any) -> Any:
        return run(params.cells, carry, here)[0]

    def reverse(params: NetworkParams, carry: Any, here: Any, d_carry: Any) -> Any:
        (last, hs), backward = jax.vjp(lambda cells, s: run(cells, s, here), params.cells, carry)
        sequence, targets, _ = here
        error, d_readout, d_hs = read_steps(
            net.readout, loss, params.readout, hs, targets, sequence.mask, n
        )  # (V2)
        d_cells, d_carry = backward((d_carry, d_hs))  # (V3)
        return last, NetworkParams(d_cells, d_readout), d_carry, error

    def begun(cells: tuple[Any, ...]) -> tuple[Any, ...]:
        return as_own(_begun(net, params._replace(cells=cells), carry, sequence), sequence)

    s_0, begin = jax.vjp(begun, params.cells)
    data = sequence, targets, keys
    streamed = stream(Recurrence(advance, reverse), params, s_0, sequence, data)  # (V4)
    d_params = streamed.d_weights
    d_params = d_params._replace(cells=plus(d_params.cells, begin(streamed.d_carry)[0]))
    error = sum(errors.sum() for errors in streamed.out)
    return error, streamed.carry, d_params


def _begun(net: Network, params: NetworkParams, carry: Any, sequence: Sequence) -> tuple[Any, ...]:
    """The carry of every layer, the initial one where it is None."""
    initial = net.initial_carry(params, sequence.xs.shape[1:-1])
    return tuple(
        begun if given is None else given
        for begun, given in zip(initial, carry or [None] * len(initial), strict=True)
    )


def steps_that_count(net: Network, mask: Array | None) -> Array | None:
    """Where an output counts: the mask, or under `last` the rows with any valid step."""
    return mask.any(0) if mask is not None and net.readout.of_last else mask


def check_outputs(net: Network, loss: Loss, sequence: Sequence, targets: Any) -> None:
    """ValueError unless the targets fit an additive loss of the outputs."""
    if is_additive(loss):
        leading = sequence.xs.shape[1:-1] if net.readout.of_last else sequence.xs.shape[:-1]
        ys = jax.ShapeDtypeStruct((*leading, net.readout.output_size), sequence.xs.dtype)
        check_targets(loss, ys, targets, steps_that_count(net, sequence.mask))

"""Layers, a readout and a loss, and the gradient from the loss back to the first W_x.

article   Y_t = g₂(W_y S_t),   E = Σ_t (d_t − Y_t)²

forward   h_t = layers(x_t)                 `layers`, each cell by `unroll`               (N1)
          Y_t = readout(h_t)                                                              (N2)

back      dE/dY_t                           from `loss`                                   (N3)
          dE/dW_y, G_t = dE/dh_t            `readout`, by hand                            (N4)
          dE/dW_x, dE/dW_h of each layer    from G_t: the summed rule, in `gradients`;    (N5)
          G_t of the layer below            is dE/dx_t of this one

No jax.grad goes through time: (N5) is the backward pass of the gradient method, layer after layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from collections.abc import Sequence as ListOf
from typing import Any, NamedTuple

import jax
from jax import Array

from jax_bptt.arguments import (
    as_arrays,
    check_inputs,
    check_method,
    check_params,
    check_steps,
    parameter_shapes,
)
from jax_bptt.cell import Cell, check_batch_shape, check_key
from jax_bptt.errors import bad
from jax_bptt.gradients.full import full
from jax_bptt.gradients.method import GradientMethod
from jax_bptt.layers import Directions, Layer, at_last_step, layer, run_layers
from jax_bptt.loss import Loss, check_loss, value_and_slope
from jax_bptt.readout import Readout, ReadoutParams
from jax_bptt.sequence import Sequence
from jax_bptt.step_cell import StepCell


class NetworkParams(NamedTuple):
    """Parameters of a network.

    Attributes:
      cells: one params per layer, the first nearest to the input; `Directions` of two where a layer
        reads both ways.
      readout: `ReadoutParams`.
    """

    cells: tuple[Any, ...]
    readout: ReadoutParams


class Network(NamedTuple):
    """Layers and a readout; made by `network`.

    Attributes:
      layers: the first nearest to the input.
      readout: from the last layer's features to Y.
    """

    layers: tuple[Layer, ...]
    readout: Readout

    def init(self, key: Array) -> NetworkParams:
        """Parameters of every layer and of the readout.

        Args:
          key: a key from jax.random.key.

        Returns:
          `NetworkParams` in the default float dtype.
        """
        check_key(key)
        key_readout, *keys = jax.random.split(key, 1 + len(self.layers))
        return NetworkParams(tuple(map(_init_layer, self.layers, keys)), self.readout.init(key_readout))

    def initial_carry(self, params: NetworkParams, batch_shape: tuple[int, ...]) -> tuple[Any, ...]:
        """s_0 of every layer, zeros unless a cell has its own (see `learn_carry`).

        Args:
          params: from `init`; its dtype is the carry's.
          batch_shape: such as (32,), or () for no batch axis.

        Returns:
          One carry per layer, leaves [*batch_shape, H].
        """
        check_batch_shape(batch_shape)
        params = as_arrays(params)
        check_params(params, _parameter_shapes(self), "make them by net.init(key)")
        return tuple(
            layer.each(lambda cell, p: cell.initial_carry(p, batch_shape), p)
            for layer, p in zip(self.layers, params.cells, strict=True)
        )

    def next_carry(self, carry: Any) -> tuple[Any, ...]:
        """What the next chunk of the same rows begins with.

        Args:
          carry: from `apply` or `value_and_grad`, which the last chunk ended with.

        Returns:
          The same carry, but None, to begin anew, for each cell that reads backwards: its sequence
          ended with the chunk.
        """
        return tuple(
            ended if layer.backward is None else Directions(ended.forward, None)
            for layer, ended in zip(self.layers, carry, strict=True)
        )

    def apply(
        self,
        params: NetworkParams,
        carry: Any,
        xs: Array,
        *,
        gradient: GradientMethod = full(),
        mask: Array | None = None,
        reset: Array | None = None,
        cut: Array | None = None,
        key: Array | None = None,
    ) -> tuple[tuple[Any, ...], Array]:
        """Y_1..Y_T; differentiable by params, carry and xs.

        Y_t = g₂(h_t W_y + b_y)   (N1, N2)

        Args:
          params: from `init`.
          carry: s_0 of every layer, from `initial_carry` or an earlier call; None, also in the place
            of any one, for the initial carry of these params, to which the gradient then goes on.
          xs: [T, ..., I], time first, dtype of params.
          gradient: the backward pass of each layer, see `unroll`.
          mask, reset, cut: bool [T, ...], of every layer, see `unroll`. For a cell that reads
            backwards, a reset or cut at step t stands between t − 1 and t as well.
          key: a key from jax.random.key for dropout; None leaves all outputs in, for evaluation.

        Returns:
          (carry, ys): the last state of every layer, and Y, [T, ..., O], or [..., O] of `last`.

        Raises:
          ValueError: at trace time, naming the argument, what was expected and what came.
        """
        sequence = Sequence(xs, mask, reset, cut)
        params, carry, sequence = _check(self, params, carry, sequence, gradient, key)
        last, hs = _features(self, params.cells, carry, sequence, gradient, key)  # (N1)
        return last, self.readout.forward(params.readout, hs)[1]  # (N2)


def network(cells: ListOf[Cell | StepCell | Layer], readout: Readout) -> Network:
    """Layers of cells, each reading the features of the one before, and a readout.

    Args:
      cells: at least one cell, or `layer` of it; the input size of each is the size of the one before.
      readout: from `readout`, or `last` of it; its hidden size is that of the last layer.

    Returns:
      The `Network`, with init, initial_carry and apply.

    Raises:
      ValueError: no cell, or sizes that do not meet.

    >>> net = network([jb.lstm(3, 5), jb.layer(jb.gru(5, 4), backward=jb.gru(5, 4))], jb.readout(8, 2))
    >>> params = net.init(jax.random.key(0))
    >>> carry, ys = net.apply(params, net.initial_carry(params, ()), jnp.ones((7, 3)))
    >>> ys.shape
    (7, 2)
    """
    kinds = (Cell, StepCell, Layer)
    if not (isinstance(cells, (list, tuple)) and cells and all(isinstance(c, kinds) for c in cells)):
        raise bad("cells", "a list of cells", cells, "pass [jb.elman(input_size, hidden_size)]")
    if not isinstance(readout, Readout):
        raise bad("readout", "a Readout", readout, "pass jb.readout(hidden_size, output_size)")
    layers = tuple(c if isinstance(c, Layer) else layer(c) for c in cells)
    sizes = [c.output_size for c in layers]
    wanted = [c.input_size for c in layers[1:]] + [readout.hidden_size]
    if sizes != wanted:
        raise bad(
            "cells", f"hidden sizes {wanted}, as the next layers read", str(sizes), "make neighbours agree"
        )
    return Network(layers, readout)


def value_and_grad(net: Network, loss: Loss) -> Callable[..., tuple[tuple[Array, Any], NetworkParams]]:
    """The loss and its gradient by every parameter, by hand from E to W_x.

    dE/dW_y = Σ_t h_tᵀ δz_t;   dE/dW_h, dE/dW_x by the summed rule from G_t = δz_t W_yᵀ   (N3-N5)

    Args:
      net: from `network`.
      loss: `squared_error`, `softmax_cross_entropy`, or any (ys, targets) -> scalar, which is called
        as (ys, targets, mask=mask) where there is a mask.

    Returns:
      A pure function (params, carry, xs, targets, *, gradient=full(), mask=None, reset=None, cut=None,
      key=None) -> ((loss, carry), grads), with loss a scalar, carry the last state of every layer and
      grads like params; the arguments are those of `Network.apply`. The gradient ends at the carry
      that came in; a carry that is None, and a reset, begin at the initial carry, which is trained.
      Steps where mask is False count in no loss; under `last`, rows without any valid step.

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
    ) -> tuple[tuple[Array, Any], NetworkParams]:
        sequence = Sequence(xs, mask, reset, cut)
        params, carry, sequence = _check(net, params, carry, sequence, gradient, key)

        def features(cells: tuple[Any, ...]) -> tuple[Array, Any]:
            last, hs = _features(net, cells, carry, sequence, gradient, key)
            return hs, last

        hs, backward, last = jax.vjp(features, params.cells, has_aux=True)  # (N1)
        zs, ys = net.readout.forward(params.readout, hs)  # (N2)
        counted = sequence.mask
        if counted is not None and net.readout.of_last:
            counted = counted.any(0)
        error, d_ys = value_and_slope(loss, ys, targets, counted)  # (N3)
        d_readout, d_hs = net.readout.backward(params.readout, hs, zs, ys, d_ys)  # (N4)
        (d_cells,) = backward(d_hs)  # (N5)
        return (error, last), NetworkParams(d_cells, d_readout)

    return run


def check_network(net: Any) -> None:
    """ValueError unless net is a network."""
    if not isinstance(net, Network):
        raise bad("net", "a Network", net, "make one by jb.network([cell], readout)")


def _features(
    net: Network,
    cells: tuple[Any, ...],
    carry: Any,
    sequence: Sequence,
    gradient: GradientMethod,
    key: Array | None,
) -> tuple[tuple[Any, ...], Array]:
    """The last state of every layer, and what the readout reads."""
    last, hs = run_layers(net.layers, cells, carry, sequence, gradient, key)
    return last, at_last_step(net.layers[-1], hs, sequence.mask) if net.readout.of_last else hs


def _init_layer(layer: Layer, key: Array) -> Any:
    keys = key if layer.backward is None else Directions(*jax.random.split(key))
    return layer.each(lambda cell, k: cell.init(k), keys)


@functools.lru_cache(maxsize=256)
def _parameter_shapes(net: Network) -> NetworkParams:
    readout = jax.eval_shape(lambda: net.readout.init(jax.random.key(0)))
    return NetworkParams(tuple(layer.each(parameter_shapes) for layer in net.layers), readout)


def _check(
    net: Network, params: Any, carry: Any, sequence: Sequence, gradient: Any, key: Any
) -> tuple[NetworkParams, Any, Sequence]:
    """params, carry and sequence as arrays, or a ValueError that says which argument is wrong."""
    check_method(gradient)
    if key is not None:
        check_key(key)
    shapes, input_size = _parameter_shapes(net), net.layers[0].input_size
    params, carry, sequence = check_inputs("net", net, shapes, input_size, params, carry, sequence)
    rows = sequence.xs.shape[1:-1]
    for one, p in zip(net.layers, params.cells, strict=True):
        check_steps(gradient, one.cells, one.parts(p), rows)
    return params, carry, sequence

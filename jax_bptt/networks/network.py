"""Layers and a readout.

    article   Y_t = g₂(W_y S_t)

    forward   h_t = layers(x_t)             `layers`, each cell by `unroll`               (N1)
              Y_t = readout(h_t)            `readout`                                     (N2)

The way back from a loss is in `value_and_grad`.
"""

from __future__ import annotations

from collections.abc import Sequence as ListOf
from typing import Any, NamedTuple

import jax
from jax import Array
from jax.typing import DTypeLike

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import as_arrays, check_batch_shape, check_key
from jax_bptt.base.compiling import compiled
from jax_bptt.base.errors import bad, named
from jax_bptt.base.made import Call, by_shape, made
from jax_bptt.base.trees import num_parameters
from jax_bptt.base.types import Foreign, Mark, PRNGKey, Shape
from jax_bptt.cell.cell import Cell
from jax_bptt.cell.step_cell import AnyCell, StepCell
from jax_bptt.engine.devices import ALL, ROWS, STEPS, on_devices, rows_of
from jax_bptt.engine.sequence import Sequence
from jax_bptt.gradients.full import full
from jax_bptt.gradients.method import GradientMethod
from jax_bptt.networks.layers import Directions, Layer, at_last_step, dropout_keys, layer, run_layers
from jax_bptt.networks.readout import Readout, ReadoutParams, outputs_lie
from jax_bptt.unrolling.arguments import (
    check_inputs,
    check_method,
    check_params,
    check_step,
    fill_missing_carry,
    parameter_shapes,
    with_dtype,
)

NetworkCarry = tuple[Any, ...]  # of every layer the carry of its cell, or `Directions` of two


@by_shape
class NetworkParams(NamedTuple):
    """Parameters of a network.

    Attributes:
      cells: one params per layer, the first nearest to the input; `Directions` of two where a layer
        reads both ways.
      readout: `ReadoutParams`.
    """

    cells: tuple[Any, ...]
    readout: ReadoutParams


def _size(net: Network) -> str:
    try:
        return f"{num_parameters(_parameter_shapes(net)):,} parameters"
    except ValueError:  # of a cell whose init is wrong: to print it is no error
        return "parameters unknown"


@made(run="net.apply(params, carry, xs)", remark=_size)
class Network(NamedTuple):
    """Layers and a readout; made by `network`.

    Attributes:
      layers: the first nearest to the input.
      readout: from the last layer's features to Y.
      made_by: the call that made it, by which it is printed, copied and pickled.
    """

    layers: tuple[Layer, ...]
    readout: Readout
    made_by: Call | None = None

    @named("net.init")
    def init(self, key: PRNGKey) -> NetworkParams:
        """Parameters of every layer and of the readout.

        Args:
          key: a key from jax.random.key.

        Returns:
          `NetworkParams` in the default float dtype.
        """
        check_key(key)
        key_readout, *keys = jax.random.split(key, 1 + len(self.layers))
        return NetworkParams(tuple(map(_init_layer, self.layers, keys)), self.readout.init(key_readout))

    @named("net.initial_carry")
    def initial_carry(self, params: NetworkParams, batch_shape: Shape) -> NetworkCarry:
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

    @named("net.next_carry")
    def next_carry(self, carry: NetworkCarry) -> NetworkCarry:
        """What the next chunk of the same rows begins with.

        Args:
          carry: from `apply` or `value_and_grad`, which the last chunk ended with.

        Returns:
          The same carry, but None, to begin anew, for each cell that reads backwards: its sequence
          ended with the chunk.
        """
        both = [isinstance(c, Directions) for c in carry] if isinstance(carry, tuple) else None
        if both != [layer.backward is not None for layer in self.layers]:
            expected = f"a tuple of {len(self.layers)}, one for each layer, Directions for both ways"
            raise bad("carry", expected, carry, "pass what apply or value_and_grad returns")
        return tuple(
            ended if layer.backward is None else Directions(ended.forward, None)
            for layer, ended in zip(self.layers, carry, strict=True)
        )

    @named("net.apply")
    @compiled("self", "gradient", "dtype")
    def apply(
        self,
        params: NetworkParams,
        carry: NetworkCarry | None,
        xs: Array,
        *,
        gradient: GradientMethod = full(),
        mask: Mark = None,
        reset: Mark = None,
        cut: Mark = None,
        key: PRNGKey | None = None,
        dtype: DTypeLike | None = None,
    ) -> tuple[NetworkCarry, Array]:
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
          dtype: jnp.bfloat16 for mixed precision in every layer and the readout, see `unroll`.

        Returns:
          (carry, ys): the last state of every layer, and Y, [T, ..., O], or [..., O] of `last`.

        Raises:
          ValueError: at trace time, naming the argument, what was expected and what came.
        """
        sequence = Sequence(xs, mask, reset, cut)
        params, carry, sequence = check_run(self, params, carry, sequence, gradient, key)
        net = network_with_dtype(dtype, self, params)
        last, hs = features(net, params.cells, carry, sequence, gradient, dropout_keys(key, sequence))
        lie = outputs_lie(net.readout)
        forward = on_devices(net.readout.forward, rows_of(sequence.xs, params, carry), (ALL, lie), (lie, lie))
        return last, forward(params.readout, hs)[1]  # (N2)


def _cells(argument: str, value: Foreign) -> tuple[AnyCell | Layer, ...]:
    kinds = (Cell, StepCell, Layer)
    if not (isinstance(value, (list, tuple)) and value and all(isinstance(c, kinds) for c in value)):
        raise bad(argument, "a list of cells", value, "pass [jb.elman(input_size, hidden_size)]")
    return tuple(value)


@cached(cells=_cells)
def network(cells: ListOf[AnyCell | Layer], readout: Readout) -> Network:
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


def check_network(net: object) -> None:
    """ValueError unless net is a network."""
    if not isinstance(net, Network):
        raise bad("net", "a Network", net, "make one by jb.network([cell], readout)")


def network_with_dtype(dtype: DTypeLike | None, net: Network, params: NetworkParams) -> Network:
    """The network with every matrix product on operands of this dtype, or a ValueError."""
    layers = (
        one._replace(
            forward=with_dtype(dtype, one.forward, p),
            backward=None if one.backward is None else with_dtype(dtype, one.backward, p),
        )
        for one, p in zip(net.layers, params.cells, strict=True)
    )
    return net._replace(layers=tuple(layers), readout=with_dtype(dtype, net.readout, params))


def features(
    net: Network,
    cells: tuple[Any, ...],
    carry: NetworkCarry | None,
    sequence: Sequence,
    gradient: GradientMethod,
    keys: PRNGKey | None,
) -> tuple[NetworkCarry, Array]:
    """The last state of every layer, and what the readout reads; keys as for `run_layers`."""

    def run(
        cells: tuple[Any, ...], carry: NetworkCarry | None, sequence: Sequence, keys: PRNGKey | None
    ) -> tuple[NetworkCarry, Array]:
        last, hs = run_layers(net.layers, cells, carry, sequence, gradient, keys)  # (N1)
        return last, at_last_step(net.layers[-1], hs, sequence.mask) if net.readout.of_last else hs

    rows, inputs = rows_of(sequence.xs, cells, carry), (ALL, ROWS, STEPS, STEPS)
    last, hs = on_devices(run, rows, inputs, (ROWS, outputs_lie(net.readout)))(cells, carry, sequence, keys)
    return last, hs


def _init_layer(layer: Layer, key: PRNGKey) -> Any:
    keys = key if layer.backward is None else Directions(*jax.random.split(key))
    return layer.each(lambda cell, k: cell.init(k), keys)


def filled_carry(
    net: Network, params: NetworkParams, carry: NetworkCarry | None, rows: Shape
) -> NetworkCarry:
    """The carry of every layer, the initial one where it is None."""
    initial = net.initial_carry(params, rows)
    return initial if carry is None else fill_missing_carry(carry, initial)


@cached()
def _parameter_shapes(net: Network) -> NetworkParams:
    readout = jax.eval_shape(lambda: net.readout.init(jax.random.key(0)))
    return NetworkParams(tuple(layer.each(parameter_shapes) for layer in net.layers), readout)


def check_run(
    net: Network,
    params: Foreign,
    carry: Foreign,
    sequence: Sequence,
    gradient: Foreign = full(),
    key: Foreign = None,
) -> tuple[NetworkParams, NetworkCarry | None, Sequence]:
    """params, carry and sequence as arrays, or a ValueError that says which argument is wrong."""
    check_method(gradient)
    if key is not None:
        check_key(key)
    sizes = _parameter_shapes(net), net.layers[0].input_size
    params, carry, sequence = check_inputs("net", net, sizes, params, carry, sequence)
    if gradient.backward is not None:  # to JAX any step is welcome
        for one, p in zip(net.layers, params.cells, strict=True):
            for cell, of_cell in zip(one.cells, one.parts(p), strict=True):
                check_step(gradient.on_engine(cell), of_cell, sequence.rows)
    return params, carry, sequence

"""A network is a stack of layers with a readout on top.

    article   Y_t = g₂(W_y S_t)

    forward   h_t = layers(x_t)             `layers`, each cell by `unroll`               (N1)
              Y_t = readout(h_t)            `readout`                                     (N2)

The backward pass from a loss is in `value_and_grad`.
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
from jax_bptt.base.errors import bad, named, running
from jax_bptt.base.made import Call, by_shape, made
from jax_bptt.base.trees import apart, num_parameters
from jax_bptt.base.types import Foreign, Mark, PRNGKey, Shape
from jax_bptt.cell.cell import Cell
from jax_bptt.cell.step_cell import AnyCell, StepCell
from jax_bptt.engine.devices import ALL, ROWS, STEPS, on_devices, rows_of
from jax_bptt.engine.sequence import Sequence
from jax_bptt.gradients.full import full
from jax_bptt.gradients.method import GradientMethod
from jax_bptt.networks.layers import Directions, Layer, at_last_step, dropout_keys, layer, run_layers
from jax_bptt.networks.network_step import check_network_step, step_network
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

NetworkCarry = tuple[Any, ...]  # one per layer: the carry of its cell, or `Directions` of two carries


@by_shape
class NetworkParams(NamedTuple):
    """These are the parameters of a network.

    Attributes:
      cells: the params of each layer, the layer nearest to the input first; `Directions` of two params for
        a layer that reads both ways.
      readout: `ReadoutParams`.
    """

    cells: tuple[Any, ...]
    readout: ReadoutParams


def _size(net: Network) -> str:
    try:
        return f"{num_parameters(_parameter_shapes(net)):,} parameters"
    except Exception:  # whatever is wrong with a cell's init: to print it is no error
        return "parameters unknown"


@made(run="run it by net.apply(params, carry, xs)", remark=_size)
class Network(NamedTuple):
    """A `Network` holds layers and a readout; `network` makes it.

    Attributes:
      layers: the layers, the one nearest to the input first.
      readout: the map from the last layer's features to Y.
      made_by: the call that made it, by which it is printed, copied and pickled.
    """

    layers: tuple[Layer, ...]
    readout: Readout
    made_by: Call | None = None

    @named("net.init")
    def init(self, key: PRNGKey) -> NetworkParams:
        """This makes random parameters for every layer and for the readout.

        Args:
          key: a key from jax.random.key.

        Returns:
          `NetworkParams` in the default float dtype.

        Raises:
          ValueError: key is not a PRNG key.
        """
        check_key(key)
        key_readout, *keys = jax.random.split(key, 1 + len(self.layers))
        return NetworkParams(tuple(map(_init_layer, self.layers, keys)), self.readout.init(key_readout))

    @named("net.initial_carry")
    def initial_carry(self, params: NetworkParams, batch_shape: Shape) -> NetworkCarry:
        """This makes s_0 of every layer: zeros, unless the cell trains its own (see `learn_carry`).

        Args:
          params: from `init`; the carry has the same dtype.
          batch_shape: the batch axes, such as (32,), or () for no batch axis.

        Returns:
          One carry per layer, leaves [*batch_shape, H].

        Raises:
          ValueError: params do not belong to this network, or batch_shape is not a tuple of sizes.
        """
        check_batch_shape(batch_shape)
        params = as_arrays("params", params)
        check_params(params, _parameter_shapes(self), "make them by net.init(key)")
        with running("initial_carry"):
            carry = tuple(
                layer.each(lambda cell, p: cell.initial_carry(p, batch_shape), p)
                for layer, p in zip(self.layers, params.cells, strict=True)
            )
        return apart(carry, params)  # a cell of the user's may return a parameter itself

    @named("net.next_carry")
    def next_carry(self, carry: NetworkCarry) -> NetworkCarry:
        """This makes the carry with which the next chunk of the same rows begins.

        Args:
          carry: the last carry of the previous chunk, from `apply` or `value_and_grad`.

        Returns:
          The same carry, but None for each cell that reads backwards. That cell begins again from its
          initial carry, because its sequence ended with the previous chunk.

        Raises:
          ValueError: carry does not have one entry for each layer.
        """
        both = [isinstance(c, Directions) for c in carry] if isinstance(carry, tuple) else None
        if both != [layer.backward is not None for layer in self.layers]:
            expected = f"a tuple of {len(self.layers)}, one for each layer, Directions for both ways"
            raise bad("carry", expected, carry, "pass the carry that apply or value_and_grad returns")
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
        starts: NetworkCarry | None = None,
        key: PRNGKey | None = None,
        dtype: DTypeLike | None = None,
    ) -> tuple[NetworkCarry, Array]:
        """This runs the network; the outputs Y_1..Y_T are differentiable by params, carry, xs and starts.

        Y_t = g₂(h_t W_y (+ b_y))   (N1, N2)

        Args:
          params: from `init`.
          carry: s_0 of every layer, from `initial_carry` or an earlier call. None, for all layers or for
            one of them, stands for the initial carry of these params; the gradient then reaches the
            params through it.
          xs: [T, ..., I], time first, dtype of params.
          gradient: the gradient method of each layer, see `unroll`.
          mask, reset, cut: bool [T, ...] for all layers, see `unroll`. For a cell that reads backwards a
            reset or cut at step t also acts between t − 1 and t.
          starts: the states to which resets go back, a carry with leaves [T, ..., H], see `unroll`; None,
            for all layers or for one of them, stands for the initial carry. A cell that reads backwards
            begins step t − 1 from starts_t.
          key: a key from jax.random.key for dropout; None turns dropout off, for evaluation.
          dtype: jnp.bfloat16 for mixed precision in every layer and the readout, see `unroll`.

        Returns:
          (carry, ys): the last state of every layer, and Y, [T, ..., O], or [..., O] with `last`.

        Raises:
          ValueError: at trace time; it names the argument, what was expected and what was passed.
        """
        sequence = Sequence(xs, mask, reset, cut, starts=starts)
        params, carry, sequence = check_run(self, params, carry, sequence, gradient, key)
        net = network_with_dtype(dtype, self, params)
        last, hs = features(net, params.cells, carry, sequence, gradient, dropout_keys(key, sequence))
        lie = outputs_lie(net.readout)
        forward = on_devices(net.readout.forward, rows_of(sequence.xs, params, carry), (ALL, lie), (lie, lie))
        return last, forward(params.readout, hs)[1]  # (N2)

    @named("net.step")
    @compiled("self", "dtype")
    def step(
        self,
        params: NetworkParams,
        carry: NetworkCarry | None,
        x: Array,
        *,
        mask: Mark = None,
        reset: Mark = None,
        dtype: DTypeLike | None = None,
    ) -> tuple[NetworkCarry, Array]:
        """This takes one step, without dropout; in a loop it gives the numbers of `apply`, see `step`.

        Y_t = g₂(h_t W_y (+ b_y))   (N1, N2)

        Args:
          params: from `init`.
          carry: from `initial_carry` or the step before; None as for `apply`.
          x: x_t, [..., I], dtype of params.
          mask, reset: bool [...] for all layers, see `step`.
          dtype: as for `apply`.

        Returns:
          (carry, y): the state of every layer and Y_t, [..., O]. With `last`, Y_t is the output of a
          sequence that ends here.

        Raises:
          ValueError: at trace time, also for a network with a layer that reads backwards.
        """
        sizes = _parameter_shapes(self), self.layers[0].input_size
        params, carry, sequence = check_network_step(self, sizes, params, carry, x, mask, reset)
        net = network_with_dtype(dtype, self, params)
        return step_network(net.layers, net.readout, params, carry, sequence)


def _cells(argument: str, value: Foreign) -> tuple[AnyCell | Layer, ...]:
    kinds = (Cell, StepCell, Layer)
    if not (isinstance(value, (list, tuple)) and value and all(isinstance(c, kinds) for c in value)):
        raise bad(argument, "a list of cells", value, "pass [jb.elman(input_size, hidden_size)]")
    return tuple(value)


@cached(cells=_cells)
def network(cells: ListOf[AnyCell | Layer], readout: Readout) -> Network:
    """A network feeds the outputs of each layer to the next one, and those of the last to a readout.

    Args:
      cells: a list of cells, or of layers made by `layer`, the one nearest to the input first. The input
        size of each must equal the output size of the previous one.
      readout: from `readout` or `last`; its hidden size must equal the output size of the last layer.

    Returns:
      The `Network`, with the methods init, initial_carry, next_carry, apply and step.

    Raises:
      ValueError: cells is empty or holds something else than cells and layers, readout is not a `Readout`,
        or two sizes do not agree.

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
        fix = "each input size must equal the output size of the previous layer"
        raise bad("cells", f"hidden sizes {wanted}, as the next layers read", str(sizes), fix)
    return Network(layers, readout)


def check_network(net: object) -> None:
    """This raises a ValueError unless net is a network."""
    if not isinstance(net, Network):
        raise bad("net", "a Network", net, "make one by jb.network([cell], readout)")


def network_with_dtype(dtype: DTypeLike | None, net: Network, params: NetworkParams) -> Network:
    """The network is returned with every matrix product on operands of this dtype."""
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
    """The layers return their last states and the features for the readout; keys are as in `run_layers`."""

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
    with running("init"):
        return layer.each(lambda cell, k: cell.init(k), keys)


def filled_carry(
    net: Network, params: NetworkParams, carry: NetworkCarry | None, rows: Shape
) -> NetworkCarry:
    """This is the carry of every layer, with the initial carry in place of None."""
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
    """params, carry and sequence are returned as arrays; a ValueError names an argument that is wrong."""
    check_method(gradient)
    if key is not None:
        check_key(key)
    sizes = _parameter_shapes(net), net.layers[0].input_size
    params, carry, sequence = check_inputs("net", net, sizes, params, carry, sequence)
    if gradient.backward is not None:  # JAX itself can differentiate any step, a hand-derived pass cannot
        for one, p in zip(net.layers, params.cells, strict=True):
            for cell, of_cell in zip(one.cells, one.parts(p), strict=True):
                check_step(gradient.on_engine(cell), of_cell, sequence.rows)
    return params, carry, sequence

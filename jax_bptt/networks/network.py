"""A network is a stack of layers with a readout on top, and perhaps an encoder in front.

    article   Y_t = g₂(W_y S_t)

    forward   h_t = layers(encoder(x_t))    `features`                                    (N1)
              Y_t = readout(h_t)            `readout`, or a `head`                        (N2)

The backward pass from a loss is in `value_and_grad`.
"""

from __future__ import annotations

from collections.abc import Sequence as ListOf
from typing import Any, NamedTuple, cast

import jax
from jax.typing import DTypeLike

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import as_arrays, check_batch_shape, check_key
from jax_bptt.base.compiling import compiled
from jax_bptt.base.errors import bad, named, running
from jax_bptt.base.made import Call, made
from jax_bptt.base.trees import apart, num_parameters
from jax_bptt.base.types import ArrayTree, Foreign, Mark, PRNGKey, Shape
from jax_bptt.cell.cell import Cell
from jax_bptt.cell.step_cell import AnyCell, StepCell
from jax_bptt.engine.devices import ALL, on_devices, rows_of
from jax_bptt.engine.sequence import Sequence
from jax_bptt.gradients.full import full
from jax_bptt.gradients.method import GradientMethod
from jax_bptt.networks.dense import Dense
from jax_bptt.networks.encoder import AnyEncoder, Embedding, check_encoder
from jax_bptt.networks.features import features, network_with_dtype
from jax_bptt.networks.head import with_own_readout
from jax_bptt.networks.layers import Directions, Layer, dropout_keys, layer
from jax_bptt.networks.network_arguments import check_network_step, check_run, sizes_of
from jax_bptt.networks.network_step import step_network
from jax_bptt.networks.params import NetworkCarry, NetworkParams, with_encoder
from jax_bptt.networks.readout import AnyReadout, OnTop, check_readout, outputs_lie
from jax_bptt.networks.recurrent_dropout import kept_units, thinned
from jax_bptt.unrolling.arguments import check_params, fill_missing_carry


def _size(net: Network) -> str:
    try:
        return f"{num_parameters(sizes_of(net).params):,} parameters"
    except Exception:  # whatever is wrong with a cell's init: to print it is no error
        return "parameters unknown"


@made(run="run it by net.apply(params, carry, xs)", remark=_size)
class Network(NamedTuple):
    """A `Network` holds layers, a readout and perhaps an encoder; `network` makes it.

    Attributes:
      layers: the layers, the one nearest to the input first.
      readout: the map from the last layer's features to Y.
      encoder: the map from the input of a step to what the first layer reads; None for none.
      made_by: the call that made it, by which it is printed, copied and pickled.
    """

    layers: tuple[Layer, ...]
    readout: AnyReadout
    encoder: AnyEncoder | None = None
    made_by: Call | None = None

    @named("net.init")
    def init(self, key: PRNGKey) -> NetworkParams:
        """This makes random parameters for every layer, for the readout and for the encoder.

        Args:
          key: a key from jax.random.key.

        Returns:
          `NetworkParams` in the default float dtype.

        Raises:
          ValueError: key is not a PRNG key.
        """
        check_key(key)
        key_readout, *keys = jax.random.split(key, 1 + len(self.layers))
        params = NetworkParams(tuple(map(_init_layer, self.layers, keys)), self.readout.init(key_readout))
        if self.encoder is None:
            return params
        with running("init", "init of the encoder is given one key"):
            return with_encoder(params, self.encoder.init(jax.random.fold_in(key, 1 + len(self.layers))))

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
        check_params(params, sizes_of(self).params, "make them by net.init(key)")
        return _initial_carry(self, params.cells, batch_shape)

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
        xs: ArrayTree,
        *,
        gradient: GradientMethod = full(),
        mask: Mark = None,
        reset: Mark = None,
        cut: Mark = None,
        starts: NetworkCarry | None = None,
        key: PRNGKey | None = None,
        dtype: DTypeLike | None = None,
    ) -> tuple[NetworkCarry, Any]:
        """This runs the network; the outputs Y_1..Y_T are differentiable by params, carry, xs and starts.

        Y_t = g₂(h_t W_y (+ b_y))   (N1, N2)

        Args:
          params: from `init`.
          carry: s_0 of every layer, from `initial_carry` or an earlier call. None, for all layers or for
            one of them, stands for the initial carry of these params; the gradient then reaches the
            params through it.
          xs: [T, ..., I], time first, dtype of params; with an encoder whatever it reads, leaves [T, ...].
          gradient: the gradient method of each layer, see `unroll`.
          mask, reset, cut: bool [T, ...] for all layers, see `unroll`. For a cell that reads backwards a
            reset or cut at step t also acts between t − 1 and t.
          starts: the states to which resets go back, a carry with leaves [T, ..., H], see `unroll`; None,
            for all layers or for one of them, stands for the initial carry. A cell that reads backwards
            begins step t − 1 from starts_t.
          key: a key from jax.random.key for dropout; None turns dropout off, for evaluation.
          dtype: jnp.bfloat16 for mixed precision in every layer and the readout, see `unroll`. An encoder
            and a head of your own compute in the dtype of their params.

        Returns:
          (carry, ys): the last state of every layer, and Y, [T, ..., O], or [..., O] with `last`; with a
          head whatever it makes of a step, leaves [T, ...] or [...].

        Raises:
          ValueError: at trace time; it names the argument, what was expected and what was passed.
        """
        sequence = Sequence(xs, mask, reset, cut, starts=starts)
        params, carry, sequence = check_run(self, params, carry, sequence, gradient, key)
        net, params = with_own_readout(network_with_dtype(dtype, self, params), params)
        params = params._replace(cells=thinned(params.cells, kept_units(net.layers, params.cells, key)))
        keys = dropout_keys(key, sequence)
        last, hs = features(net, params, carry, sequence, gradient, keys)  # (N1)
        lie = outputs_lie(net.readout)
        forward = on_devices(net.readout.forward, rows_of(sequence.xs, params, carry), (ALL, lie), (lie, lie))
        return last, forward(params.readout, hs)[1]  # (N2)

    @named("net.step")
    @compiled("self", "dtype")
    def step(
        self,
        params: NetworkParams,
        carry: NetworkCarry | None,
        x: ArrayTree,
        *,
        mask: Mark = None,
        reset: Mark = None,
        dtype: DTypeLike | None = None,
    ) -> tuple[NetworkCarry, Any]:
        """This takes one step, without dropout; in a loop it gives the numbers of `apply`, see `step`.

        Y_t = g₂(h_t W_y (+ b_y))   (N1, N2)

        Args:
          params: from `init`.
          carry: from `initial_carry` or the step before; None as for `apply`.
          x: x_t, [..., I], dtype of params; with an encoder the input of one step, leaves [...].
          mask, reset: bool [...] for all layers, see `step`.
          dtype: as for `apply`.

        Returns:
          (carry, y): the state of every layer and Y_t, [..., O], or what a head makes of the step. With
          `last`, Y_t is the output of a sequence that ends here.

        Raises:
          ValueError: at trace time, also for a network with a layer that reads backwards.
        """
        params, carry, sequence = check_network_step(self, params, carry, x, mask, reset)
        net, params = with_own_readout(network_with_dtype(dtype, self, params), params)
        return step_network(net, params, carry, sequence)


def _cells(argument: str, value: Foreign) -> tuple[AnyCell | Dense | Layer, ...]:
    kinds = (Cell, StepCell, Layer, Dense)
    if not (isinstance(value, (list, tuple)) and value) or hasattr(value, "_fields"):
        raise bad(argument, "a list of cells", value, "pass [jb.elman(input_size, hidden_size)]")
    for one in value:
        if not isinstance(one, kinds):
            fix = "an encoder and a readout are arguments of their own: jb.network(cells, readout, encoder)"
            raise bad(argument, "a list of cells", one, fix)
    return tuple(value)


@cached(cells=_cells)
def network(
    cells: ListOf[AnyCell | Dense | Layer], readout: OnTop, encoder: AnyEncoder | None = None
) -> Network:
    """A network feeds the outputs of each layer to the next one, and those of the last to a readout.

    Args:
      cells: a list of cells, or of layers made by `layer` and `dense`, the one nearest to the input first.
        The input size of each must equal the output size of the previous one.
      readout: from `readout`, `tied_readout` or `head`, perhaps in `last`; it must read as many features as
        the last layer has.
      encoder: from `embedding` or `encoder`, which makes the x_t of the first layer from what you pass as xs;
        None if xs is x_1..x_T itself.

    Returns:
      The `Network`, with the methods init, initial_carry, next_carry, apply and step.

    Raises:
      ValueError: cells is empty or holds something else than cells and layers, readout or encoder is
        something else, or two sizes do not agree.

    >>> net = network([jb.lstm(3, 5), jb.layer(jb.gru(5, 4), backward=jb.gru(5, 4))], jb.readout(8, 2))
    >>> params = net.init(jax.random.key(0))
    >>> carry, ys = net.apply(params, net.initial_carry(params, ()), jnp.ones((7, 3)))
    >>> ys.shape
    (7, 2)
    """
    check_readout(readout)
    check_encoder(encoder)
    layers = tuple(c if isinstance(c, Layer) else layer(c) for c in cells)
    sizes = [c.output_size for c in layers]
    wanted = [c.input_size for c in layers[1:]] + [readout.reads(sizes[-1], encoder)]
    if sizes != wanted:
        fix = "each input size must equal the output size of the previous layer"
        raise bad("cells", f"hidden sizes {wanted}, as the next layers read", str(sizes), fix)
    if isinstance(encoder, Embedding) and encoder.size != layers[0].input_size:
        fix = "its size must be the input size of the first layer"
        raise bad("encoder", f"an embedding of size {layers[0].input_size}", encoder, fix)
    reads_back = [one.backward is not None for one in layers if one.is_recurrent]
    if readout.of_last and not layers[-1].is_recurrent and reads_back[-1:] == [True]:
        fix = "put what follows the layer that reads both ways into a jb.head: jb.last(jb.head(apply, init))"
        raise bad("cells", "no dense layer after the last recurrent one, with jb.last", layers[-1], fix)
    return Network(layers, cast(AnyReadout, readout), encoder)  # or a tied one, until `with_own_readout`


def check_network(net: object) -> None:
    """This raises a ValueError unless net is a network."""
    if not isinstance(net, Network):
        raise bad("net", "a Network", net, "make one by jb.network([cell], readout)")


def _init_layer(layer: Layer, key: PRNGKey) -> Any:
    keys = key if layer.backward is None else Directions(*jax.random.split(key))
    with running("init"):
        return layer.each(lambda cell, k: cell.init(k), keys)


def _initial_carry(net: Network, cells: tuple[Any, ...], rows: Shape) -> NetworkCarry:
    with running("initial_carry"):
        carry = tuple(
            layer.each(lambda cell, p: cell.initial_carry(p, rows), p)
            for layer, p in zip(net.layers, cells, strict=True)
        )
    return apart(carry, cells)  # a cell of the user's may return a parameter itself


def filled_carry(
    net: Network, cells: tuple[Any, ...], carry: NetworkCarry | None, rows: Shape
) -> NetworkCarry:
    """This is the carry of every layer, from params.cells, with the initial carry in place of None."""
    initial = _initial_carry(net, cells, rows)
    return initial if carry is None else fill_missing_carry(carry, initial)

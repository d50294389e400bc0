"""What a network did on a batch, kept for whoever asks where its gradient comes from.

    forward    s_1..s_T of every layer, and its a_1..a_T of `loops.linearise`
    loss       E, and G_t = dE/do_t by the outputs of the last layer

Nothing is forgotten: questions are asked of small batches, not in every step of training.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.errors import bad
from jax_bptt.engine import loops
from jax_bptt.engine.devices import whole
from jax_bptt.engine.sequence import Sequence, without_padding, zeros_like
from jax_bptt.gradients.full import full
from jax_bptt.networks.layers import Layer, at_last_step, dropout_keys, keys_of_layer, outputs_of
from jax_bptt.networks.losses import Loss, check_loss, count
from jax_bptt.networks.network import Network, NetworkParams, check_network, check_run
from jax_bptt.networks.readout_and_loss import read
from jax_bptt.networks.value_and_grad import check_outputs, steps_that_count


class LayerRecord(NamedTuple):
    """What one cell did.

    Attributes:
      cell, params: of the layer.
      sequence: what it read, [T, ..., I], and its marks; a carry that begins anew is a reset.
      s_prev: s̃_0..s̃_{T−1}, leaves [T, ..., H].
      states: s_1..s_T, leaves [T, ..., H].
      a: a_1..a_T.
      begin: dE/dstart, leaves [..., H], to its part of dE/dparams.
      pullback: dE/do_1..dE/do_T to the parts that come from h_t and from x_t.
    """

    cell: Any
    params: Any
    sequence: Sequence
    s_prev: Any
    states: Any
    a: Any
    begin: Callable[[Any], Any]
    pullback: Callable[[Array], tuple[Array, Array]]


class Record(NamedTuple):
    """What a network did: its layers, the first nearest to the input; E; and G, [T, ..., features]."""

    layers: tuple[LayerRecord, ...]
    error: Array
    d_outputs: Array


def record(
    net: Network,
    loss: Loss,
    params: NetworkParams,
    carry: Any,
    sequence: Sequence,
    targets: Any,
    key: Array | None,
) -> Record:
    """Run a network on a batch and keep everything; the arguments are those of `value_and_grad`.

    Raises:
      ValueError: as `value_and_grad`; a layer that reads backwards.
    """
    check_network(net)
    check_loss(loss)
    params, carry, sequence = check_run(net, params, carry, sequence, full(), key)
    check_outputs(net, loss, sequence, targets)
    params, carry, sequence, targets = whole((params, carry, sequence, targets))
    keys, here, layers = dropout_keys(key, sequence), sequence, []
    for number, (layer, p) in enumerate(zip(net.layers, params.cells, strict=True)):
        if layer.backward is not None:
            fix = "terms of a layer that reads both ways have no lag; ask about its forward cell alone"
            raise bad("net", "layers that read forward", f"layer {number} with a backward cell", fix)
        s_0, own = None if carry is None else carry[number], keys_of_layer(number, keys)
        one = record_of_layer(layer, p, s_0, here, own)
        layers.append(one)
        here = here._replace(xs=outputs_of(layer, one.states.h, one.sequence, own))

    def read_by_readout(outputs: Array) -> Array:
        return at_last_step(net.layers[-1], outputs, sequence.mask) if net.readout.of_last else outputs

    hs, back = jax.vjp(read_by_readout, here.xs)
    counted = steps_that_count(net, sequence.mask)
    n = count(loss, targets, counted)
    error, _, d_hs = read(net.readout, loss, params.readout, hs, targets, counted, n)
    return Record(tuple(layers), error, back(d_hs)[0])


def record_of_layer(
    layer: Layer, params: Any, carry: Any, sequence: Sequence, keys: Array | None
) -> LayerRecord:
    """Run one layer that reads forward; a carry that is None begins anew."""
    cell, rows = layer.forward, sequence.xs.shape[1:-1]
    sequence = without_padding(sequence)
    start, begin = jax.vjp(lambda p: cell.initial_carry(p, rows), params)
    if carry is None:
        first = jnp.zeros(sequence.xs.shape[:-1], bool).at[0].set(True)
        # a cut there closes the way to the initial carry, too
        first = first if sequence.cut is None else first & ~sequence.cut
        sequence = sequence._replace(reset=first if sequence.reset is None else first | sequence.reset)
        carry = start
    if sequence.reset is None:
        start = None
    _, states = loops.forward(cell, params, carry, start, sequence)
    s_prev = loops.previous(carry, start, sequence, states)
    a = loops.linearise(cell, params, s_prev, sequence, states)

    def outputs(hs: Array, xs: Array) -> Array:
        return outputs_of(layer, hs, sequence._replace(xs=xs), keys)

    _, pullback = jax.vjp(outputs, states.h, sequence.xs)
    return LayerRecord(cell, params, sequence, s_prev, states, a, lambda d: begin(d)[0], pullback)


def swept(
    record: Record, alter: Callable[[Any], Any] | None = None
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """λ_1..λ_T and dE/dparams of every layer, by the backward pass; alter as in `loops.step_back`."""
    d_outputs = record.d_outputs
    lams, gradient = tuple[Any, ...](), tuple[Any, ...]()
    for layer in reversed(record.layers):
        d_hs, d_skipped = layer.pullback(d_outputs)
        d_carry = zeros_like(jax.tree.map(lambda z: z[0], layer.states))
        _, d_start, lam = loops.sweep(layer.cell, layer.params, layer.a, layer.sequence, d_carry, d_hs, alter)
        d_params, d_xs = contracted(layer, lam, d_start)
        d_outputs = d_xs + d_skipped
        lams, gradient = (lam, *lams), (d_params, *gradient)
    return lams, gradient


def contracted(layer: LayerRecord, lam: Any, d_start: Any) -> tuple[Any, Array]:
    """What λ_1..λ_T, and dE/dstart (None without resets), say of the params, and dE/dx_t."""
    cell, params = layer.cell, layer.params
    d_params, d_xs = loops.contract(cell, params, layer.s_prev, layer.sequence, layer.a, lam)
    return d_params if d_start is None else loops.plus(d_params, layer.begin(d_start)), d_xs


def steps_back(layer: LayerRecord, params: Any, lam: Any) -> tuple[Any, Any, Any]:
    """`loops.step_back` at every step, from λ_t, leaves [T, ..., H]: what it returns, for each t."""
    cell, sequence = layer.cell, layer.sequence
    fixed = loops.engine_of(cell).before_sweep(cell, params)
    back = jax.vmap(functools.partial(loops.step_back, cell, params, fixed, None))
    return back(lam, layer.a, sequence.mask, sequence.reset, sequence.cut)

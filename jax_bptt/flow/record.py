"""A record stores a network's run on a batch, from which the diagnostics of the gradient are computed.

    forward    s_1..s_T of every layer, and its a_1..a_T of `phases.linearise`
    loss       E, and G_t = dE/do_t by the outputs of the last layer

All of it is stored, so diagnostics are meant for small batches, not for every step of training.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.errors import bad
from jax_bptt.base.trees import differentiable, last_step, plus, zeros_like
from jax_bptt.base.types import ArrayTree, PRNGKey, Slopes, State
from jax_bptt.cell.step_cell import AnyCell
from jax_bptt.engine import loops, phases
from jax_bptt.engine.devices import replicate, to_local, varying
from jax_bptt.engine.engine import Transform
from jax_bptt.engine.loops import StepBack
from jax_bptt.engine.run import Outputs, Run
from jax_bptt.engine.sequence import Sequence, without_padding
from jax_bptt.networks.features import encoded
from jax_bptt.networks.head import with_own_readout
from jax_bptt.networks.judged import Judged
from jax_bptt.networks.layers import Layer, at_last_step, dropout_keys, keys_of_layer, outputs_of
from jax_bptt.networks.losses import Loss, check_loss, count
from jax_bptt.networks.network import Network, check_network
from jax_bptt.networks.network_arguments import check_outputs, check_run, steps_that_count
from jax_bptt.networks.readout_and_loss import loss_and_grad
from jax_bptt.networks.recurrent_dropout import kept_units, thinned, thinned_layer
from jax_bptt.networks.value_and_grad import Inputs

Pullback: TypeAlias = Callable[[Array], tuple[Array, Array]]


class LayerRecord(NamedTuple):
    """A `LayerRecord` stores the run of one cell.

    Attributes:
      cell: the cell of the layer.
      run: its parameters, s_0, its inputs, [T, ..., I], and its marks. If it begins from the initial carry,
        there is a reset at the first step.
      s_prev: s̃_0..s̃_{T−1}, leaves [T, ..., H].
      states: s_1..s_T, leaves [T, ..., H]; None for leaves that have no derivative.
      slopes: a_1..a_T.
      d_start_to_params: a function from dE/dstart, leaves [..., H], to its part of dE/dparams.
      kept: what W_h of the run has been multiplied by, from `kept_units`; None for nothing.
      pullback: a function from dE/do_1..dE/do_T to (dE/dh_t, dE/dx_t); the latter is that of the residual
        connection alone. o_t are the inputs of the next layer with a state, behind the dense ones between.
    """

    cell: AnyCell
    run: Run
    s_prev: State
    states: State
    slopes: Slopes
    d_start_to_params: Callable[[State], Any]
    pullback: Pullback
    kept: Any = None


class Record(NamedTuple):
    """A `Record` stores the layers with a state, the one nearest to the input first; E; and G of the last."""

    layers: tuple[LayerRecord, ...]
    error: Array
    d_outputs: Array


def record(net: Network, loss: Loss, inputs: Inputs) -> Record:
    """This runs a network on a batch and stores the run.

    Args:
      net: from `network`; no layer may read backwards.
      loss: as for `value_and_grad`.
      inputs: the parameters, carry, sequence, targets, key and weight.

    Returns:
      The `Record`.

    Raises:
      ValueError: as for `value_and_grad`; or a layer reads backwards.
    """
    check_network(net)
    check_loss(loss)
    if not any(layer.is_recurrent for layer in net.layers):
        raise bad(
            "net", "a network with a layer that has a state", net, "no gradient goes through time in it"
        )
    params, carry, sequence = check_run(net, inputs.params, inputs.carry, inputs.sequence, key=inputs.key)
    targets, weight = check_outputs(net, loss, params, sequence, inputs.targets, inputs.weight)
    if varying((params, carry, sequence, targets, weight)):
        came = "different rows on every device of a jax.shard_map"
        raise bad("xs", "the rows of all devices", came, "call it outside, on arrays placed on the mesh")
    params, carry, sequence, targets, weight = replicate((params, carry, sequence, targets, weight))
    net, params = with_own_readout(net, params)
    keys, here = dropout_keys(inputs.key, sequence), encoded(net, params, sequence)
    kept = kept_units(net.layers, params.cells, inputs.key)
    cells = thinned(params.cells, kept)
    layers: list[LayerRecord] = []
    for number, (layer, p) in enumerate(zip(net.layers, cells, strict=True)):
        if layer.backward is not None:
            fix = "use a network without backward cells: terms of a layer that reads both ways have no lag"
            raise bad("net", "layers that read forward", f"layer {number} with a backward cell", fix)
        s_0, own = None if carry is None else carry[number], keys_of_layer(number, keys)
        if not layer.is_recurrent:
            outputs, back = jax.vjp(functools.partial(_through_dense, layer, p, here, own), here.xs)
            if layers:  # what comes after it goes back through it to the layer before
                layers[-1] = layers[-1]._replace(pullback=_through_dense_first(back, layers[-1].pullback))
        else:
            layers.append(record_of_layer(layer, p, s_0, here, own)._replace(kept=kept[number]))
            outputs = outputs_of(layer, layers[-1].states.h, layers[-1].run.sequence, own)
        here = here._replace(xs=outputs)

    def read_by_readout(outputs: Array) -> Array:
        return at_last_step(net.layers[-1], outputs, sequence.mask) if net.readout.of_last else outputs

    hs, back = jax.vjp(read_by_readout, here.xs)
    judged = Judged(targets, steps_that_count(net, sequence.mask), weight)
    judged = judged._replace(n=count(loss, judged, hs.shape[:-1]))
    found = loss_and_grad(net.readout, loss, params.readout, hs, judged)
    return Record(tuple(layers), found.error, back(found.hs)[0])


def _through_dense(
    layer: Layer, params: ArrayTree, sequence: Sequence, keys: PRNGKey | None, xs: Array
) -> Array:
    return outputs_of(layer, layer.dense.forward(params, xs), sequence._replace(xs=xs), keys)


def _through_dense_first(later: Callable[[Array], tuple[Array]], earlier: Pullback) -> Pullback:
    """A derivative by the outputs goes back through the later function first."""
    return lambda d_outputs: earlier(*later(d_outputs))


def record_of_layer(
    layer: Layer, params: ArrayTree, carry: State | None, sequence: Sequence, keys: PRNGKey | None
) -> LayerRecord:
    """This runs one layer that reads forward; a carry of None stands for the initial carry."""
    cell, rows = layer.cells[0], sequence.rows
    sequence = without_padding(sequence)
    start = cell.initial_carry(params, rows)
    _, begin = jax.vjp(lambda p: differentiable(cell.initial_carry(p, rows)), params)
    if carry is None:  # a reset at the first step, so that dE/ds_0 goes on into the params
        first = jnp.zeros(sequence.xs.shape[:-1], bool).at[0].set(True)
        # a cut at the first step stops the gradient into the initial carry, too
        first = first if sequence.cut is None else first & ~sequence.cut
        sequence = sequence._replace(reset=first if sequence.reset is None else first | sequence.reset)
        carry = start
    run = Run(params, carry, None if sequence.reset is None else start, sequence)
    run = to_local(run, run)
    every_leaf = phases.forward(cell, run).states
    s_prev = phases.previous(run, every_leaf)
    slopes = phases.linearise(cell, run, s_prev, every_leaf)
    states: State = differentiable(every_leaf)

    def outputs(hs: Array, xs: Array) -> Array:
        return outputs_of(layer, hs, sequence._replace(xs=xs), keys)

    _, pullback = jax.vjp(outputs, states.h, sequence.xs)
    return LayerRecord(cell, run, s_prev, states, slopes, lambda d: begin(d)[0], pullback)


def swept(record: Record, transform: Transform | None = None) -> tuple[tuple[State, ...], tuple[Any, ...]]:
    """The backward pass gives λ_1..λ_T and dE/dparams of every layer; transform: see `loops.step_back_of`."""
    d_outputs = record.d_outputs
    lams, gradient = tuple[State, ...](), tuple[Any, ...]()
    for layer in reversed(record.layers):
        d_hs, d_skipped = layer.pullback(d_outputs)
        d = Outputs(zeros_like(last_step(layer.states)), d_hs)
        found = phases.sweep(layer.cell, layer.run, layer.slopes, d, transform)
        d_params, d_xs = contracted(layer, found.lam, found.start)
        d_outputs = d_xs + d_skipped
        lams, gradient = (found.lam, *lams), (d_params, *gradient)
    return lams, gradient


def contracted(layer: LayerRecord, lam: State, d_start: State | None) -> tuple[Any, Array]:
    """From λ_1..λ_T and dE/dstart (None without resets) come dE/dparams and dE/dx_t of a layer."""
    d_params, d_xs = phases.contract(layer.cell, layer.run, layer.s_prev, layer.slopes, lam)
    d_params = d_params if d_start is None else plus(d_params, layer.d_start_to_params(d_start))
    return thinned_layer(d_params, layer.kept), d_xs


def every_step_back(layer: LayerRecord, params: ArrayTree, lam: State) -> StepBack:
    """Every λ_t, leaves [T, ..., H], goes one step back, all at once, which gives a `StepBack` for each t."""
    step_back = loops.step_back_of(phases.engine_of(layer.cell), layer.cell, params)
    found: StepBack = jax.vmap(step_back)(lam, (), layer.slopes, layer.run.sequence.marks)
    return found

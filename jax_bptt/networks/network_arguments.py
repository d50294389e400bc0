"""The arguments of a network are checked here at trace time, before anything is computed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import as_arrays, check_key
from jax_bptt.base.errors import adding, bad, running
from jax_bptt.base.trees import common_dtype
from jax_bptt.base.types import ArrayTree, Foreign, Mark, PRNGKey, Shape, Targets, Weight
from jax_bptt.cell.step_cell import AnyCell
from jax_bptt.engine.sequence import Sequence
from jax_bptt.gradients.full import full
from jax_bptt.networks.dense import Dense
from jax_bptt.networks.head import with_own_readout
from jax_bptt.networks.judged import Judged, check_weight
from jax_bptt.networks.losses import Loss, check_targets, is_additive
from jax_bptt.networks.params import AnyNetwork, NetworkCarry, NetworkParams, with_encoder
from jax_bptt.unrolling.arguments import (
    check_inputs,
    check_method,
    check_one_step,
    check_step,
    parameter_shapes,
)
from jax_bptt.unrolling.inputs import Sizes


def check_run(
    net: AnyNetwork,
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
    params, carry, sequence = check_inputs("net", net, sizes_of(net), params, carry, sequence)
    if gradient.backward is not None:  # JAX itself can differentiate any step, a hand-derived pass cannot
        for one, p in zip(net.layers, params.cells, strict=True):
            for cell, of_cell in zip(one.cells, one.parts(p), strict=one.is_recurrent):
                check_step(gradient.on_engine(cell), of_cell, sequence.rows)
    return params, carry, sequence


def check_network_step(
    net: AnyNetwork, params: Foreign, carry: Foreign, x: Foreign, mask: Foreign, reset: Foreign
) -> tuple[NetworkParams, NetworkCarry | None, Sequence]:
    """params, carry and a sequence of one step are returned."""
    if any(one.backward is not None for one in net.layers):
        fix = "a layer that reads backwards begins at the last step: run the whole sequence by net.apply"
        raise bad("net", "layers that read forwards only", net, fix)
    params, carry, sequence = check_one_step("net", net, sizes_of(net), params, carry, x, mask, reset)
    for one, p in zip(net.layers, params.cells, strict=True):
        for cell in one.cells:
            check_step(cell, p, sequence.rows)
    return params, carry, sequence


@cached()
def sizes_of(net: AnyNetwork) -> Sizes:
    """These are the shapes of the parameters of the network, and what it reads."""
    layers = tuple(layer.each(_shapes_of_layer) for layer in net.layers)
    params = NetworkParams(layers, _shapes_of("readout", net.readout.init))
    if net.encoder is not None:
        params = with_encoder(params, _shapes_of("encoder", net.encoder.init))
    return Sizes(params, net.layers[0].input_size, net.encoder)


def _shapes_of_layer(cell: AnyCell | Dense) -> Any:
    return _shapes_of("dense", cell.init) if isinstance(cell, Dense) else parameter_shapes(cell)


def _shapes_of(name: str, init: Callable[[PRNGKey], ArrayTree]) -> Any:
    """The shapes of what init makes, which must be floating arrays."""
    with running("init", f"init of the {name} is given one key"):
        made: Any = jax.eval_shape(lambda: init(jax.random.key(0)))
    if not all(jnp.issubdtype(p.dtype, jnp.floating) for p in jax.tree.leaves(made)):
        fix = "keep other values in a closure"
        raise bad("init", f"a pytree of floating arrays, for the {name}", made, fix)
    return made


def leading_of_outputs(net: AnyNetwork, sequence: Sequence) -> Shape:
    """This is (T, *batch), or (*batch,) where the readout is of the last step."""
    return sequence.rows if net.readout.of_last else sequence.leading


def steps_that_count(net: AnyNetwork, mask: Mark) -> Mark:
    """An output counts where the mask is True; with `last`, in the rows with any valid step."""
    return mask.any(0) if mask is not None and net.readout.of_last else mask


def check_outputs(
    net: AnyNetwork, loss: Loss, params: NetworkParams, sequence: Sequence, targets: Targets, weight: Weight
) -> tuple[Targets, Weight]:
    """The targets and the weight are returned as arrays; a ValueError is raised unless they fit the outputs.

    What targets fit a loss of the user's own is for that loss to say.
    """
    targets = as_arrays("targets", targets)
    leading = leading_of_outputs(net, sequence)
    dtype = jax.tree.leaves(params.cells)[0].dtype
    with adding(f"xs is read time first, as T = {sequence.steps} steps of batch {sequence.rows}"):
        weight = check_weight(weight, leading, dtype)
        if is_additive(loss):
            hs = jax.ShapeDtypeStruct((*leading, net.layers[-1].output_size), dtype)
            ys = jax.eval_shape(functools.partial(_outputs, net), params, hs)
            weight = None if weight is None else weight.astype(common_dtype(ys))
            check_targets(loss, ys, Judged(targets, steps_that_count(net, sequence.mask), weight), leading)
    return targets, weight


def _outputs(net: AnyNetwork, params: NetworkParams, hs: Array) -> Any:
    net, params = with_own_readout(net, params)
    return net.readout.forward(params.readout, hs)[1]

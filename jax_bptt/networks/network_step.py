"""A network takes one step: every layer by `step`, then the readout, each product as one of many rows."""

from __future__ import annotations

import functools
from typing import Any

from jax import Array

from jax_bptt.base.errors import bad
from jax_bptt.base.types import ArrayTree, Foreign
from jax_bptt.engine.devices import ALL, ROWS, STEPS, on_devices, rows_of
from jax_bptt.engine.many_rows import as_of_many_rows
from jax_bptt.engine.sequence import Sequence
from jax_bptt.networks.layers import Layer, outputs_of
from jax_bptt.networks.readout import Readout
from jax_bptt.unrolling.arguments import check_one_step, check_step
from jax_bptt.unrolling.step import step_checked


def check_network_step(
    net: Foreign,
    sizes: tuple[Any, int],
    params: Foreign,
    carry: Foreign,
    x: Foreign,
    mask: Foreign,
    reset: Foreign,
) -> tuple[Any, Any, Sequence]:
    """params, carry and a sequence of one step are returned; sizes are as for `check_inputs`."""
    layers: tuple[Layer, ...] = net.layers
    if any(one.backward is not None for one in layers):
        fix = "a layer that reads backwards begins at the last step: run the whole sequence by net.apply"
        raise bad("net", "layers that read forwards only", net, fix)
    params, carry, sequence = check_one_step("net", net, sizes, params, carry, x, mask, reset)
    for one, p in zip(layers, params.cells, strict=True):
        check_step(one.forward, p, sequence.rows)
    return params, carry, sequence


def step_network(
    layers: tuple[Layer, ...], readout: Readout, params: Any, carry: Any, sequence: Sequence
) -> tuple[tuple[Any, ...], Array]:
    """The network takes the one step of this sequence: s_t of each layer and Y_t, [..., O]."""
    run = functools.partial(_on_one_device, layers, readout)
    rows = rows_of(sequence.xs, params, carry)
    now, y = on_devices(run, rows, (ALL, ROWS, STEPS), (ROWS, ROWS))(params, carry, sequence)
    return now, y


def _on_one_device(
    layers: tuple[Layer, ...], readout: Readout, params: Any, carry: Any, sequence: Sequence
) -> tuple[tuple[ArrayTree, ...], Array]:
    now = []
    for number, (layer, p) in enumerate(zip(layers, params.cells, strict=True)):
        s, h = step_checked(layer.forward, p, None if carry is None else carry[number], sequence)
        now.append(s)
        outputs = outputs_of(layer, h[None], sequence, None)
        sequence = sequence._replace(xs=outputs)
    return tuple(now), as_of_many_rows(readout.forward, params.readout, sequence.xs[0])[1]

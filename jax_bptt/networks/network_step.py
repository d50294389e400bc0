"""A network takes one step: the encoder, every layer by `step`, then the readout.

Each product is computed as one of many rows, so that the step has the numbers of a sequence.
"""

from __future__ import annotations

import functools
from typing import Any

from jax_bptt.base.types import ArrayTree
from jax_bptt.engine.devices import ALL, ROWS, STEPS, on_devices, rows_of
from jax_bptt.engine.many_rows import as_of_many_rows
from jax_bptt.engine.sequence import Sequence
from jax_bptt.networks.features import encoded
from jax_bptt.networks.layers import outputs_of
from jax_bptt.networks.params import AnyNetwork, NetworkCarry, NetworkParams
from jax_bptt.unrolling.step import step_checked


def step_network(
    net: AnyNetwork, params: NetworkParams, carry: NetworkCarry | None, sequence: Sequence
) -> tuple[tuple[Any, ...], Any]:
    """The network takes the one step of this sequence: s_t of each layer and Y_t, leaves [..., O]."""
    run = functools.partial(_on_one_device, net)
    rows = rows_of(sequence.xs, params, carry)
    now, y = on_devices(run, rows, (ALL, ROWS, STEPS), (ROWS, ROWS))(params, carry, sequence)
    return now, y


def _on_one_device(
    net: AnyNetwork, params: NetworkParams, carry: NetworkCarry | None, sequence: Sequence
) -> tuple[tuple[ArrayTree, ...], Any]:
    now: list[Any] = []
    sequence = encoded(net, params, sequence, as_of_many_rows)
    for number, (layer, p) in enumerate(zip(net.layers, params.cells, strict=True)):
        if layer.is_recurrent:
            s, h = step_checked(layer.cells[0], p, None if carry is None else carry[number], sequence)
            now.append(s)
        else:
            h = as_of_many_rows(layer.dense.forward, p, sequence.xs[0])
            now.append(())
        outputs = outputs_of(layer, h[None], sequence, None)
        sequence = sequence._replace(xs=outputs)
    return tuple(now), as_of_many_rows(net.readout.forward, params.readout, sequence.xs[0])[1]

"""The features that a network's readout reads: encoder and layers, one after the other.

    x_t = encoder(input of step t)                `encoder`                                   (FE1)
    h_t = layers(x_t)                             `layers`, each cell by `unroll`             (FE2)

What the readout makes of h_t, and the loss, is in `readout_and_loss`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from jax import Array
from jax.typing import DTypeLike

from jax_bptt.base.trees import with_fields
from jax_bptt.base.types import ArrayTree, PRNGKey
from jax_bptt.engine.devices import ALL, ROWS, STEPS, on_devices, rows_of
from jax_bptt.engine.sequence import Sequence, Unencoded, without_padding
from jax_bptt.gradients.method import GradientMethod
from jax_bptt.networks.head import TiedReadout
from jax_bptt.networks.layers import at_last_step, merge_directions, run_layers
from jax_bptt.networks.params import AnyNetwork, NetworkCarry, NetworkParams
from jax_bptt.networks.readout import Readout, outputs_lie
from jax_bptt.unrolling.arguments import with_dtype

_Net = TypeVar("_Net", bound=AnyNetwork)


def features(
    net: AnyNetwork,
    params: NetworkParams,
    carry: NetworkCarry | None,
    sequence: Sequence,
    gradient: GradientMethod,
    keys: PRNGKey | None,
) -> tuple[NetworkCarry, Array]:
    """The layers return their last states and the features for the readout; keys are as in `run_layers`.

    The params may be without those of the readout.
    """

    def run(
        params: NetworkParams, carry: NetworkCarry | None, sequence: Sequence, keys: PRNGKey | None
    ) -> tuple[NetworkCarry, Array]:
        mask = sequence.mask
        sequence = encoded(net, params, sequence)  # (FE1)
        last, hs = run_layers(net.layers, params.cells, carry, sequence, gradient, keys)  # (FE2)
        top = net.layers[-1]
        return last, at_last_step(top, hs, mask) if net.readout.of_last else merge_directions(top, hs)

    rows, inputs = rows_of(sequence.xs, params, carry), (ALL, ROWS, STEPS, STEPS)
    last, hs = on_devices(run, rows, inputs, (ROWS, outputs_lie(net.readout)))(params, carry, sequence, keys)
    return last, hs


def _run(f: Callable[[Any, Any], Array], params: ArrayTree, xs: Unencoded) -> Array:
    return f(params, xs)


def encoded(
    net: AnyNetwork, params: NetworkParams, sequence: Sequence, run: Callable[..., Array] = _run
) -> Sequence:
    """The inputs of the sequence become x_1..x_T, [T, *batch, I]; padding is not read.

    run applies the encoder, a function of its params and the inputs.
    """
    if net.encoder is None and net.layers[0].is_recurrent:
        return sequence  # which does so itself
    sequence = without_padding(sequence)
    if net.encoder is None:
        return sequence
    return sequence._replace(xs=run(net.encoder.forward, params.encoder, sequence.xs))


def network_with_dtype(dtype: DTypeLike | None, net: _Net, params: NetworkParams) -> _Net:
    """The network is returned with every matrix product of its own on operands of this dtype.

    An encoder and a head of the user's own compute in the dtype of their params.
    """
    layers = (
        one._replace(
            forward=with_dtype(dtype, one.forward, p),
            backward=None if one.backward is None else with_dtype(dtype, one.backward, p),
        )
        for one, p in zip(net.layers, params.cells, strict=True)
    )
    is_ours = isinstance(net.readout, (Readout, TiedReadout))
    readout = with_dtype(dtype, net.readout, params.cells) if is_ours else net.readout
    return with_fields(net, layers=tuple(layers), readout=readout)

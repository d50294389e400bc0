"""The parameters and the carry of a network: one entry for each layer, and those of readout and encoder."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypeAlias

from jax_bptt.base.made import by_shape
from jax_bptt.base.types import ArrayTree
from jax_bptt.base.variants import varied
from jax_bptt.networks.encoder import AnyEncoder
from jax_bptt.networks.layers import Layer
from jax_bptt.networks.readout import AnyReadout

NetworkCarry: TypeAlias = tuple[Any, ...]  # one per layer: of its cell, `Directions` of two, or () of `dense`


@by_shape
class NetworkParams(NamedTuple):
    """These are the parameters of a network; with an encoder there is a third field, `encoder`.

    Attributes:
      cells: the params of each layer, the layer nearest to the input first; `Directions` of two params for
        a layer that reads both ways, `DenseParams` for a dense one.
      readout: `ReadoutParams`, `TiedParams`, or the params of a head.
    """

    cells: tuple[Any, ...]
    readout: Any

    @property
    def encoder(self) -> Any:
        """There are no parameters of an encoder; with one, this is a field."""
        return None


def with_encoder(params: NetworkParams, encoder: ArrayTree) -> NetworkParams:
    """The params of a network with an encoder: `EmbeddingParams`, or those of another encoder."""
    found: NetworkParams = varied(params, "WithEncoder", {**params._asdict(), "encoder": encoder})
    return found


class AnyNetwork(Protocol):
    """A `Network`, for the modules that it is made of."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers, the one nearest to the input first."""

    @property
    def readout(self) -> AnyReadout:
        """The map from the last layer's features to Y."""

    @property
    def encoder(self) -> AnyEncoder | None:
        """The map from the input of a step to what the first layer reads."""

"""The parameters and the carry of a network: one entry for each layer, and those of encoder and readout."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from jax_bptt.base.made import by_shape

NetworkCarry: TypeAlias = tuple[Any, ...]  # one per layer: of its cell, `Directions` of two, or () of `dense`


@by_shape
class NetworkParams(NamedTuple):
    """These are the parameters of a network.

    Attributes:
      cells: the params of each layer, the layer nearest to the input first; `Directions` of two params for
        a layer that reads both ways.
      readout: `ReadoutParams`, `TiedParams`, or the params of a head.
      encoder: `EmbeddingParams`, or the params of another encoder; None without an encoder.
    """

    cells: tuple[Any, ...]
    readout: Any
    encoder: Any = None

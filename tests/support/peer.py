"""What a cell of another framework is compared by, and the sizes at which it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

T, B, I, H = 6, 3, 2, 4  # noqa: E741
LENGTHS = (4, 5, 1)  # none is T


class Peer(NamedTuple):
    """A cell or a stack of cells of a framework, and ours."""

    weights: Any  # as the framework makes them
    to: Callable[[Any], Any]  # ours -> theirs
    back: Callable[[Any], Any]  # theirs -> ours
    ours: Callable[[Any, Any, Any], Any]  # (params, carry, xs) -> (carry, hs)
    theirs: Callable[[Any, Any], Any]  # ((weights, carry, xs), cotangents) -> outputs, gradients
    carry: Any  # of the right shapes
    held: Callable[[Any], Any] = lambda params: params  # what the framework can hold of ours

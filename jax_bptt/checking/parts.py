"""A gradient is checked in parts: every gate, every time step of xs, and every other leaf for itself."""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import numpy as np
from jax import Array

from jax_bptt.base.types import Foreign
from jax_bptt.cell.cell import Cell
from jax_bptt.cell.step_cell import AnyCell
from jax_bptt.networks.dense import Dense
from jax_bptt.networks.network import Network

Point: TypeAlias = tuple[Any, Any, Any]  # params, carry and xs: where the gradient is checked


def parts_of(cell: AnyCell | Network, point: Point) -> tuple[list[tuple[str, str]], np.ndarray]:
    """Every gate, time step and other leaf gets its (leaf, part) names; every number gets its part."""
    gates = _gate_names(cell, point[0])
    names: list[tuple[str, str]] = []
    labels = []
    for number, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(point)):
        name = ("params", "carry", "xs")[path[0].idx] + jax.tree_util.keystr(path[1:])
        if name.startswith("xs"):
            mine = [f"step {t}" for t in range(len(leaf))]
            label = np.arange(len(leaf)).reshape(-1, *[1] * (leaf.ndim - 1))
        else:
            gate_names = gates[number] if number < len(gates) else ()
            mine = [f"gate {g}" for g in gate_names] or [""]
            label = np.array(0)
            if gate_names:
                label = np.repeat(np.arange(len(mine)), leaf.shape[-1] // len(mine))
        labels.append(len(names) + np.broadcast_to(label, leaf.shape).reshape(-1))
        names += [(name, part) for part in mine]
    return names, np.concatenate(labels)


def _gate_names(cell: AnyCell | Dense | Network, params: Foreign) -> list[tuple[str, ...]]:
    """Each leaf of params gets the names of its gates, or () if it is not made of gate blocks."""
    if isinstance(cell, Network):
        layers = zip(cell.layers, params.cells, strict=True)
        pairs = [pair for one, p in layers for pair in zip(one.maps, one.parts(p), strict=True)]
        others = jax.tree.leaves((params.readout, params.encoder))
        return [names for c, p in pairs for names in _gate_names(c, p)] + [()] * len(others)
    if isinstance(cell, Dense):
        return [()] * len(params)

    gates, units = len(cell.gate_names), cell.layout.units if isinstance(cell, Cell) else ()

    def of(path: Foreign, leaf: Array) -> tuple[str, ...]:
        name = getattr(path[-1], "name", "") if path else ""
        named = gates > 1 and name in ("w_x", "w_h", "b", "b_h") and name not in units
        return cell.gate_names if named and leaf.shape and leaf.shape[-1] % gates == 0 else ()

    return [of(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]

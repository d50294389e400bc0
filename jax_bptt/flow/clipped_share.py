"""How often λ is clipped: what the gradient method `clipped` changes."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from jax import Array

from jax_bptt.engine.sequence import Sequence
from jax_bptt.flow.record import LayerRecord, record, steps_back, swept
from jax_bptt.gradients.clipped import as_held, clip, clipped, norm_of_rows
from jax_bptt.networks.losses import Loss
from jax_bptt.networks.network import Network, NetworkParams


def clipped_share(
    net: Network,
    loss: Loss,
    params: NetworkParams,
    carry: Any,
    xs: Array,
    targets: Any,
    *,
    max_norm: float,
    mask: Array | None = None,
    reset: Array | None = None,
    cut: Array | None = None,
    key: Array | None = None,
) -> Array:
    """The share of steps in which `clipped(max_norm)` scales λ down, of each layer.

    mean over rows and steps t > 1 of  ‖λ̃_{t−1}‖ > c,   on the way from step t to the one before

    Args:
      net, loss, params, carry, xs, targets, mask, reset, cut, key: as for `credit`.
      max_norm: c, as for `clipped`.

    Returns:
      [layers], shares from 0 (the gradient is exact) to 1.

    Raises:
      ValueError: at trace time, naming the argument, what was expected and what came.

    >>> import jax_bptt as jb
    >>> net = jb.network([jb.elman(1, 4)], jb.readout(4, 1))
    >>> params, xs = net.init(jax.random.key(0)), jnp.ones((7, 2, 1))
    >>> clipped_share(net, jb.squared_error, params, None, xs, xs, max_norm=1e9).tolist()
    [0.0]
    """
    clipped(max_norm)  # checks it
    max_norm = float(max_norm)
    done = record(net, loss, params, carry, Sequence(xs, mask, reset, cut), targets, key)
    lams, _ = swept(done, functools.partial(clip, max_norm))
    return jnp.stack([_share(*one, max_norm) for one in zip(done.layers, lams, strict=True)])


def _share(layer: LayerRecord, lam: Any, max_norm: float) -> Array:
    norm = norm_of_rows(steps_back(layer, layer.params, lam)[0])[1:]  # before it is clipped
    above = jnp.where(jnp.isnan(norm), norm, (norm > as_held(max_norm, norm.dtype)).astype(norm.dtype))
    counts = jnp.ones_like(norm) if layer.sequence.mask is None else layer.sequence.mask[1:]
    return (above * counts.astype(norm.dtype)).sum() / jnp.maximum(counts.sum(), 1).astype(norm.dtype)

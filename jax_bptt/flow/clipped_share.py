"""`clipped_share` measures how often the gradient method `clipped` scales λ down."""

from __future__ import annotations

import functools

import jax.numpy as jnp
from jax import Array

from jax_bptt.base.compiling import compiled
from jax_bptt.base.errors import named
from jax_bptt.base.trees import norm_of_rows
from jax_bptt.base.types import Mark, PRNGKey, State, Targets, Weight
from jax_bptt.engine.sequence import Sequence
from jax_bptt.flow.record import LayerRecord, every_step_back, record, swept
from jax_bptt.gradients.clipped import as_held, clip, positive_norm
from jax_bptt.networks.losses import Loss
from jax_bptt.networks.network import Network
from jax_bptt.networks.params import NetworkCarry, NetworkParams
from jax_bptt.networks.value_and_grad import Inputs


@named()
@compiled("net", "loss", "max_norm")
def clipped_share(
    net: Network,
    loss: Loss,
    params: NetworkParams,
    carry: NetworkCarry | None,
    xs: Array,
    targets: Targets,
    *,
    max_norm: float,
    mask: Mark = None,
    reset: Mark = None,
    cut: Mark = None,
    key: PRNGKey | None = None,
    weight: Weight = None,
) -> Array:
    """This measures the share of steps in which `clipped(max_norm)` scales λ down, for each layer.

    mean over rows and steps t > 1 of  ‖λ̃_{t−1}‖ > c,   on the way from step t to the one before

    Args:
      net, loss, params, carry, xs, targets, mask, reset, cut, key, weight: as for `credit`.
      max_norm: c, as for `clipped`.

    Returns:
      A share for each layer, [layers], from 0 (the gradient is exact) to 1, in float32 at least.

    Raises:
      ValueError: at trace time; it names the argument, what was expected and what was passed.

    >>> import jax_bptt as jb
    >>> net = jb.network([jb.elman(1, 4)], jb.readout(4, 1))
    >>> params, xs = net.init(jax.random.key(0)), jnp.ones((7, 2, 1))
    >>> clipped_share(net, jb.squared_error, params, None, xs, xs, max_norm=1e9).tolist()
    [0.0]
    """
    max_norm = positive_norm("max_norm", max_norm)
    done = record(net, loss, Inputs(params, carry, Sequence(xs, mask, reset, cut), targets, key, weight))
    lams, _ = swept(done, functools.partial(clip, max_norm))
    return jnp.stack([_share(*one, max_norm) for one in zip(done.layers, lams, strict=True)])


def _share(layer: LayerRecord, lam: State, max_norm: float) -> Array:
    norm = norm_of_rows(every_step_back(layer, layer.run.params, lam).carry)[1:]  # the norm before clipping
    above = jnp.where(jnp.isnan(norm), norm, (norm > as_held(max_norm, norm.dtype)).astype(norm.dtype))
    mask = layer.run.sequence.mask
    counts = jnp.full(norm.shape, True) if mask is None else mask[1:]
    return jnp.sum(above, where=counts) / jnp.maximum(counts.sum(), 1).astype(norm.dtype)

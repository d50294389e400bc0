"""`gradient_flow` measures whether the gradient of a network on a batch vanishes or explodes.

    profile     ρ_l = root of Σ ‖λᵗ_{t−l}‖² / Σ ‖λᵗ_t‖², over t and rows that go back l steps:
                neither the first step nor a reset or cut lies in between                    (FL1)
    rate        ρ_l^(1/l) at the longest lag, of one step                                    (FL2)
    horizon     the first lag from which on all lags together have less than the share ε
                of Σ_l ‖g_l‖: steps further back are as good as unseen                       (FL3)
    bias        ‖g_0 + .. + g_{K−1} − g‖ / ‖g‖: what a truncation to K steps gets wrong      (FL4)
    saturation  the share of units that let no gradient through: the state s_t of the unit answers
                neither to its input nor to its own past, ‖∂s_t/∂(u_t, s̃_{t−1})‖ < 0.05      (FL5)

    verdict     exploding where ρ > 1/ε at the longest lag, vanishing where ρ < ε, healthy between;
                where loss or gradient overflows exploding if ρ > 1/ε at any lag, else "not finite";
                unknown where no loss goes back a step, as where the gradient is zero

λᵗ_k is defined in `lags`, g_l in `credit`; the bounds on the rate come from `bounds`. A large gradient norm
says nothing about long range, because the terms of short lags dominate it. So (FL1) divides each λᵗ by its
value at lag 0.

The verdict is about what is left of the gradient after the longest lag that was measured, so it depends on
the length of the sequence: at the same rate of 0.9 a step 0.35 is left after 10 steps, 0.00003 after 100.

A unit that does not answer to its input is no fault by itself: where the update gate of a GRU keeps the
state, the state carries the gradient. So (FL5) counts only units that do not answer to their past, either.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_bptt.base.checks import number
from jax_bptt.base.compiling import compiled
from jax_bptt.base.errors import bad, named
from jax_bptt.base.trees import divided, dot, norm_of, norm_of_rows, wide
from jax_bptt.base.types import Mark, PRNGKey, Targets, Weight
from jax_bptt.engine import chunks
from jax_bptt.engine.linear_maps import unit_wise
from jax_bptt.engine.phases import is_pointwise
from jax_bptt.engine.sequence import Sequence
from jax_bptt.flow.bounds import blocks_of, growth_bound, largest_singular_value, spectral_radius
from jax_bptt.flow.credit import check_lags
from jax_bptt.flow.lags import AtLag, scan_lags
from jax_bptt.flow.record import LayerRecord, record, swept
from jax_bptt.gradients.jacobians import UNITS
from jax_bptt.networks.losses import Loss
from jax_bptt.networks.network import Network
from jax_bptt.networks.params import NetworkCarry, NetworkParams
from jax_bptt.networks.value_and_grad import Inputs

SLOPE = 0.05  # a unit with a smaller slope counts as saturated; for tanh in `elman` this is |h| above 0.97


class LayerFlow(NamedTuple):
    """A `LayerFlow` holds the measurements of one layer.

    Attributes:
      profile: ρ_l, [lags]; NaN at lags that no loss reaches.
      rate: ρ_l^(1/l), the factor per step, at the longest lag with a positive finite ρ_l, a scalar; zero or
        NaN if there is no such lag.
      saturation: the share of units, steps and rows that let no gradient through, neither to their inputs
        nor to their own past. NaN for a `step_cell`, which has no pre-activations of its own.
      bound: η; no λ grows by more than this factor in a step. If η < 1, the gradient must vanish.
      sigma_max, spectral_radius: those of W_h for each gate, [G]; empty for a cell without this matrix, and
        for a `step_cell`, which may use its parameters in any way.
    """

    profile: Array
    rate: Array
    saturation: Array
    bound: Array
    sigma_max: Array
    spectral_radius: Array


class GradientFlow(NamedTuple):
    """A `GradientFlow` holds arrays, so it works as a metric inside jit; print it outside of jit.

    Norms and ratios are in float32 at least.

    Attributes:
      layers: the `LayerFlow` of each layer, the layer nearest to the input first.
      loss: E.
      grad_norm: ‖g‖ over the parameters of all cells.
      lag_norm: ‖g_l‖, [lags].
      horizon: the first lag from which on all lags together have less than the share ε of Σ_l ‖g_l‖, an
        integer; equal to lags if there is none.
      bias: the relative error of a gradient truncated to K steps, at [K − 1], [lags]; NaN where the gradient
        is zero.
      cosine: the cosine between that truncated gradient and the whole one, [lags]; NaN where one is zero.
      eps: ε.
    """

    layers: tuple[LayerFlow, ...]
    loss: Array
    grad_norm: Array
    lag_norm: Array
    horizon: Array
    bias: Array
    cosine: Array
    eps: Array

    @property
    def verdicts(self) -> tuple[str, ...]:
        """Each layer is "vanishing", "exploding", "healthy", "not finite" or "unknown"; see the module."""
        finite = bool(jnp.isfinite(self.loss) & jnp.isfinite(self.grad_norm))
        return tuple(_verdict(layer, float(self.eps), finite) for layer in self.layers)

    def __str__(self) -> str:
        lags = len(self.lag_norm)
        seen = f"effective horizon {self.horizon} of {lags} steps: beyond it less than {self.eps:.2g} of all"
        lines = [
            f"loss {self.loss:.4g}, gradient norm {self.grad_norm:.4g}, {lags} lags",
            seen if self.horizon < lags else f"no effective horizon within {lags} steps",
        ]
        for n, (layer, verdict) in enumerate(zip(self.layers, self.verdicts, strict=True)):
            lines.append(f"layer {n}: {verdict}, {_in_words(layer)}")
        windows = [k for k in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if k <= lags]
        shown = ", ".join(f"{k}: {self.bias[k - 1]:.2g} ({self.cosine[k - 1]:.2f})" for k in windows)
        return "\n".join([*lines, f"truncated to K steps, bias (cosine): {shown}"])


@named()
@compiled("net", "loss", "lags", "eps")
def gradient_flow(
    net: Network,
    loss: Loss,
    params: NetworkParams,
    carry: NetworkCarry | None,
    xs: Array,
    targets: Targets,
    *,
    lags: int | None = None,
    eps: float = 0.01,
    mask: Mark = None,
    reset: Mark = None,
    cut: Mark = None,
    key: PRNGKey | None = None,
    weight: Weight = None,
) -> GradientFlow:
    """This measures by lag whether the gradient of a network on a batch vanishes or explodes.

    ρ_l = ‖λᵗ_{t−l}‖ / ‖λᵗ_t‖, root of the ratio of their squares' sums over losses and rows   (FL1-FL5)

    It takes the time of one backward pass for each lag, and O(T) memory. As a metric of training,
    inside jax.jit, use it with few lags or on a small part of the batch.

    Args:
      net, loss, params, carry, xs, targets, mask, reset, cut, key, weight: as for `credit`; T >= 2.
      lags: lags 0 to lags − 1 are used, at least 2; None for all T.
      eps: ε in (0, 1). If less than ε of the gradient is left after the longest lag, it vanishes; if more
        than 1/ε, it explodes. Lags with less than the share ε of the whole are ignored in the horizon.

    Returns:
      The `GradientFlow`; print it, or read `.verdicts`, one for each layer.

    Raises:
      ValueError: at trace time; it names the argument, what was expected and what was passed.

    Reference: Hochreiter 1991; Bengio, Simard & Frasconi 1994; Pascanu, Mikolov & Bengio 2013.

    >>> import jax_bptt as jb
    >>> net = jb.network([jb.elman(1, 8, recurrent=jb.orthogonal(0.3))], jb.readout(8, 1))
    >>> xs, targets = jnp.ones((20, 2, 1)), jnp.zeros((20, 2, 1))
    >>> gradient_flow(net, jb.squared_error, net.init(jax.random.key(0)), None, xs, targets).verdicts
    ('vanishing',)
    """
    if not 0 < number("eps", "a share between 0 and 1", eps) < 1:
        raise bad("eps", "a share between 0 and 1", eps, "pass the share below which a lag is ignored")
    inputs = Inputs(params, carry, Sequence(xs, mask, reset, cut), targets, key, weight)
    done = record(net, loss, inputs)
    lags = check_lags(lags, len(done.d_outputs))
    if lags < 2:
        came = f"{lags} lag of {len(done.d_outputs)} steps"
        raise bad("lags", "at least 2", came, "pass lags=2 or more, and xs of two steps or more")
    _, gradient = swept(done)
    grad_norm = norm_of(gradient)
    direction = divided(gradient, grad_norm)
    ages = [_ages(one.run.sequence) for one in done.layers]
    Sums = tuple[tuple[Any, ...], list[Array]]  # g_0 + .. + g_l; ‖λᵗ_t‖ of each layer

    def at_lag(state: Sums, lag: Array, found: tuple[AtLag, ...]) -> tuple[Sums, Any]:
        total, at_lag_0 = state
        sums = tuple(layer.d_params for layer in found)
        total = chunks.add_to(total, sums)
        norms = [norm_of_rows(layer.lam) for layer in found]
        at_lag_0 = [jnp.where(lag == 0, z, s) for z, s in zip(norms, at_lag_0, strict=True)]
        growth = [_growth(z, s, age >= lag) for z, s, age in zip(norms, at_lag_0, ages, strict=True)]
        norm = norm_of(total)
        missed = norm_of(jax.tree.map(lambda z, g: z - g.astype(z.dtype), total, gradient))
        cosine = dot(divided(total, norm), direction)
        cosine = jnp.where((norm == 0) | (grad_norm == 0), jnp.nan, cosine)
        return (total, at_lag_0), (growth, norm_of(sums), missed, cosine)

    begin = chunks.zero_sums(gradient), [jnp.zeros(age.shape, grad_norm.dtype) for age in ages]
    _, (profiles, lag_norm, missed, cosine) = scan_lags(done, lags, begin, at_lag)
    return GradientFlow(
        tuple(map(_of_layer, done.layers, profiles)),
        done.error,
        grad_norm,
        lag_norm,
        _horizon(lag_norm, eps),
        missed / grad_norm,  # (FL4)
        cosine,
        jnp.asarray(eps, lag_norm.dtype),
    )


def _ages(sequence: Sequence) -> Array:
    """This is the number of steps that λ can go back from each step and row, [T, ...]."""
    ended = jnp.zeros(sequence.leading, bool)
    for mark in (sequence.reset, sequence.cut):
        ended = ended if mark is None else ended | mark
    t = jnp.arange(len(ended)).reshape(-1, *[1] * (ended.ndim - 1))
    # t minus the last reset or cut so far, or minus 0 if there was none
    return t - jax.lax.cummax(jnp.where(ended, t, jnp.zeros_like(t)))


def _growth(norms: Array, at_lag_0: Array, reach: Array) -> Array:
    """ρ_l is computed from ‖λᵗ_{t−l}‖ and ‖λᵗ_t‖, over the losses that reach back l steps."""
    first = norm_of(jnp.where(reach, at_lag_0, jnp.zeros_like(at_lag_0)))
    return jnp.where(first > 0, divided(norm_of(norms), first), jnp.nan)  # (FL1)


def _of_layer(layer: LayerRecord, profile: Array) -> LayerFlow:
    lag = jnp.arange(len(profile))
    known = (lag > 0) & (profile > 0) & jnp.isfinite(profile)
    longest = jnp.where(known, lag, 0).max()
    per_step = 1 / jnp.maximum(longest, 1).astype(profile.dtype)
    rate = jnp.where(longest > 0, profile[longest] ** per_step, profile[1])  # (FL2); else zero or NaN
    blocks = blocks_of(layer)
    empty = jnp.zeros(0, profile.dtype)  # where there are no such weights
    sigma, radius = (
        jnp.stack([of(w) for w in blocks]) if blocks else empty
        for of in (largest_singular_value, spectral_radius)
    )
    return LayerFlow(profile, rate, _saturation(layer), growth_bound(layer), sigma, radius)


def _saturation(layer: LayerRecord) -> Array:
    cell, states, mask = layer.cell, layer.states, layer.run.sequence.mask
    if not is_pointwise(cell):
        return jnp.full((), jnp.nan, wide(states.h.dtype))
    units, fields = unit_wise(cell, layer.run.params, states.h.ndim - 1), len(jax.tree.leaves(states))

    def of_field(e_f: Array) -> Array:  # λ = 1 on one field makes the adjoint ∂s/∂u and ∂s/∂s̃ of that field
        lam = UNITS.unpack(jnp.broadcast_to(e_f, (*states.h.shape, fields)), states)
        back = jax.vmap(lambda a, lam: cell.adjoint(units, a, lam))(layer.slopes, lam)
        return jnp.stack([*jax.tree.leaves(back.carry), *back.u], -1)

    every_field = jnp.eye(fields, dtype=states.h.dtype)
    slope = norm_of(jax.vmap(of_field, out_axes=-1)(every_field), states.h.ndim)
    where = None if mask is None else jnp.broadcast_to(mask[..., None], slope.shape)
    return jnp.mean((slope < SLOPE).astype(slope.dtype), where=where)  # (FL5)


def _horizon(lag_norm: Array, eps: float) -> Array:
    rest = jnp.flip(jnp.cumsum(jnp.flip(lag_norm)))  # lag l and all longer lags together
    below = rest / rest[0] < eps
    return jnp.where(below.any(), jnp.argmax(below), len(lag_norm))  # (FL3)


def _verdict(layer: LayerFlow, eps: float, finite: bool) -> str:
    steps, left = _left(layer)
    if not finite:
        return "exploding" if (np.asarray(layer.profile) > 1 / eps).any() else "not finite"
    if steps == 0:
        return "unknown"
    if left > 1 / eps:
        return "exploding"
    return "vanishing" if left < eps else "healthy"


def _left(layer: LayerFlow) -> tuple[int, float]:
    """These are the longest lag that a loss reaches and ρ there; lag 0 where no loss goes back a step."""
    known = np.flatnonzero(~np.isnan(layer.profile))
    steps = int(known[-1]) if len(known) else 0
    return steps, float(layer.profile[steps])


def _in_words(layer: LayerFlow) -> str:
    steps, left = _left(layer)
    after = f"after {steps} step{'s' * (steps > 1)}"
    flow = f"{after} the gradient is {left:.2g} times as large ({layer.rate:.4g} a step)"
    words = [flow if steps else "no gradient goes back a step", f"bound {layer.bound:.4g} a step"]
    if not jnp.isnan(layer.saturation):
        words.append(f"saturated {layer.saturation:.1%}")
    for name, values in (("sigma_max", layer.sigma_max), ("spectral radius", layer.spectral_radius)):
        if len(values):
            words.append(f"{name} {', '.join(f'{v:.3g}' for v in values)}")
    return ", ".join(words)

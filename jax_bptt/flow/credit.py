"""Credit says which steps a gradient comes from: it measures the terms of the article's sum.

    article   dE_t/dW_s = Σ_{k≤t} dE_t/dY_t dY_t/dS_t (Π dS_i/dS_{i−1}) dS_k/dW_s

              g_tk = the term of loss step t and source step k = t − l                       (CR1)
              g = Σ_t Σ_k g_tk,  the gradient; g_l = Σ_t g_{t,t−l},  what lag l gives        (CR2)

    weighed   ‖g_tk‖,  cos(g_tk, g);  ‖g_l‖,  and the share <g_l, g> / ‖g‖² of each lag      (CR3)
    computed  cos(z, g) = <z/‖z‖, g/‖g‖>,   <z, g> / ‖g‖² = cos(z, g) ‖z‖/‖g‖                (CR4)
              of parameters p together:  cos(z, g) = Σ_p ‖z_p‖/‖z‖ ‖g_p‖/‖g‖ cos(z_p, g_p)   (CR5)

In (CR4, CR5) no product of two small numbers is taken, which would be zero long before the share is.

The shares of all lags sum to one, even if terms cancel. A lag whose terms point against the gradient has a
negative share. The terms themselves, T² numbers for each parameter, are never stored: those of one lag are
computed a few steps at a time (X2 of `lags`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.checks import as_arrays, integer, is_numeric
from jax_bptt.base.compiling import compiled
from jax_bptt.base.errors import bad, named
from jax_bptt.base.trees import divided, norm_of, num_parameters
from jax_bptt.base.types import ArrayTree, Mark, PRNGKey, Slopes, State, Targets, Weight
from jax_bptt.engine import chunks
from jax_bptt.engine.sequence import Sequence
from jax_bptt.flow.lags import AtLag, scan_lags
from jax_bptt.flow.record import LayerRecord, contracted, record, swept
from jax_bptt.networks.losses import Loss
from jax_bptt.networks.network import Network
from jax_bptt.networks.params import NetworkCarry, NetworkParams
from jax_bptt.networks.value_and_grad import Inputs

AT_ONCE = 2**22  # so many numbers of the terms exist together


class Terms(NamedTuple):
    """`Terms` measure the terms of one parameter, or of all parameters together, in float32 at least.

    `by_steps` turns them from [lag, loss step] to [loss step, source step].

    Attributes:
      norm: ‖g_tk‖ at [l, t] with k = t − l, [lags, T]; zero where t < l.
      cosine: cos(g_tk, g) at [l, t], [lags, T]; zero where there is no term.
      lag_norm: ‖g_l‖, [lags].
      share: <g_l, g> / ‖g‖², [lags]; with all lags they sum to one. NaN where g is zero.
    """

    norm: Array
    cosine: Array
    lag_norm: Array
    share: Array

    @property
    def cumulative(self) -> Array:
        """This is the share of lags 0 to l together, [lags]."""
        return jnp.cumsum(self.share)


class Credit(NamedTuple):
    """A `Credit` says from which steps the gradient of a network's cells comes.

    Attributes:
      gradient: the sum of the terms of all lags that were used, like params.cells; with all T lags it is
        the gradient.
      by_parameter: like params.cells, with the `Terms` of each parameter in its place.
      of_all: the `Terms` of all parameters of all cells, taken as one vector.
    """

    gradient: tuple[Any, ...]
    by_parameter: tuple[Any, ...]
    of_all: Terms


@named()
@compiled("net", "loss", "lags")
def credit(
    net: Network,
    loss: Loss,
    params: NetworkParams,
    carry: NetworkCarry | None,
    xs: Array,
    targets: Targets,
    *,
    lags: int | None = None,
    mask: Mark = None,
    reset: Mark = None,
    cut: Mark = None,
    key: PRNGKey | None = None,
    weight: Weight = None,
) -> Credit:
    """`credit` measures the terms of the gradient's sum by loss step and source step.

    g = Σ_t Σ_{k≤t} g_tk   (CR1-CR3)

    It takes the time of one backward pass for each lag, and O(T) memory beside the [lags, T] numbers that it
    returns.

    Args:
      net: from `network`; no layer may read backwards.
      loss: as for `value_and_grad`. The loss step t is the step of the output Y_t, whatever the loss is.
        W_y is left out, because its gradient at step t depends on step t only.
      params, carry, xs, targets, mask, reset, cut, key, weight: as for `value_and_grad`.
      lags: lags 0 to lags − 1 are used; None for all T. With K lags the gradient returned is the one in
        which every loss sees K steps; for one layer it is that of `truncated(K, stride=1)`.

    Returns:
      The `Credit`.

    Raises:
      ValueError: at trace time; it names the argument, what was expected and what was passed.

    Reference: Werbos 1990, and Williams & Zipser 1995, Gradient-based learning algorithms for recurrent
    networks (for the sum; its terms by lag are this library's own).

    >>> import jax_bptt as jb
    >>> net = jb.network([jb.elman(1, 4)], jb.readout(4, 1))
    >>> params = net.init(jax.random.key(0))
    >>> found = credit(net, jb.squared_error, params, None, jnp.ones((7, 2, 1)), jnp.zeros((7, 2, 1)))
    >>> found.by_parameter[0].w_h.norm.shape, round(float(found.of_all.share.sum()), 4)
    ((7, 7), 1.0)
    """
    inputs = Inputs(params, carry, Sequence(xs, mask, reset, cut), targets, key, weight)
    done = record(net, loss, inputs)
    lags = check_lags(lags, len(done.d_outputs))
    _, gradient = swept(done)
    lengths = jax.tree.map(norm_of, gradient)
    directions = jax.tree.map(divided, gradient, lengths)

    def at_lag(so_far: tuple[Any, ...], lag: Array, found: tuple[AtLag, ...]) -> tuple[tuple[Any, ...], Any]:
        sums = tuple(layer.d_params for layer in found)
        terms = tuple(map(_weighed, done.layers, directions, found))
        by_loss_step = jax.tree.map(lambda z: jnp.roll(z, lag), terms)  # from index k to index t = k + l
        return chunks.add_to(so_far, sums), (by_loss_step, jax.tree.map(_weigh, sums, directions))  # (CR2)

    sums, (terms, of_lags) = scan_lags(done, lags, chunks.zero_sums(gradient), at_lag)
    by_parameter = jax.tree.map(_terms, lengths, terms, of_lags)
    of_all = _terms(norm_of(lengths), _of_all(terms, lengths), _of_all(of_lags, lengths))
    return Credit(chunks.sums_as(sums, gradient), by_parameter, of_all)


@named()
def by_steps(z: Array) -> Array:
    """Terms by lag and loss step are turned into terms by loss step and source step.

    Args:
      z: [lags, T], such as `Terms.norm`.

    Returns:
      [T, T], with the entry of g_tk at [t, k]; zero where k > t, or where the lag t − k was not used.

    Raises:
      ValueError: z is not a numeric array [lags, T], or it has more lags than steps.

    >>> by_steps(jnp.array([[1.0, 2.0, 3.0], [0.0, 4.0, 5.0]])).tolist()
    [[1.0, 0.0, 0.0], [4.0, 2.0, 0.0], [0.0, 5.0, 3.0]]
    """
    z = as_arrays("z", z)
    if not is_numeric(z) or z.ndim != 2 or not 0 < len(z) <= z.shape[1]:
        raise bad("z", "[lags, T], no more lags than steps", z, "pass an array of jb.Terms, such as norm")
    lags, steps = z.shape
    t, k = jnp.arange(steps)[:, None], jnp.arange(steps)[None]
    taken = (t >= k) & (t - k < lags)
    return jnp.where(taken, z[jnp.clip(t - k, 0, lags - 1), t], jnp.zeros((), z.dtype))


def check_lags(lags: object, steps: int) -> int:
    """The number of lags is returned as a Python int; ValueError unless it is 1 to the number of steps."""
    return steps if lags is None else integer("lags", lags, 1, steps)


def _weighed(layer: LayerRecord, directions: ArrayTree, found: AtLag) -> Any:
    """From λ of one lag come ‖g_tk‖ and cos(g_tk, g) of each parameter, for every k, [T]."""

    def weigh_step(here: tuple[State, Array, Slopes, State, State | None]) -> Any:
        *step, d_start = here
        s_prev, xs, slopes, lam = jax.tree.map(lambda z: z[None], step)  # a sequence of this step alone
        of_step = layer._replace(run=layer.run._replace(sequence=Sequence(xs)), s_prev=s_prev, slopes=slopes)
        d_params, _ = contracted(of_step, lam, d_start)  # (CR1)
        return jax.tree.map(_weigh, d_params, directions)  # (CR3)

    xs = layer.run.sequence.xs
    at_once = max(1, AT_ONCE // num_parameters(layer.run.params))
    steps = layer.s_prev, xs, layer.slopes, found.lam, found.d_start
    return jax.lax.map(weigh_step, steps, batch_size=min(at_once, len(xs)))


class _Weights(NamedTuple):
    """These are ‖z‖ and cos(z, g) of a term or a sum of terms z; zero where z is zero."""

    norm: Array
    cosine: Array


def _weigh(term: Array, direction: Array) -> _Weights:
    """The direction is g/‖g‖ of the same parameter."""
    norm = norm_of(term)
    return _Weights(norm, jnp.vdot(divided(term, norm), direction))  # (CR4)


def _terms(length: Array, terms: _Weights, of_lags: _Weights) -> Terms:
    """The length is ‖g‖ of the same parameters."""
    return Terms(*terms, of_lags.norm, of_lags.cosine * (of_lags.norm / length))  # (CR3, CR4)


def _of_all(weights: ArrayTree, lengths: ArrayTree) -> _Weights:
    """In the place of each parameter stand its weights; from these come the weights of all together."""
    structure: Any = jax.tree.structure(lengths)
    of_g = jnp.stack(jax.tree.leaves(lengths))
    norms, cosines = (jnp.stack(z, -1) for z in zip(*structure.flatten_up_to(weights), strict=True))
    norm = norm_of(norms, norms.ndim - 1)
    share_of_g = jnp.broadcast_to(divided(of_g, norm_of(of_g)), norms.shape)
    return _Weights(norm, (divided(norms, norm) * share_of_g * cosines).sum(-1))  # (CR5)

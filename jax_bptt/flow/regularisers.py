"""Two penalties, added to the loss by the user, keep the gradient through time from vanishing or exploding.

    omega     Ω = Σ_t ( ‖J_tᵀ λ_t‖ / ‖λ_t‖ − 1 )²         J_t = ds_t/ds̃_{t−1}                 (O1)
              its derivative is the immediate one: λ_t and the derivative a_t of the step are
              numbers, W_h in J_tᵀ is not                                                     (O2)

    flossing  L = mean over rows of Σ_{i≤k} λ_i²          λ_i the Lyapunov exponents          (O3)

"Numbers" in (O2) are constants: no derivative is taken through them. J_tᵀ is linear, so the ratio in (O1) is
the length of J_tᵀ (λ_t / ‖λ_t‖), which is right however short λ_t is.

Ω is small if λ keeps its length in every step. L is small if k directions of the state neither grow nor
shrink in the long run, whatever the loss is.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.checks import is_floating
from jax_bptt.base.compiling import compiled
from jax_bptt.base.errors import named
from jax_bptt.base.trees import divided, norm_of, plus, select, zeros_like
from jax_bptt.base.types import ArrayTree, Foreign, Mark, P, PRNGKey, S, State, Targets, Weight
from jax_bptt.cell.cell import Cell
from jax_bptt.cell.step_cell import StepCell
from jax_bptt.engine.sequence import Sequence
from jax_bptt.flow.lyapunov import lyapunov_spectrum
from jax_bptt.flow.record import LayerRecord, every_step_back, record, swept
from jax_bptt.networks.losses import Loss
from jax_bptt.networks.network import Network
from jax_bptt.networks.params import NetworkCarry, NetworkParams
from jax_bptt.networks.recurrent_dropout import kept_units, thinned
from jax_bptt.networks.value_and_grad import Inputs


@named()
@compiled("net", "loss")
def omega(
    net: Network,
    loss: Loss,
    params: NetworkParams,
    carry: NetworkCarry | None,
    xs: Array,
    targets: Targets,
    *,
    mask: Mark = None,
    reset: Mark = None,
    cut: Mark = None,
    key: PRNGKey | None = None,
    weight: Weight = None,
) -> Array:
    """This computes the vanishing-gradient regulariser of Pascanu, Mikolov & Bengio, for any cell.

    Ω = Σ_t ( ‖J_tᵀ λ_t‖ / ‖λ_t‖ − 1 )²   (O1)

    Multiply its gradient, `jax.grad(jb.omega, argnums=2)(net, loss, params, ...)`, by a factor and add it to
    that of the loss. The norms are taken over rows and state together, as in equation (9) of the paper; the
    paper's code squares the ratio before it subtracts one.

    Args:
      net, loss, params, carry, xs, targets, mask, reset, cut, key, weight: as for `credit`.

    Returns:
      Ω, a scalar in float32 at least, the sum over steps and layers. The norms of a step leave out rows that
      no loss reaches and rows in which a cut stops the gradient. A step in which all rows are left out adds
      zero.

    Raises:
      ValueError: at trace time; it names the argument, what was expected and what was passed.

    Reference: Pascanu, Mikolov & Bengio 2013, equations (9) and (10).

    >>> import jax_bptt as jb
    >>> net = jb.network([jb.elman(1, 4, activation="identity")], jb.readout(4, 1))  # W_h is orthogonal
    >>> params, xs = net.init(jax.random.key(0)), jnp.ones((7, 2, 1))
    >>> round(float(omega(net, jb.squared_error, params, None, xs, xs)), 4)
    0.0
    """
    constant, s_0, x = jax.tree.map(_as_constant, (params, carry, xs))
    done = record(net, loss, Inputs(constant, s_0, Sequence(x, mask, reset, cut), targets, key, weight))
    cells = thinned(params.cells, kept_units(net.layers, params.cells, key))
    recurrent = [p for layer, p in zip(net.layers, cells, strict=True) if layer.is_recurrent]
    layers = zip(done.layers, recurrent, swept(done)[0], strict=True)
    return functools.reduce(jnp.add, [_of_layer(*one) for one in layers])


def _as_constant(z: object) -> Foreign:
    return jax.lax.stop_gradient(z) if is_floating(z) else z


def _of_layer(layer: LayerRecord, params: ArrayTree, lam: State) -> Array:
    cut = layer.run.sequence.cut
    lam = lam if cut is None else select(cut, zeros_like(lam), lam)
    here = norm_of(lam, 1)  # over rows and state
    directions = jax.tree.map(lambda z, like: z.astype(like.dtype), divided(lam, here), lam)
    back = every_step_back(layer, params, directions)  # (O2)
    ratio = norm_of(back.carry if back.start is None else plus(back.carry, back.start), 1)  # a reset, too
    ended = (here == 0) | (ratio == 0)  # a NaN is not left out: it makes Ω NaN
    return jnp.where(ended, jnp.zeros_like(ratio), jnp.square(ratio - 1)).sum()  # (O1)


@named()
@compiled("cell", "exponents", "transient")
def flossing(
    cell: Cell[P, S] | StepCell[P, S],
    params: P,
    carry: S | None,
    xs: Array,
    *,
    exponents: int,
    transient: int = 0,
    key: PRNGKey | None = None,
) -> Array:
    """This computes the penalty of gradient flossing, which pulls the first Lyapunov exponents towards zero.

    L = mean over rows of Σ_{i≤k} λ_i²   (O3)

    Take its gradient by jax.grad(jb.flossing, argnums=1), and train on it before training on the loss, or
    from time to time in between. It needs no targets.

    Args:
      cell, params, carry, xs, exponents, transient, key: as for `lyapunov_spectrum`. exponents must not
        exceed the number of units with a nonzero derivative in every step; otherwise L is infinite and has
        no derivative.

    Returns:
      L, a scalar in float32 at least.

    Raises:
      ValueError: at trace time; it names the argument, what was expected and what was passed.

    Reference: Engelken 2023, Gradient flossing: improving gradient descent through dynamic control of
    Jacobians.

    >>> import jax_bptt as jb
    >>> cell = jb.elman(1, 4, activation="identity")
    >>> xs = jnp.zeros((10, 2, 1))
    >>> round(float(flossing(cell, cell.init(jax.random.key(0)), None, xs, exponents=2)), 4)
    0.0
    """
    spectrum = lyapunov_spectrum(cell, params, carry, xs, exponents=exponents, transient=transient, key=key)
    return jnp.square(spectrum.exponents).sum(-1).mean()  # (O3)

"""Two penalties that keep the gradient through time alive, added to the loss by the user.

    omega     Ω = Σ_t ( ‖J_tᵀ λ_t‖ / ‖λ_t‖ − 1 )²         J_t = ds_t/ds̃_{t−1}                 (O1)
              its derivative is the immediate one: λ_t and the derivative a_t of the step are
              numbers, W_h in J_tᵀ is not                                                     (O2)

    flossing  L = mean over rows of Σ_{i≤k} λ_i²          λ_i the Lyapunov exponents          (O3)

Ω asks that the gradient as it is, in the direction it has, keeps its length in every step. Flossing asks
that k directions of the state neither grow nor shrink in the long run, whatever the loss.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.checks import is_floating
from jax_bptt.base.compiling import compiled
from jax_bptt.base.errors import named
from jax_bptt.base.trees import plus, root, select, squares_of_rows, zeros_like
from jax_bptt.base.types import ArrayTree, Foreign, Mark, P, PRNGKey, S, State, Targets
from jax_bptt.cell.cell import Cell
from jax_bptt.cell.step_cell import StepCell
from jax_bptt.engine.sequence import Sequence
from jax_bptt.flow.lyapunov import lyapunov_spectrum
from jax_bptt.flow.record import LayerRecord, every_step_back, record, swept
from jax_bptt.networks.losses import Loss
from jax_bptt.networks.network import Network, NetworkCarry, NetworkParams
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
) -> Array:
    """The vanishing-gradient regulariser of Pascanu, Mikolov & Bengio, for any cell.

    Ω = Σ_t ( ‖J_tᵀ λ_t‖ / ‖λ_t‖ − 1 )²   (O1)

    Its gradient, `jax.grad(jb.omega, argnums=2)(net, loss, params, ...)`, times a weight, is added to that
    of the loss. ‖λ_t‖ and ‖J_tᵀ λ_t‖ are taken over rows and state together, as in the paper's equation (9);
    its code squares the ratio before it subtracts one.

    Args:
      net, loss, params, carry, xs, targets, mask, reset, cut, key: as for `credit`.

    Returns:
      Ω, a scalar, the sum over steps and layers; rows that no loss reaches, and those in which a cut ends
      the gradient, are no part of a step; a step without any adds nothing.

    Raises:
      ValueError: at trace time, naming the argument, what was expected and what came.

    Reference: Pascanu, Mikolov & Bengio 2013, equations (9) and (10).

    >>> import jax_bptt as jb
    >>> net = jb.network([jb.elman(1, 4, activation="identity")], jb.readout(4, 1))  # W_h is orthogonal
    >>> params, xs = net.init(jax.random.key(0)), jnp.ones((7, 2, 1))
    >>> round(float(omega(net, jb.squared_error, params, None, xs, xs)), 4)
    0.0
    """
    constant, s_0, x = jax.tree.map(_as_constant, (params, carry, xs))
    done = record(net, loss, Inputs(constant, s_0, Sequence(x, mask, reset, cut), targets, key))
    layers = zip(done.layers, params.cells, swept(done)[0], strict=True)
    return sum((_of_layer(*one) for one in layers), jnp.zeros((), done.error.dtype))


def _as_constant(z: object) -> Foreign:
    return jax.lax.stop_gradient(z) if is_floating(z) else z


def _of_layer(layer: LayerRecord, params: ArrayTree, lam: State) -> Array:
    cut = layer.run.sequence.cut
    lam = lam if cut is None else select(cut, zeros_like(lam), lam)
    back = every_step_back(layer, params, lam)  # (O2)
    lam_prev = back.carry if back.start is None else plus(back.carry, back.start)  # the initial carry, too
    here, before = _norm_of_steps(lam), _norm_of_steps(lam_prev)
    ended = (here == 0) | (before == 0)  # NaN is no end: it goes on into the sum
    ratio = before / jnp.where(ended, jnp.ones_like(here), here)
    return jnp.where(ended, jnp.zeros_like(ratio), jnp.square(ratio - 1)).sum()  # (O1)


def _norm_of_steps(lam: State) -> Array:
    """‖λ_t‖ over all rows, [T]; its derivative at zero is zero."""
    return root(squares_of_rows(lam).reshape(len(lam.h), -1).sum(-1))


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
    """Gradient flossing: the first Lyapunov exponents are pulled towards zero.

    L = mean over rows of Σ_{i≤k} λ_i²   (O3)

    Its gradient, by jax.grad through the QR decompositions, is taken before or between stretches of
    training; it needs no targets.

    Args:
      cell, params, carry, xs, exponents, transient, key: as for `lyapunov_spectrum`; k at most as many
        as there are living units in every step, or L is infinite and has no derivative.

    Returns:
      L, a scalar.

    Raises:
      ValueError: at trace time, naming the argument, what was expected and what came.

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

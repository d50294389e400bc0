"""In the independently recurrent network (Li et al. 2018) each unit reads only its own past.

    forward   z_t = u_t + w h_{t−1}                     w: one recurrent weight per unit    (IF1)
              h_t = g(z_t)                                                                  (IF2)

The factor dh_t/dh_{t−1} of the chain rule is one number per unit, g′(z_t) w. So w shows whether a gradient
vanishes or explodes, and a bound on w prevents an explosion: |w| ≤ 1 for a ReLU. With λ = dE/dh_t:

    adjoint   δu_t = δz_t = k λ,        k = g′(z_t)                                         (IA1)
              δh_{t−1} = w δz_t                                                             (IA2)
              δw = h_{t−1} δz_t                                                             (IA3)

There is no matrix product in the loops, forward or backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

import jax
from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import flag, size
from jax_bptt.base.types import Gates, PRNGKey, Units
from jax_bptt.cell.activations import Activation, ActivationName
from jax_bptt.cell.activations import activation as activation_of
from jax_bptt.cell.cell import Carry, Cell, Params, StepCotangent, init_of, make_cell
from jax_bptt.cell.initializers import orthogonal


@overload
def indrnn(
    input_size: int,
    hidden_size: int,
    *,
    activation: ActivationName | Callable[[Array], Array] = "relu",
    bias: Literal[True] = True,
) -> Cell[Params, Carry]: ...
@overload
def indrnn(
    input_size: int,
    hidden_size: int,
    *,
    activation: ActivationName | Callable[[Array], Array] = "relu",
    bias: bool,
) -> Cell[Any, Carry]: ...
@cached(input_size=size, hidden_size=size, bias=flag)
def indrnn(
    input_size: int,
    hidden_size: int,
    *,
    activation: ActivationName | Callable[[Array], Array] = "relu",
    bias: bool = True,
) -> Cell[Any, Carry]:
    """`indrnn` makes an independently recurrent cell: one recurrent weight per unit, no matrix W_h.

    h_t = g(x_t W_x (+ b) + w h_{t−1})   (IF1, IF2)

    Args:
      input_size: I.
      hidden_size: H.
      activation: g, as for `elman`.
      bias: whether there is a b; False leaves it out of the params.

    Returns:
      The `Cell`, with `Params` whose w_h is [H], drawn uniformly from 0 to 1; the same object for the
      same arguments.

    Raises:
      ValueError: a size below 1, an unknown activation, or a bias that is not a bool.

    Reference: Li et al. 2018, Independently recurrent neural network, equation (4).

    >>> indrnn(3, 5).init(jax.random.key(0)).w_h.shape
    (5,)
    """
    plain = init_of(input_size, hidden_size, 1, orthogonal())

    def init(key: PRNGKey) -> Params:
        params = plain(key)
        w = jax.random.uniform(jax.random.fold_in(key, 1), (hidden_size,), params.b.dtype)
        return params._replace(w_h=w)

    step, linearise, adjoint = _pointwise(activation_of(activation))
    return make_cell(
        input_size, hidden_size, step, init=init, bias=bias, linearise=linearise, adjoint=adjoint
    )


def _pointwise(activation: Activation) -> tuple[Callable[..., Any], ...]:
    def step(units: Units, s_prev: Carry, u: Gates, v: Gates) -> Carry:
        z = u[0] + units["w_h"] * s_prev.h  # (IF1)
        return Carry(activation.g(z))  # (IF2)

    def linearise(units: Units, s_prev: Carry, u: Gates, v: Gates, s: Carry) -> tuple[Array, Array]:
        k = activation.slope(u[0] + units["w_h"] * s_prev.h, s.h)  # (IA1)
        return k, s_prev.h

    def adjoint(units: Units, a: tuple[Array, Array], lam: Carry) -> StepCotangent[Carry]:
        k, h_prev = a
        d_z = k * lam.h  # (IA1)
        d_prev = Carry(units["w_h"] * d_z)  # (IA2)
        return StepCotangent(carry=d_prev, u=(d_z,), v=(), units={"w_h": h_prev * d_z})  # (IA3)

    return step, linearise, adjoint

"""The leaky integrator is an Elman network in continuous time; each unit has its own time constant.

    τ dh/dt = −h + g(u + v), one Euler step of length Δt, α = Δt/τ:

    forward   α = σ(ρ)                                  ρ: one parameter per unit           (CF1)
              h_t = h_{t−1} + α (g(u_t + v_t) − h_{t−1})                                    (CF2)

σ keeps α between 0 and 1 whatever the optimizer does to ρ. With λ = dE/dh_t:

    adjoint   δu_t = δv_t = k λ,        k = α g′(u_t + v_t)                                 (CA1)
              δh_{t−1} = (1 − α) λ      besides the path through v                          (CA2)
              δρ = k_ρ λ,               k_ρ = (g(u_t + v_t) − h_{t−1}) α (1 − α)            (CA3)

Even if W_h passes nothing back, (CA2) keeps (1 − α)ᵗ of a gradient over t steps. So a unit remembers for
about 1/α steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import flag, size
from jax_bptt.base.errors import bad
from jax_bptt.base.made import by_shape
from jax_bptt.base.types import Gates, PRNGKey, Units
from jax_bptt.cell.activations import Activation, ActivationName
from jax_bptt.cell.activations import activation as activation_of
from jax_bptt.cell.cell import Carry, Cell, StepCotangent, init_of, make_cell
from jax_bptt.cell.initializers import Initializer, orthogonal


@by_shape
class LeakyParams(NamedTuple):
    """These are the parameters of a leaky integrator.

    Attributes:
      w_x: [I, H].
      w_h: [H, H].
      b: [H].
      rho: [H], the leak α = σ(ρ).
    """

    w_x: Array
    w_h: Array
    b: Array
    rho: Array


@overload
def leaky(
    input_size: int,
    hidden_size: int,
    *,
    activation: ActivationName | Callable[[Array], Array] = "tanh",
    rate: float = 0.1,
    recurrent: Initializer = orthogonal(),
    bias: Literal[True] = True,
) -> Cell[LeakyParams, Carry]: ...
@overload
def leaky(
    input_size: int,
    hidden_size: int,
    *,
    activation: ActivationName | Callable[[Array], Array] = "tanh",
    rate: float = 0.1,
    recurrent: Initializer = orthogonal(),
    bias: bool,
) -> Cell[Any, Carry]: ...
@cached(input_size=size, hidden_size=size, bias=flag)
def leaky(
    input_size: int,
    hidden_size: int,
    *,
    activation: ActivationName | Callable[[Array], Array] = "tanh",
    rate: float = 0.1,
    recurrent: Initializer = orthogonal(),
    bias: bool = True,
) -> Cell[Any, Carry]:
    """`leaky` makes a leaky integrator, which is an Elman network in continuous time.

    h_t = (1 − α) h_{t−1} + α g(x_t W_x (+ b) + h_{t−1} W_h),   α = σ(ρ)   (CF1, CF2)

    Args:
      input_size: I.
      hidden_size: H.
      activation: g, as for `elman`.
      rate: the initial α = Δt/τ of every unit: time step over time constant, between 0 and 1.
      recurrent: initialiser of W_h.
      bias: whether there is a b; False leaves it out of the params.

    Returns:
      The `Cell`, with G = 1 and `LeakyParams`; the same object for the same arguments.

    Raises:
      ValueError: a size below 1, a rate outside (0, 1), an unknown activation, a recurrent that is not a
        function, or a bias that is not a bool.

    Reference: Jaeger et al. 2007, leaky-integrator neurons; Funahashi & Nakamura 1993.

    >>> round(float(jax.nn.sigmoid(leaky(3, 5, rate=0.2).init(jax.random.key(0)).rho[0])), 6)
    0.2
    """
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < 1:
        raise bad("rate", "a number between 0 and 1", rate, "pass time step / time constant")
    plain = init_of(input_size, hidden_size, 1, recurrent)

    def init(key: PRNGKey) -> LeakyParams:
        params = plain(key)
        return LeakyParams(*params, jnp.full(hidden_size, math.log(rate / (1 - rate)), params.b.dtype))

    step, linearise, adjoint = _pointwise(activation_of(activation))
    return make_cell(
        input_size, hidden_size, step, init=init, bias=bias, linearise=linearise, adjoint=adjoint
    )


def _pointwise(activation: Activation) -> tuple[Callable[..., Any], ...]:
    def leak(units: Units) -> Array:
        return jax.nn.sigmoid(units["rho"])  # (CF1)

    def step(units: Units, s_prev: Carry, u: Gates, v: Gates) -> Carry:
        return Carry(s_prev.h + leak(units) * (activation.g(u[0] + v[0]) - s_prev.h))  # (CF2)

    def linearise(units: Units, s_prev: Carry, u: Gates, v: Gates, s: Carry) -> tuple[Array, Array]:
        z, alpha = u[0] + v[0], leak(units)
        g = activation.g(z)
        k = alpha * activation.slope(z, g)  # (CA1)
        k_rho = (g - s_prev.h) * alpha * (1 - alpha)  # (CA3)
        return k, k_rho

    def adjoint(units: Units, a: tuple[Array, Array], lam: Carry) -> StepCotangent[Carry]:
        k, k_rho = a
        d_z = k * lam.h  # (CA1)
        d_prev = Carry((1 - leak(units)) * lam.h)  # (CA2)
        return StepCotangent(carry=d_prev, u=(d_z,), v=(d_z,), units={"rho": k_rho * lam.h})  # (CA3)

    return step, linearise, adjoint

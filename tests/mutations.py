"""Right backward passes made wrong, one mistake each: the negative controls of the witnesses.

Each entry names the cell, the mutated backward pass, and the leaves that the mistake must spoil: those
and no others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jax_bptt as jb
from jax_bptt import sweep


class Mutation(NamedTuple):
    cell: str
    backward: Callable[..., Any]
    spoiled: set[str]


def _backward(
    of_a: Any = lambda a: a,
    of_w_h: Any = lambda w_h: w_h,
    of_d_carry: Any = lambda d_carry: d_carry,
    of_d_hs: Any = lambda d_hs: d_hs,
    contract: Any = sweep.contract,
    of_d_params: Any = lambda d_params: d_params,
) -> Callable[..., Any]:
    """The backward pass of full() with one of its parts replaced."""

    def backward(cell: Any, residuals: Any, d_carry: Any, d_hs: Any) -> Any:
        params, carry, xs, states = residuals
        a = of_a(sweep.linearise(cell, params, carry, xs, states))
        swept = params._replace(w_h=of_w_h(params.w_h))
        d_carry, lam = sweep.sweep(cell, swept, a, of_d_carry(d_carry), of_d_hs(d_hs))
        d_params, d_xs = contract(cell, params, carry, xs, states, a, lam)
        return of_d_params(d_params), d_carry, d_xs

    return backward


def _contract_with_h_t(cell, params, carry, xs, states, a, lam):
    """dW_h = Σ h_tᵀ δv_t: one step too late."""
    shifted = jax.tree.map(lambda s: jnp.concatenate([s, s[-1:]]), states)
    late = jax.tree.map(lambda s: s[1:], shifted), jax.tree.map(lambda s: s[0], states)
    right = sweep.contract(cell, params, carry, xs, states, a, lam)
    wrong = sweep.contract(cell, params, late[1], xs, late[0], a, lam)
    return right[0]._replace(w_h=wrong[0].w_h), right[1]


def _contract_with_zero_carry(cell, params, carry, xs, states, a, lam):
    zero = jax.tree.map(jnp.zeros_like, carry)
    return sweep.contract(cell, params, zero, xs, states, a, lam)


def _contract_next_input(cell, params, carry, xs, states, a, lam):
    """dW_x with x_{t+1}."""
    d_params, d_xs = sweep.contract(cell, params, carry, xs, states, a, lam)
    rolled = jnp.concatenate([xs[1:], xs[:1]])
    return d_params._replace(w_x=sweep.contract(cell, params, carry, rolled, states, a, lam)[0].w_x), d_xs


def _shift(d_hs):
    """G_{t+1} where G_t belongs."""
    return jnp.concatenate([d_hs[1:], jnp.zeros_like(d_hs[:1])])


_CHAIN = {"params.w_x", "params.w_h", "params.b", "carry.h", "xs"}  # all that λ reaches

MUTATIONS = {
    "dW_h with h_t for h_{t-1}": Mutation(
        "elman-tanh", _backward(contract=_contract_with_h_t), {"params.w_h"}
    ),
    "dW_h without h_0": Mutation("elman-tanh", _backward(contract=_contract_with_zero_carry), {"params.w_h"}),
    "dW_x with x_{t+1}": Mutation("elman-tanh", _backward(contract=_contract_next_input), {"params.w_x"}),
    "W_h not transposed": Mutation("elman-tanh", _backward(of_w_h=jnp.transpose), _CHAIN),
    "activation derivative missing": Mutation("elman-tanh", _backward(of_a=jnp.ones_like), _CHAIN),
    "Jacobians in forward order": Mutation("elman-tanh", _backward(of_a=lambda a: a[::-1]), _CHAIN),
    "final-carry cotangent forgotten": Mutation(
        "elman-tanh", _backward(of_d_carry=lambda d: jax.tree.map(jnp.zeros_like, d)), _CHAIN
    ),
    "G_t one step off": Mutation("elman-tanh", _backward(of_d_hs=_shift), _CHAIN),
    "λ without the loss at later steps": Mutation(
        "elman-identity",
        _backward(of_w_h=jnp.zeros_like),
        _CHAIN,
    ),
    "b_h dropped": Mutation(
        "reset-by-vjp", _backward(of_d_params=lambda d: d._replace(b_h=jnp.zeros_like(d.b_h))), {"params.b_h"}
    ),
    "b_h taken from u": Mutation(
        "reset-by-vjp", _backward(of_d_params=lambda d: d._replace(b_h=d.b)), {"params.b_h"}
    ),
    "gate blocks swapped": Mutation(
        "gated-by-vjp",
        _backward(of_d_params=lambda d: d._replace(w_h=jnp.roll(d.w_h, d.w_h.shape[0], axis=1))),
        {"params.w_h"},
    ),
    "cell state's cotangent forgotten": Mutation(
        "gated-by-vjp",
        _backward(of_d_carry=lambda d: d._replace(c=jnp.zeros_like(d.c))),
        {"params.w_x", "params.w_h", "params.b", "params.p_i", "params.p_o", "carry.h", "carry.c", "xs"},
    ),
    "unit-wise rate halved": Mutation(
        "leaky-by-hand", _backward(of_d_params=lambda d: d._replace(rate=d.rate / 2)), {"params.rate"}
    ),
    "NaN in one entry": Mutation(
        "elman-tanh", _backward(of_d_params=lambda d: d._replace(b=d.b.at[0].set(jnp.nan))), {"params.b"}
    ),
    "off by one in a million": Mutation(
        "elman-tanh", _backward(of_d_params=lambda d: d._replace(w_x=d.w_x * (1 + 1e-6))), {"params.w_x"}
    ),
}


def method(mutation: Mutation) -> jb.GradientMethod:
    """full() with the mutated backward pass."""
    return jb.full()._replace(name="mutated", backward=mutation.backward)

"""This gated recurrent unit applies the reset gate before the product, as Cho et al. 2014 wrote it.

    forward   u_r, u_z, u_n = x_t W_x (+ b)                                                 (RF1)
              r, z = σ(u_rz + h_{t−1} W_rz)              W_h = [W_rz, W_n]                  (RF2)
              n = tanh(u_n + (r h_{t−1}) W_n)            the second product                 (RF3)
              h_t = (1 − z) n + z h_{t−1}                                                   (RF4)

n depends on h_{t−1} through two matrix products, W_rz for the gate r and then W_n for r h_{t−1}. So the
backward step does two products as well, one after the other. With λ = dE/dh_t:

    adjoint   δn̂ = k_n λ,               k_n = (1 − z) (1 − n²)                              (RA1)
              δ(r h) = δn̂ W_nᵀ                                                              (RA2)
              δr̂ = k_r δ(r h),          k_r = h_{t−1} r (1 − r)                             (RA3)
              δẑ = k_z λ,               k_z = (h_{t−1} − n) z (1 − z)                       (RA4)
              δh_{t−1} = z λ + r δ(r h) + [δr̂, δẑ] W_rzᵀ                                    (RA5)

    contract  dE/dW_rz = Σ_t h_{t−1}ᵀ [δr̂, δẑ],   dE/dW_n = Σ_t (r h_{t−1})ᵀ δn̂             (RC1)
              dE/dW_x = Σ_t x_tᵀ δu,   dE/db = Σ_t δu,   δu = [δr̂, δẑ, δn̂]                 (RC2)
              dE/dx_t = δu W_xᵀ                                                             (RC3)
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.trees import zeros_like
from jax_bptt.base.types import DType, PRNGKey
from jax_bptt.cell.cell import Carry, Params
from jax_bptt.cell.step_cell import StepCell, step_cell
from jax_bptt.engine.linear_maps import joined, product, split, sum_of_outer_products, sum_over_rows

_Slopes = tuple[Array, Array, Array, Array, Array]


def reset_before(
    input_size: int, hidden_size: int, init: Callable[[PRNGKey], Params]
) -> StepCell[Params, Carry]:
    """`reset_before` makes the cell of gru(reset_after=False); init: key -> params with blocks r, z, n."""
    cell = step_cell(
        input_size,
        hidden_size,
        _step,
        init,
        project=_project,
        linearise=_linearise,
        adjoint=_adjoint,
        contract=_contract,
        gates=("r", "z", "n"),
    )
    return cell._replace(takes_dtype=True)


def _project(params: Params, x: Array, *, dtype: DType | None = None) -> Array:
    u = product(x, params.w_x, dtype)
    return u + params.b if _has_bias(params) else u  # (RF1)


def _has_bias(params: Params) -> bool:
    return hasattr(params, "b")


def _matrices(params: Params) -> tuple[Array, Array]:
    """The results are W_rz [H, 2H] and W_n [H, H]."""
    hidden = params.w_h.shape[0]
    return params.w_h[:, : 2 * hidden], params.w_h[:, 2 * hidden :]


def _gates(params: Params, h_prev: Array, u: Array, dtype: DType | None) -> tuple[Array, Array, Array]:
    (u_r, u_z, u_n), (w_rz, w_n) = split(u, 3), _matrices(params)
    v_r, v_z = split(product(h_prev, w_rz, dtype), 2)
    r, z = jax.nn.sigmoid(u_r + v_r), jax.nn.sigmoid(u_z + v_z)  # (RF2)
    n = jnp.tanh(u_n + product(r * h_prev, w_n, dtype))  # (RF3)
    return r, z, n


def _step(params: Params, s_prev: Carry, u: Array, *, dtype: DType | None = None) -> Carry:
    _, z, n = _gates(params, s_prev.h, u, dtype)
    return Carry((1 - z) * n + z * s_prev.h)  # (RF4)


def _linearise(params: Params, s_prev: Carry, u: Array, s: Carry, *, dtype: DType | None = None) -> _Slopes:
    r, z, n = _gates(params, s_prev.h, u, dtype)
    k_n = (1 - z) * (1 - n * n)  # (RA1)
    k_r = s_prev.h * r * (1 - r)  # (RA3)
    k_z = (s_prev.h - n) * z * (1 - z)  # (RA4)
    return k_r, k_z, k_n, r, z


def _towards_gates(
    params: Params, a: _Slopes, lam: Carry, dtype: DType | None
) -> tuple[Array, Array, Array, Array]:
    """The results are δr̂, δẑ, δn̂ and δ(r h)."""
    k_r, k_z, k_n, _, _ = a
    d_n = k_n * lam.h  # (RA1)
    d_rh = product(d_n, _matrices(params)[1].T, dtype)  # (RA2)
    return k_r * d_rh, k_z * lam.h, d_n, d_rh  # (RA3, RA4)


def _adjoint(params: Params, a: _Slopes, lam: Carry, *, dtype: DType | None = None) -> Carry:
    _, _, _, r, z = a
    d_r, d_z, _, d_rh = _towards_gates(params, a, lam, dtype)
    through_gates = product(joined((d_r, d_z)), _matrices(params)[0].T, dtype)
    return Carry(z * lam.h + r * d_rh + through_gates)  # (RA5)


def _contract(
    params: Params, s_prev: Carry, xs: Array, a: _Slopes, lam: Carry, *, dtype: DType | None = None
) -> tuple[Params, Array]:
    r = a[3]
    d_r, d_z, d_n, _ = _towards_gates(params, a, lam, dtype)
    d_w_rz = sum_of_outer_products(s_prev.h, (d_r, d_z), dtype)  # (RC1)
    d_w_n = sum_of_outer_products(r * s_prev.h, (d_n,), dtype)  # (RC1)
    d_u = d_r, d_z, d_n
    gradient = {
        "w_x": sum_of_outer_products(xs, d_u, dtype),  # (RC2)
        "w_h": joined((d_w_rz, d_w_n)),
    }
    if _has_bias(params):
        gradient["b"] = sum_over_rows(d_u)  # (RC2)
    # under `learn_carry` params have more fields, which the step does not read: their gradient is zero
    return zeros_like(params)._replace(**gradient), product(joined(d_u), params.w_x.T, dtype)  # (RC3)

"""The weights and the slopes of a run bound the growth of λ (Pascanu, Mikolov & Bengio 2013), for any cell.

    article          dS_t/dS_{t−1} = diag(g′(z_t)) W_s, so ‖dS_t/dS_{t−1}‖ ≤ max g′ · σ_max(W_s)

    pointwise step   J_tᵀ λ = D_t λ + Σ_g W_h,g δv_g(λ), D_t and δv_g unit by unit, so that
                     ‖J_t‖ ≤ max_k ‖D_k‖ + Σ_g max_k ‖δv_kg‖ σ_max(W_h,g)                    (BD1)
    any other step   ‖J_t‖ ≤ ‖J_t‖_F, the root of Σ_i ‖J_tᵀ e_i‖²                            (BD2)

    η = max_t of it  ‖λ_k‖ ≤ η^n ‖λ_t‖ over n steps that are not masked, so η < 1 makes
                     vanishing certain                                                       (BD3)

The module also computes the largest singular value and the spectral radius of W_h,

    ρ(W) = lim ‖W^n‖^(1/n), n = 1, 2, 4, ..                                                  (BD4)

by repeated squaring, because not every backend of JAX can compute eigenvalues of a nonsymmetric matrix.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.trees import divided, norm_of, norm_of_both, norm_of_rows, wide
from jax_bptt.base.types import ArrayTree, PointwiseParams, Slopes, State
from jax_bptt.cell.step_cell import AnyCell
from jax_bptt.engine.linear_maps import PointwiseCell, split, whole_matrix
from jax_bptt.engine.phases import backward_steps, is_pointwise
from jax_bptt.flow.record import LayerRecord
from jax_bptt.gradients.jacobians import WHOLE, adjoints_of_fields

SQUARINGS = 24  # enough for an error of about 1e-7 in log ρ


def growth_bound(layer: LayerRecord) -> Array:
    """This is η, a scalar: in no step and row does a λ grow by a larger factor."""
    cell, at = layer.cell, (layer.run.params, layer.slopes, layer.states)
    bound = _of_pointwise_step(cell, *at) if is_pointwise(cell) else _of_any_step(cell, *at)
    return jnp.max(bound, where=layer.run.sequence.mask, initial=0)  # (BD3)


def blocks_of(layer: LayerRecord) -> tuple[Array, ...]:
    """These are W_h of each gate, [H, H]; () where the step does with its parameters what it likes.

    A step cell may use a parameter of this name as it is, scaled, or not at all.
    """
    cell = layer.cell
    return _blocks(cell, layer.run.params) if is_pointwise(cell) and cell.layout.recurrent else ()


def _blocks(cell: PointwiseCell, params: PointwiseParams) -> tuple[Array, ...]:
    return split(whole_matrix(cell, params.w_h), cell.gates)


def largest_singular_value(w: Array) -> Array:
    """This is σ_max(W), a scalar."""
    return jnp.linalg.norm(w.astype(wide(w.dtype)), 2)


def spectral_radius(w: Array) -> Array:
    """The spectral radius ρ(W) is the largest absolute eigenvalue of a matrix [n, n].

    lim ‖W^n‖^(1/n)   (BD4)

    >>> round(float(spectral_radius(jnp.array([[0.0, 4.0], [-1.0, 0.0]]))), 4)
    2.0
    """

    def square(power: tuple[Array, Array], n: Array) -> tuple[tuple[Array, Array], None]:
        w, log_rho = power
        norm = norm_of(w)
        w = divided(w, norm)  # so that no power overflows
        log_rho = log_rho + jnp.log(norm) * n  # a power of zero gives minus infinity, so ρ = 0
        return (jnp.dot(w, w), log_rho), None

    w = w.astype(wide(w.dtype))
    shares = 0.5 ** jnp.arange(SQUARINGS, dtype=w.dtype)  # 1/n of each power W^n
    (_, log_rho), _ = jax.lax.scan(square, (w, jnp.zeros((), w.dtype)), shares)
    return jnp.exp(log_rho)  # (BD4)


def _of_pointwise_step(cell: PointwiseCell, params: PointwiseParams, slopes: Slopes, states: State) -> Array:
    direct, d_v = adjoints_of_fields(cell, params, slopes, states)
    bound = norm_of(direct, direct.ndim - 2).max(-1)
    if d_v is None:
        return bound
    sigma = jnp.stack([largest_singular_value(w) for w in _blocks(cell, params)])
    through = norm_of(jnp.moveaxis(d_v, -2, -1), d_v.ndim - 1)
    largest = through.max(-2)  # for each gate, over all units
    return bound + jnp.dot(largest, sigma)  # (BD1)


def _of_any_step(cell: AnyCell, params: ArrayTree, slopes: Slopes, states: State) -> Array:
    shape = jax.eval_shape(lambda: WHOLE.pack(states, states.h.ndim - 1))

    def row(norm: Array, e_i: Array) -> tuple[Array, None]:
        lam = WHOLE.unpack(jnp.broadcast_to(e_i, shape.shape), states)
        return norm_of_both(norm, norm_of_rows(backward_steps(cell, params, slopes, lam))), None

    zeros = jnp.zeros(shape.shape[:-1], wide(shape.dtype))
    norm, _ = jax.lax.scan(row, zeros, jnp.eye(shape.shape[-1], dtype=shape.dtype))
    return norm  # (BD2)

"""Lyapunov exponents measure how fast directions of the state grow or shrink per step in the long run.

    s_t = step(s_{t−1}, x_t),        J_t = ds_t/ds_{t−1}                                      (L1)
    J_t Q_{t−1} = Q_t R_t            Q orthonormal [S, k], R upper triangular                 (L2)
    λ_i = mean_t log |R_t,ii|        after a transient, largest first                         (L3)

The plain product of the J_t would overflow, or all its columns would turn to the fastest direction; so the QR
decomposition removes R_t from the product at every step. The sum of all S exponents is the mean of
log |det J_t|, exactly.

If all exponents are negative, the network contracts and gradients vanish. If one is positive, the network is
chaotic and gradients explode. Zero lies between. A dead ReLU maps a direction to zero, so its exponent is
log 0 = −∞; `finite` counts the steps in which this did not happen.

    R_t,ii = 0 for i > n, n the rows of J_t Q_{t−1} that are not zero, and so its largest rank  (L4)

A QR decomposition alone would leave rounding errors there instead of zeros.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.checks import check_key, integer
from jax_bptt.base.compiling import compiled
from jax_bptt.base.errors import named
from jax_bptt.base.trees import differentiable, merged, wide
from jax_bptt.base.types import DType, P, PRNGKey, S, Shape, State
from jax_bptt.cell.cell import Cell
from jax_bptt.cell.step_cell import Projected, StepCell
from jax_bptt.engine.devices import replicate, to_local
from jax_bptt.engine.phases import engine_of
from jax_bptt.engine.sequence import Sequence
from jax_bptt.gradients.jacobians import WHOLE
from jax_bptt.unrolling.arguments import check_unroll
from jax_bptt.unrolling.unroll import begin


class Lyapunov(NamedTuple):
    """These are the results of `lyapunov_spectrum`, for each row.

    Attributes:
      exponents: λ_1..λ_k, [..., k], in nats per step; −∞ if a step mapped the direction to zero.
      finite: the number of steps after the transient in which that did not happen, [..., k], int32.
    """

    exponents: Array
    finite: Array


@named()
@compiled("cell", "exponents", "transient")
def lyapunov_spectrum(
    cell: Cell[P, S] | StepCell[P, S],
    params: P,
    carry: S | None,
    xs: Array,
    *,
    exponents: int | None = None,
    transient: int = 0,
    key: PRNGKey | None = None,
) -> Lyapunov:
    """This computes the Lyapunov exponents of a cell driven by a sequence, by QR decompositions.

    λ_i = 1/(T − T₀) Σ_{t>T₀} log |R_t,ii|   (L2, L3)

    For each row it takes O(T (S² k + S k²)) time, and O(S k) memory beside u_1..u_T. It is differentiable by
    params (see `flossing`).

    Args:
      cell: a cell.
      params, carry, xs: as for `unroll`; zeros for an autonomous system.
      exponents: k, the number of exponents, the largest ones; None for all S, the numbers in one row's carry.
      transient: T₀ < T, the number of first steps that do not count. In them Q turns to the directions that
        grow fastest.
      key: a key from jax.random.key for a random Q_0; None for one fixed key. (Unit vectors as Q_0 would
        never turn to the fastest directions where no unit reads another.)

    Returns:
      `Lyapunov`.

    Raises:
      ValueError: at trace time; it names the argument, what was expected and what was passed.

    Reference: Benettin et al. 1980; for recurrent networks Engelken, Wolf & Abbott 2023; Vogt et al. 2022.

    >>> import jax_bptt as jb
    >>> cell = jb.elman(1, 3, activation="identity", recurrent=jb.identity(0.5))
    >>> found = lyapunov_spectrum(cell, cell.init(jax.random.key(0)), None, jnp.zeros((10, 1)))
    >>> found.exponents.round(4).tolist()  # log 0.5
    [-0.6931, -0.6931, -0.6931]
    """
    run = begin(cell, *replicate(check_unroll(cell, params, carry, Sequence(xs))))
    params, s_0, sequence = run.params, run.carry, run.sequence
    rows = sequence.rows
    size = jax.eval_shape(lambda: WHOLE.pack(differentiable(s_0), len(rows))).shape[-1]
    k = size if exponents is None else integer("exponents", exponents, 1, size)
    skipped = integer("transient", transient, 0, len(sequence.xs) - 1)
    engine = engine_of(cell)
    q = _orthonormal(key, size, k, rows, wide(s_0.h.dtype))

    def step(at: _Turned, at_t: tuple[Projected, Array]) -> tuple[_Turned, None]:
        s_prev, q = at.s, at.q
        u, t = at_t

        def of_state(s: State) -> State:
            stepped: State = engine.step(cell, params, s, u, engine.recur(cell, params, s)).state
            return stepped

        def of_numbers(numbers: State) -> State:
            found: State = differentiable(of_state(merged(numbers, s_prev)))
            return found

        def times_j(z: Array) -> Array:
            numbers = differentiable(s_prev)
            along = WHOLE.unpack(z.astype(s_0.h.dtype), numbers)
            return WHOLE.pack(jax.jvp(of_numbers, (numbers,), (along,))[1], len(rows)).astype(q.dtype)  # (L1)

        turned = jax.vmap(times_j, -1, -1)(q)
        q, r = _qr(turned)  # (L2)
        rank = (turned != 0).any(-1).sum(-1, keepdims=True)
        r_ii = jnp.abs(jnp.diagonal(r, axis1=-2, axis2=-1))
        i = jax.lax.broadcasted_iota(rank.dtype, r_ii.shape, r_ii.ndim - 1)
        growth = jnp.log(jnp.where(i < rank, r_ii, jnp.zeros_like(r_ii)))  # (L4)
        counts = t >= skipped
        sum_of_logs = at.sum_of_logs + jnp.where(counts, growth, jnp.zeros_like(growth))
        finite = at.finite + (counts & jnp.isfinite(growth)).astype(at.finite.dtype)
        return _Turned(of_state(s_prev), q, sum_of_logs, finite), None

    zeros = jnp.zeros((*rows, k), q.dtype), jnp.zeros((*rows, k), jnp.int32)
    first = to_local(_Turned(s_0, q, *zeros), run)
    data = engine.project(cell, params, sequence.xs), jnp.arange(len(sequence.xs))
    end, _ = jax.lax.scan(step, first, data)
    return Lyapunov(end.sum_of_logs / (len(sequence.xs) - skipped), end.finite)  # (L3)


class _Turned(NamedTuple):
    """After step t these are the state, Q_t, Σ log |R_ii|, and the number of steps where that was finite."""

    s: State
    q: Array
    sum_of_logs: Array
    finite: Array


def _orthonormal(key: PRNGKey | None, size: int, k: int, rows: Shape, dtype: DType) -> Array:
    key = jax.random.key(0) if key is None else key
    check_key(key)
    return _qr(jax.random.normal(key, (*rows, size, k), dtype))[0]


def _qr(z: Array) -> tuple[Array, Array]:
    """This is Q with orthonormal columns, and the upper triangular R."""
    q, r = jax.lax.linalg.qr(z, full_matrices=False)
    return q, r

"""Lyapunov exponents: how fast the directions of the state grow or shrink, step by step, forever.

    s_t = step(s_{t−1}, x_t),        J_t = ds_t/ds_{t−1}                                      (L1)
    J_t Q_{t−1} = Q_t R_t            Q orthonormal [S, k], R upper triangular                 (L2)
    λ_i = mean_t log |R_t,ii|        after a transient, largest first                         (L3)

Multiplied as they stand the J_t overflow, or all directions fall into the fastest; Q_t is taken out of
their product at every step. The sum of all S exponents is the mean of log |det J_t|, exactly.

Negative exponents: the net contracts, gradients vanish. Zero: the edge. A positive one: chaos, gradients
explode. A dead ReLU takes a direction to nothing: log 0 = −∞, and `finite` says how often it was not.

    R_t,ii = 0 for i > n, n the rows of J_t Q_{t−1} that are not zero, and so its largest rank  (L4)

where a QR decomposition leaves rounding instead.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.checks import check_key, integer
from jax_bptt.base.compiling import compiled
from jax_bptt.base.errors import named
from jax_bptt.base.trees import wide
from jax_bptt.base.types import DType, P, PRNGKey, S, Shape, State
from jax_bptt.cell.cell import Cell
from jax_bptt.cell.step_cell import Projected, StepCell
from jax_bptt.engine.devices import replicate
from jax_bptt.engine.phases import engine_of
from jax_bptt.engine.sequence import Sequence
from jax_bptt.gradients.jacobians import WHOLE
from jax_bptt.unrolling.arguments import check_unroll
from jax_bptt.unrolling.unroll import begin


class Lyapunov(NamedTuple):
    """What `lyapunov_spectrum` found, for each row.

    Attributes:
      exponents: λ_1..λ_k, [..., k], in nats per step; −∞ where a direction was taken to nothing.
      finite: [..., k], the steps, of those after the transient, in which it was not.
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
    """The Lyapunov exponents of a cell driven by a sequence, by QR.

    λ_i = 1/(T − T₀) Σ_{t>T₀} log |R_t,ii|   (L2, L3)

    Time O(T (S² k + S k²)) a row; memory O(S k) beside u_1..u_T. Differentiable by params (see `flossing`).

    Args:
      cell: a cell.
      params, carry, xs: as for `unroll`; zeros for an autonomous system.
      exponents: k, the first so many; None for all S, the numbers in one row's carry.
      transient: T₀ steps that turn Q to the growing directions but do not count, below T.
      key: a key from jax.random.key for Q_0, random; None for that of one fixed key. (Unit vectors would
        never turn to the growing directions where no unit reads another.)

    Returns:
      `Lyapunov`.

    Raises:
      ValueError: at trace time, naming the argument, what was expected and what came.

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
    size = jax.eval_shape(WHOLE.pack, s_0).shape[-1]
    k = size if exponents is None else integer("exponents", exponents, 1, size)
    skipped = integer("transient", transient, 0, len(sequence.xs) - 1)
    engine = engine_of(cell)
    q = _orthonormal(key, size, k, rows, wide(s_0.h.dtype))

    def step(at: _Turned, at_t: tuple[Projected, Array]) -> tuple[_Turned, None]:
        s_prev, q = at.s, at.q
        u, t = at_t

        def of_state(s: State) -> State:
            stepped: State = engine.step(cell, params, s, u, engine.recur(cell, params, s))
            return stepped

        def times_j(z: Array) -> Array:
            along = WHOLE.unpack(z.astype(s_0.h.dtype), s_prev)
            return WHOLE.pack(jax.jvp(of_state, (s_prev,), (along,))[1]).astype(q.dtype)  # (L1)

        turned = jax.vmap(times_j, -1, -1)(q)
        q, r = _qr(turned)  # (L2)
        rank = (turned != 0).any(-1).sum(-1, keepdims=True)
        r_ii = jnp.abs(jnp.diagonal(r, axis1=-2, axis2=-1))
        i = jax.lax.broadcasted_iota(rank.dtype, r_ii.shape, r_ii.ndim - 1)
        growth = jnp.log(jnp.where(i < rank, r_ii, jnp.zeros_like(r_ii)))  # (L4)
        counts = t >= skipped
        total = at.total + jnp.where(counts, growth, jnp.zeros_like(growth))
        finite = at.finite + (counts & jnp.isfinite(growth)).astype(at.finite.dtype)
        return _Turned(of_state(s_prev), q, total, finite), None

    first = _Turned(s_0, q, jnp.zeros((*rows, k), q.dtype), jnp.zeros((*rows, k), jnp.int32))
    data = engine.project(cell, params, sequence.xs), jnp.arange(len(sequence.xs))
    end, _ = jax.lax.scan(step, first, data)
    return Lyapunov(end.total / (len(sequence.xs) - skipped), end.finite)  # (L3)


class _Turned(NamedTuple):
    """After step t: the state, Q_t, Σ log |R_ii|, and in how many steps that was finite."""

    s: State
    q: Array
    total: Array
    finite: Array


def _orthonormal(key: PRNGKey | None, size: int, k: int, rows: Shape, dtype: DType) -> Array:
    key = jax.random.key(0) if key is None else key
    check_key(key)
    return _qr(jax.random.normal(key, (*rows, size, k), dtype))[0]


def _qr(z: Array) -> tuple[Array, Array]:
    """Orthonormal columns and upper triangular R."""
    q, r = jax.lax.linalg.qr(z, full_matrices=False)
    return q, r

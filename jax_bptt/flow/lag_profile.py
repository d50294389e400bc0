"""A lag profile measures how far a derivative reaches: the size of ds_t/ds_k, or of dE_t/ds_k, by lag.

    ds_t/ds_{t−l} = J_t J_{t−1} .. J_{t−l+1},   J_t = ds_t/ds_{t−1}                          (LP1)

Row i of this product is λ after l steps back, if λ begins at step t as the unit vector e_i. So every unit
vector goes back as the losses do in `lags`, for all t at once. The norms of all these rows together make the
Frobenius norm, n_i = √(n_{i−1}² + ‖row i‖²)                                             (LP2)

Divided by √S, where S is the size of the state, this norm is the root mean square factor by which a random
direction grows: one for a rotation, whatever S is. It is exact; nothing is sampled.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.checks import as_arrays
from jax_bptt.base.compiling import compiled
from jax_bptt.base.errors import bad, named, shown
from jax_bptt.base.trees import norm_of_both, norm_of_rows, only_h, wide
from jax_bptt.base.types import Mark, P, S, State
from jax_bptt.cell.cell import Cell
from jax_bptt.cell.step_cell import StepCell
from jax_bptt.engine.devices import replicate, to_local
from jax_bptt.engine.sequence import Sequence
from jax_bptt.flow.credit import check_lags
from jax_bptt.flow.lags import shift_lag
from jax_bptt.flow.record import record_of_layer
from jax_bptt.gradients.jacobians import WHOLE
from jax_bptt.networks.layers import layer
from jax_bptt.unrolling.arguments import check_unroll


@named()
@compiled("cell", "lags")
def lag_profile(
    cell: Cell[P, S] | StepCell[P, S],
    params: P,
    carry: S | None,
    xs: Array,
    d_hs: Array | None = None,
    *,
    lags: int | None = None,
    mask: Mark = None,
    reset: Mark = None,
    cut: Mark = None,
) -> Array:
    """This measures ‖ds_t/ds_{t−l}‖ by lag, or ‖dE_t/ds_{t−l}‖ if dE_t/dh_t is given.

    ‖J_t .. J_{t−l+1}‖_F / √S   (LP1, LP2);   ‖λᵗ_{t−l}‖ where d_hs is given

    It takes the time of S backward passes for each lag, or of one with d_hs; S is the size of the state. It
    takes O(T) memory.

    Args:
      cell: a cell; for a network see `gradient_flow`.
      params, carry, xs, mask, reset, cut: as for `unroll`.
      d_hs: dE_t/dh_t, [T, ..., H], or None for the derivative of the state itself.
      lags: lags 0 to lags − 1 are used; None for all T.

    Returns:
      The norm for each lag, step t and row, [lags, T, ...], in float32 at least; zero where t − l is before
      the first step. Derivatives pass a masked step unchanged, and do not pass a reset or cut.

    Raises:
      ValueError: at trace time; it names the argument, what was expected and what was passed.

    Reference: Pascanu, Mikolov & Bengio 2013, On the difficulty of training recurrent neural networks,
    equation (5).

    >>> import jax_bptt as jb
    >>> cell = jb.elman(1, 4, activation="identity")  # W_h is orthogonal
    >>> found = lag_profile(cell, cell.init(jax.random.key(0)), None, jnp.ones((5, 1)))
    >>> found[:, -1].round(3).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    sequence = Sequence(xs, mask, reset, cut)
    params, carry, sequence = replicate(check_unroll(cell, params, carry, sequence))
    rows, lags = sequence.rows, check_lags(lags, len(sequence.xs))
    ran = record_of_layer(layer(cell), params, carry, sequence, None)
    states = ran.states
    steps = jnp.arange(len(states.h))

    def norms(lam: State) -> Array:
        def one_lag(lam: State, lag: Array) -> tuple[State, Array]:
            norm = norm_of_rows(lam)
            inside = (steps >= lag).reshape(-1, *[1] * len(rows))
            at_t = jnp.where(inside, jnp.roll(norm, lag, 0), jnp.zeros_like(norm))
            return shift_lag(ran, lam).carry, at_t

        return jax.lax.scan(one_lag, to_local(lam, states), jnp.arange(lags))[1]

    if d_hs is not None:
        d_hs = as_arrays("d_hs", d_hs)
        if getattr(d_hs, "shape", None) != states.h.shape or d_hs.dtype != states.h.dtype:
            raise bad(
                "d_hs", f"{states.h.dtype}[{shown(states.h.shape)}], as h", d_hs, "pass dE/dh for every step"
            )
        return norms(only_h(d_hs, like=states))

    def of_direction(norm: Array, e_i: Array) -> tuple[Array, None]:
        lam = WHOLE.unpack(jnp.broadcast_to(e_i, (*states.h.shape[:-1], len(e_i))), states)
        return norm_of_both(norm, norms(lam)), None  # (LP2)

    size = jax.eval_shape(lambda: WHOLE.pack(states, states.h.ndim - 1)).shape[-1]
    directions = jnp.eye(size, dtype=states.h.dtype)
    begin = to_local(jnp.zeros((lags, len(steps), *rows), wide(states.h.dtype)), states)
    norm, _ = jax.lax.scan(of_direction, begin, directions)
    return norm / size**0.5  # (LP1)

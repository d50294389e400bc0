"""How far a derivative reaches: ds_t/ds_k by lag, or dE_t/ds_k.

    ds_t/ds_{t−l} = J_t J_{t−1} .. J_{t−l+1},   J_t = ds_t/ds_{t−1}                          (LP1)

Its rows are what λ becomes that begins at step t as a unit vector, so every unit vector goes back as the
losses do in `lags`, all t at once; the sum of their squares is the squared Frobenius norm       (LP2)

Divided by the root of the state's size S it is the root mean square by which a random direction grows:
one for a rotation, whatever S. It is exact, no sample is drawn.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.checks import as_arrays
from jax_bptt.base.compiling import compiled
from jax_bptt.base.errors import bad, named, shown
from jax_bptt.base.trees import only_h, root, squares_of_rows
from jax_bptt.base.types import Mark, P, S, State
from jax_bptt.cell.cell import Cell
from jax_bptt.cell.step_cell import StepCell
from jax_bptt.engine.devices import replicate
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
    """‖ds_t/ds_{t−l}‖ by lag, or of given losses ‖dE_t/ds_{t−l}‖.

    ‖J_t .. J_{t−l+1}‖_F / √S   (LP1, LP2);   ‖λᵗ_{t−l}‖ where d_hs is given

    Time: S times as many backward passes as lags, or, with d_hs, once as many. Memory O(T).

    Args:
      cell: a cell; of a network see `gradient_flow`.
      params, carry, xs, mask, reset, cut: as for `unroll`.
      d_hs: dE_t/dh_t, [T, ..., H], or None for the derivative of the state itself.
      lags: lags 0 to lags − 1 are taken; None for all T.

    Returns:
      [lags, T, ...], for each lag, step t and row; zero where t − l is before the first step. A masked
      step is passed unchanged, a reset or cut not at all.

    Raises:
      ValueError: at trace time, naming the argument, what was expected and what came.

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

    def squares(lam: State) -> Array:
        def one_lag(lam: State, lag: Array) -> tuple[State, Array]:
            squared = squares_of_rows(lam)
            inside = (steps >= lag).reshape(-1, *[1] * len(rows))
            at_t = jnp.where(inside, jnp.roll(squared, lag, 0), jnp.zeros_like(squared))
            return shift_lag(ran, lam).carry, at_t

        return jax.lax.scan(one_lag, lam, jnp.arange(lags))[1]

    if d_hs is not None:
        d_hs = as_arrays(d_hs)
        if getattr(d_hs, "shape", None) != states.h.shape or d_hs.dtype != states.h.dtype:
            raise bad(
                "d_hs", f"{states.h.dtype}[{shown(states.h.shape)}], as h", d_hs, "pass dE/dh for every step"
            )
        return root(squares(only_h(d_hs, like=states)))

    def of_direction(total: Array, e_i: Array) -> tuple[Array, None]:
        lam = WHOLE.unpack(jnp.broadcast_to(e_i, (*states.h.shape[:-1], len(e_i))), states)
        return total + squares(lam), None  # (LP2)

    size = jax.eval_shape(WHOLE.pack, states).shape[-1]
    directions = jnp.eye(size, dtype=states.h.dtype)
    total, _ = jax.lax.scan(of_direction, jnp.zeros((lags, len(steps), *rows), states.h.dtype), directions)
    return root(total / size)  # (LP1)

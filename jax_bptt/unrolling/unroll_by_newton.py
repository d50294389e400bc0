"""Newton's method computes all states of a sequence at once, without a loop over time."""

from __future__ import annotations

from typing import Any

from jax import Array

from jax_bptt.base.compiling import compiled
from jax_bptt.base.errors import bad, named
from jax_bptt.base.trees import flipped, last_step
from jax_bptt.base.types import Mark, P, S
from jax_bptt.cell.cell import Cell
from jax_bptt.cell.step_cell import StepCell
from jax_bptt.engine.devices import replicate
from jax_bptt.engine.sequence import Sequence
from jax_bptt.gradients.newton import Newton, NewtonInfo, newton, states_by_newton
from jax_bptt.unrolling.arguments import check_unroll
from jax_bptt.unrolling.unroll import begin


@named()
@compiled("cell", "newton", "reverse")
def unroll_by_newton(
    cell: Cell[P, S] | StepCell[P, S],
    params: P,
    carry: S | None,
    xs: Array,
    *,
    newton: Newton = newton(),
    mask: Mark = None,
    reset: Mark = None,
    reverse: bool = False,
) -> tuple[S, Array, NewtonInfo]:
    """`unroll_by_newton` computes the states of `unroll` by Newton's method and reports its convergence.

    s_t = step(s_{t−1}, x_t) for all t at once

    If the method does not converge, the last iterate is returned, and the info says so. This function cannot
    be differentiated. For gradients use `unroll` with gradient=jb.parallel(newton=...), which falls back to
    the loop over time if the method does not converge.

    Args:
      cell, params, carry, xs, mask, reset, reverse: as for `unroll`.
      newton: the settings of the method, from `newton`.

    Returns:
      The last state, leaves [..., H]; h_1..h_T, [T, ..., H]; and `NewtonInfo`: the iterations, the residual
      and whether the method converged.

    Raises:
      ValueError: at trace time, if an argument is wrong; it says which one, what was expected and what was
        passed. Also if JAX differentiates this function.

    Reference: Lim et al. 2024, Parallelizing non-linear sequential models over the sequence length.

    >>> from jax_bptt import elman
    >>> cell = elman(3, 5, recurrent=lambda key, shape, dtype: 0.5 * jnp.eye(5, dtype=dtype))
    >>> params = cell.init(jax.random.key(0))
    >>> carry, hs, info = unroll_by_newton(cell, params, None, jnp.ones((1000, 3)))
    >>> hs.shape, bool(info.converged), int(info.iterations) < 20
    ((1000, 5), True, True)
    """
    if not isinstance(newton, Newton):
        raise bad("newton", "a Newton", newton, "make one by jb.newton()")
    sequence = Sequence(xs, mask, reset)
    params, carry, sequence = replicate(check_unroll(cell, params, carry, sequence, reverse=reverse))
    run = begin(cell, params, carry, flipped(sequence) if reverse else sequence)
    states, info = states_by_newton(newton, cell, run)
    last: Any = last_step(states)
    return last, flipped(states.h) if reverse else states.h, info

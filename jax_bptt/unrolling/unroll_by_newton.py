"""A cell over a whole sequence without a loop over time: all states at once, and how well it went."""

from __future__ import annotations

from typing import Any

import jax
from jax import Array

from jax_bptt.base.errors import bad
from jax_bptt.engine.devices import whole
from jax_bptt.engine.sequence import Sequence, flipped, without_padding
from jax_bptt.gradients.full import full
from jax_bptt.gradients.newton import Newton, NewtonInfo, newton, states_by_newton
from jax_bptt.unrolling.arguments import check_unroll


def unroll_by_newton(
    cell: Any,
    params: Any,
    carry: Any,
    xs: Array,
    *,
    newton: Newton = newton(),
    mask: Array | None = None,
    reset: Array | None = None,
    reverse: bool = False,
) -> tuple[Any, Array, NewtonInfo]:
    """The states of `unroll` by Newton's method, and how it went; a derivative of it is a ValueError.

    s_t = step(s_{t−1}, x_t) for all t at once

    For the gradient take `unroll` with `gradient=jb.parallel(newton=...)`, which falls back to the loop
    where this does not converge; here the last iterate is returned, and the info says that it is no
    solution.

    Args:
      cell, params, carry, xs, mask, reset, reverse: as for `unroll`.
      newton: how, from `newton`.

    Returns:
      The last state, leaves [..., H]; h_1..h_T, [T, ..., H]; `NewtonInfo`: iterations, residual and
      whether it converged.

    Raises:
      ValueError: at trace time, naming the argument, what was expected and what came.

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
    params, carry, sequence = check_unroll(cell, params, carry, Sequence(xs, mask, reset), full(), reverse)
    params, carry, sequence = whole((params, carry, sequence))
    sequence, rows = without_padding(sequence), xs.shape[1:-1]
    carry = cell.initial_carry(params, rows) if carry is None else carry
    start = None if reset is None else cell.initial_carry(params, rows)
    sequence = flipped(sequence) if reverse else sequence
    states, info = states_by_newton(newton, cell, params, carry, start, sequence)
    hs = flipped(states.h) if reverse else states.h
    return jax.tree.map(lambda s: s[-1], states), hs, info

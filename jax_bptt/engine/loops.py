"""The time loops of Backpropagation Through Time, once for every cell, mask, reset and cut.

    forward    s_t = step(s̃_{t−1}, x_t) where mask_t, s̃_{t−1} elsewhere                       (F4)
               s̃_{t−1} is s_{t−1}, or the initial carry where reset_t (`sequence`)

The loss E reads h_1..h_T and the final state s_T. Write G_t for its direct derivative by s_t and
λ_t = dE/ds_t for the total one. Unrolled in time the network is a deep one whose layers share their
weights, so the chain rule gives a recursion backwards in t and a sum over t:

    linearise  the derivative of step at every t            parallel in t, see `pointwise`

    sweep      λ_T = G_T + dE/ds_T                          sequential, linear in λ           (S1)
               λ̃_{t−1} = (ds_t/ds̃_{t−1})ᵀ λ_t where mask_t, λ_t elsewhere                      (S2)
               λ_{t−1} = G_{t−1} + λ̃_{t−1}, without it where reset_t or cut_t                 (S3)
               dE/dstart = Σ_t λ̃_{t−1} where reset_t        into the initial carry            (S4)

    contract   the sum over t, once for each matrix         parallel in t, see `pointwise`
               with λ_t = 0 where mask is False             such a step read no weight        (S5)

Of a plain sequence nothing of masks, resets or cuts is in the compiled loops. Every function here runs
a stretch of steps, the whole sequence or a chunk of it; who chooses the stretches is in `gradients`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.cell.cell import Cell
from jax_bptt.engine import pointwise, stepwise
from jax_bptt.engine.sequence import Sequence, select, zeros_like


def forward(cell: Any, params: Any, carry: Any, start: Any, sequence: Sequence) -> tuple[Any, Any]:
    """The states of every step.

    s_t = step(s̃_{t−1}, x_t)   (F4)

    Args:
      cell: the cell.
      params: its parameters.
      carry: s_0, leaves [..., H].
      start: the initial carry, like carry; None without resets.
      sequence: x_1..x_T, [T, ..., I], and the marks.

    Returns:
      s_T, leaves [..., H], and s_1..s_T, leaves [T, ..., H].
    """
    return _forward(cell, params, carry, start, sequence, lambda s_prev, u, v, s: s)


def forward_and_linearise(
    cell: Any, params: Any, carry: Any, start: Any, sequence: Sequence
) -> tuple[Any, tuple[Any, Any]]:
    """The states of every step, and phase 1 along with them.

    Args:
      cell, params, carry, start, sequence: as for `forward`.

    Returns:
      s_T, and s_1..s_T with a_1..a_T as of `linearise`.
    """
    derivative = functools.partial(engine_of(cell).linearise, cell, params)
    return _forward(cell, params, carry, start, sequence, lambda *at_t: (at_t[-1], derivative(*at_t)))


def _forward(
    cell: Any, params: Any, carry: Any, start: Any, sequence: Sequence, emit: Callable[..., Any]
) -> tuple[Any, Any]:
    engine = engine_of(cell)

    def step(s_prev: Any, at_t: Any) -> tuple[Any, Any]:
        u, mask, reset, cut = at_t
        s_prev = enter(reset, start, closed(cut, s_prev))
        v = engine.recur(cell, params, s_prev)
        s = select(mask, engine.step(cell, params, s_prev, u, v), s_prev)  # (F4)
        return s, emit(s_prev, u, v, s)

    with jax.named_scope("bptt/forward"):
        u = engine.project(cell, params, sequence.xs)
        return jax.lax.scan(step, carry, (u, sequence.mask, sequence.reset, sequence.cut))


def linearise(cell: Any, params: Any, s_prev: Any, sequence: Sequence, states: Any) -> Any:
    """Phase 1: the derivative of the step at every t.

    Args:
      cell: the cell.
      params: its parameters.
      s_prev: s̃_0..s̃_{T−1} from `previous`, leaves [T, ..., H].
      sequence: x_1..x_T and the marks.
      states: s_1..s_T, leaves [T, ..., H].

    Returns:
      a_1..a_T, leaves [T, ...].
    """
    engine = engine_of(cell)
    with jax.named_scope("bptt/linearise"):
        u = engine.project(cell, params, sequence.xs)
        v = engine.recur(cell, params, s_prev)
        return jax.vmap(functools.partial(engine.linearise, cell, params))(s_prev, u, v, states)


def sweep(
    cell: Any,
    params: Any,
    a: Any,
    sequence: Sequence,
    d_carry: Any,
    d_hs: Array,
    alter: Callable[[Any], Any] | None = None,
) -> tuple[Any, Any, Any]:
    """Phase 2: λ backwards through time.

    λ_{t−1} = G_{t−1} + (ds_t/ds_{t−1})ᵀ λ_t   (S1-S3)

    Args:
      cell: the cell.
      params: its parameters.
      a: a_1..a_T from `linearise`.
      sequence: the marks.
      d_carry: dE/ds_T, leaves [..., H].
      d_hs: G_1..G_T, [T, ..., H].
      alter: see `step_back`.

    Returns:
      dE/ds_0 and dE/dstart (None without resets), leaves [..., H], and λ_1..λ_T, leaves [T, ..., H],
      zero where a step was masked.
    """
    back = functools.partial(step_back, cell, params, engine_of(cell).before_sweep(cell, params), alter)
    d_start = None if sequence.reset is None else zeros_like(d_carry)

    def step(towards: tuple[Any, Any], at_t: Any) -> tuple[Any, Any]:
        d_s, d_start = towards
        d_h, *here = at_t
        d_s, begun, lam_step = back(d_s._replace(h=d_s.h + d_h), *here)  # (S1), and G of (S3)
        return (d_s, plus(d_start, begun)), lam_step  # (S4)

    with jax.named_scope("bptt/sweep"):
        marks = sequence.mask, sequence.reset, sequence.cut
        (d_carry, d_start), lam = jax.lax.scan(step, (d_carry, d_start), (d_hs, a, *marks), reverse=True)
        return d_carry, d_start, lam


def step_back(
    cell: Any,
    params: Any,
    fixed: Any,
    alter: Callable[[Any], Any] | None,
    lam: Any,
    a: Any,
    mask: Array | None,
    reset: Array | None,
    cut: Array | None,
) -> tuple[Any, Any, Any]:
    """One step of the sweep, from λ_t to what it says of s_{t−1}.

    Args:
      cell, params: the cell and its parameters.
      fixed: what the engine's `before_sweep` made.
      alter: what is done to λ̃ on its way to step t − 1, None for nothing; see `artbp`, `clipped`.
      lam: λ_t, leaves [..., H].
      a: a_t.
      mask, reset, cut: of this step, bool [...] or None.

    Returns:
      λ_{t−1} − G_{t−1}; λ̃_{t−1} where reset, zero elsewhere (None without resets); λ_t where mask,
      zero elsewhere. Leaves [..., H].
    """
    lam_step = select(mask, lam, zeros_like(lam))  # (S5)
    lam_prev = select(mask, engine_of(cell).backward_step(cell, params, fixed, a, lam_step), lam)  # (S2)
    begun = None
    if reset is not None:
        begun = select(reset, lam_prev, zeros_like(lam_prev))
        lam_prev = select(reset, zeros_like(lam_prev), lam_prev)  # (S3)
    if cut is not None:
        lam_prev = select(cut, zeros_like(lam_prev), lam_prev)  # (S3)
    return lam_prev if alter is None else alter(lam_prev), begun, lam_step


def contract(cell: Any, params: Any, s_prev: Any, sequence: Sequence, a: Any, lam: Any) -> tuple[Any, Array]:
    """Phase 3: the summed chain rule, one product for each matrix.

    dE/dW_h = Σ_t h_{t−1}ᵀ δv_t,   dE/dW_x = Σ_t x_tᵀ δu_t

    Args:
      cell: the cell.
      params: its parameters.
      s_prev: s̃_0..s̃_{T−1} from `previous`, leaves [T, ..., H].
      sequence: x_1..x_T and the marks.
      a: a_1..a_T from `linearise`.
      lam: λ_1..λ_T from `sweep`.

    Returns:
      dE/dparams, like params, and dE/dx_1..dE/dx_T, [T, ..., I].
    """
    with jax.named_scope("bptt/contract"):
        return engine_of(cell).contract(cell, params, s_prev, sequence.xs, a, lam)


def previous(carry: Any, start: Any, sequence: Sequence, states: Any) -> Any:
    """s̃_0..s̃_{T−1} from s_0, the initial carry and s_1..s_T: what each step began from."""
    shifted = jax.tree.map(lambda s_0, s: jnp.concatenate([s_0[None], s[:-1]]), carry, states)
    every_t = jax.tree.map(lambda s_0: s_0[None], start)
    return enter(sequence.reset, every_t, closed(sequence.cut, shifted))


def enter(reset: Array | None, start: Any, s_prev: Any) -> Any:
    """s̃_{t−1}: the initial carry where reset, s_{t−1} elsewhere."""
    return s_prev if reset is None else select(reset, start, s_prev)


def closed(cut: Array | None, s_prev: Any) -> Any:
    """s_{t−1}, a number where cut: for derivatives of the passes themselves, such as a hessian."""
    return s_prev if cut is None else select(cut, jax.lax.stop_gradient(s_prev), s_prev)


def plus(a: Any, b: Any) -> Any:
    """a + b, leaf by leaf."""
    return jax.tree.map(jnp.add, a, b)


def engine_of(cell: Any) -> Any:
    """The functions of a step that belong to this kind of cell: `pointwise` or `stepwise`."""
    return pointwise if isinstance(cell, Cell) else stepwise

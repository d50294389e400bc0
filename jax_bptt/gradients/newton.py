"""The states of all steps at once, by Newton's method on the recurrence (DEER, Lim et al. 2024).

The recurrence s_t = F_t(s_{t−1}), with F_t the step and its marks, is one equation for s_1..s_T. Its
linearisation about an iterate s^k is a linear recurrence, which a parallel prefix solves. Written for
the change z_t = s_t^{k+1} − s_t^k:

    residual   f_t = F_t(s_{t−1}^k),  r_t = f_t − s_t^k        all t at once; zero at the solution  (Q1)
    slope      A_t = κ dF_t/ds_{t−1}                           κ: the damping; 1 where the carry is
                                                               held, 0 where it begins anew         (Q2)
    solve      z_t = A_t z_{t−1} + r_t,  z_0 = 0                                                    (Q3)
               (N, c) after (M, b):  z → N (M z + b) + c       is (N M, N b + c)                    (Q4)
    update     s_t^{k+1} = f_t + (z_t − r_t)                   f_t itself where z_{t−1} = 0         (Q5)
               s_t^{k+1} = f_t, or else s_t^k                  where a number overflowed            (Q6)
    stop       |r_t|∞ below ε m_t and |s_t^{k+1} − s_t^k|∞ below √ε m_t at every t and in every row (Q7)
               m_t = max of |s_0|∞..|s_t|∞                     what earlier steps do not excuse     (Q8)

Whatever A is, s_1..s_k are those of the loop after k iterations, bit by bit for bit-equal steps: by
(Q5) and (Q6) the first wrong step is set right, and what is right is left alone. So T iterations
always suffice; contracting dynamics need a few, however long T is.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.checks import flag, number, size
from jax_bptt.base.errors import bad, named
from jax_bptt.base.trees import select
from jax_bptt.base.types import ArrayTree, State
from jax_bptt.cell.step_cell import AnyCell
from jax_bptt.engine import phases
from jax_bptt.engine.run import Run
from jax_bptt.gradients.jacobians import UNITS, WHOLE, form_of, jacobians, jacobians_with_marks, small_matmul

_ROUNDING = 16  # multiples of eps that the residual of converged states stays below


class Newton(NamedTuple):
    """How the states of all steps are found at once; made by `newton`.

    Attributes:
      iterations: after how many to give up.
      tolerance: ε, of the residual; None for 16 eps of the dtype, at most 1e-3.
      diagonal: whether each unit's own block stands for the Jacobian.
      damping: κ, by which the Jacobian is multiplied.
    """

    iterations: int
    tolerance: float | None
    diagonal: bool
    damping: float

    def __repr__(self) -> str:
        return "newton(" + ", ".join(f"{n}={v!r}" for n, v in self._asdict().items()) + ")"


class NewtonInfo(NamedTuple):
    """How the iteration went.

    Attributes:
      iterations: how many were made, int32.
      residual: max_t |s_t − step(s_{t−1})|∞ / m_t, over all rows, of the states returned, m_t the
        largest number in s_0..s_t.
      converged: bool, whether that is below the tolerance ε and the last change below √ε; or it is zero.
    """

    iterations: Array
    residual: Array
    converged: Array


@named()
def newton(
    iterations: int = 100, tolerance: float | None = None, diagonal: bool = False, damping: float = 1.0
) -> Newton:
    """Newton's method for the states of all steps at once, for `parallel` and `unroll_by_newton`.

    s_t^{k+1} = step(s_{t−1}^k) + κ J_t (s_{t−1}^{k+1} − s_{t−1}^k)   for all t by a parallel prefix

    An iteration has O(log T) depth, O(T·B·S³) work and O(T·B·S²) memory for S numbers in one row's
    carry; O(T·B·H) for a cell without a recurrent product, and for every pointwise cell with
    `diagonal`. The number of iterations is what counts: a few where the dynamics contract (largest
    Lyapunov exponent negative), towards T where they are chaotic, and then a loop is better. So it
    is meant for long T, small H and contracting dynamics, on a GPU; on a CPU the loop won (`parallel`).

    Args:
      iterations: after how many to give up.
      tolerance: ε, of the residual max_t |s_t − step(s_{t−1})|∞ / m_t, m_t the largest number in
        s_0..s_t; the last change must be below √ε. None for 16 eps of the dtype, but at most 1e-3: in 16
        bits it seldom converges, and `parallel` takes the loop.
      diagonal: keep of J_t only each unit's own block (quasi-DEER): less work and memory for each of
        more iterations. The carry must then be [..., H] throughout.
      damping: κ in (0, 1]. Below 1 the linear recurrence is held where the product of the J_t explodes
        on the way. Measured on 400 steps of 16 tanh units, random W_h: with gain 1.5 and `diagonal` 323
        iterations at κ = 1 and 192 at 0.6, with gain 2 and whole J_t 181 and at best 150 (0.8); below
        chaos (gain 0.9) it costs iterations, 5 and 26, and so it does well above (gain 3), 326 and 354.

    Returns:
      The `Newton`, a hashable value.

    Raises:
      ValueError: iterations below 1, a tolerance not above 0, a damping outside (0, 1].

    Reference: Lim et al. 2024, Parallelizing non-linear sequential models over the sequence length;
    Gonzalez et al. 2024, Towards scalable and stable parallelization of nonlinear RNNs; Gonzalez et al.
    2025, Predictability enables parallelization of nonlinear state space models.

    >>> newton(diagonal=True)
    newton(iterations=100, tolerance=None, diagonal=True, damping=1.0)
    """
    flag("diagonal", diagonal)
    if tolerance is not None:
        tolerance = number("tolerance", "a number above 0, or None", tolerance)
        if tolerance <= 0:
            raise bad("tolerance", "a number above 0, or None", tolerance, "rounding alone is some eps")
    damping = number("damping", "a number in (0, 1]", damping)
    if not 0 < damping <= 1:
        raise bad("damping", "a number in (0, 1]", damping, "1 is Newton's method itself")
    return Newton(size("iterations", iterations), tolerance, diagonal, damping)


def states_by_newton(newton: Newton, cell: AnyCell, run: Run) -> tuple[State, NewtonInfo]:
    """The states of the whole sequence, all at once.

    s_t = F_t(s_{t−1}), t = 1..T   (Q1 to Q8)

    Args:
      newton: how.
      cell: the cell.
      run: its parameters, s_0, the initial carry, x_1..x_T and the marks.

    Returns:
      s_1..s_T, leaves [T, ..., H], and how it went.

    Raises:
      ValueError: `diagonal` for a carry with other shapes than h; a derivative of the iteration.
    """
    if newton.diagonal and {z.shape for z in jax.tree.leaves(run.carry)} != {run.carry.h.shape}:
        fix = "unit-wise blocks need a carry that is [..., H] throughout"
        raise bad("newton", "diagonal=False for this cell", "diagonal=True", fix)
    return _solve(newton, cell, run)


class _Iterate(NamedTuple):
    """After k iterations: the states s, f = F(s), and how far s has moved."""

    k: Array
    s: State
    f: State
    change: Array


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _solve(newton: Newton, cell: AnyCell, run: Run) -> tuple[State, NewtonInfo]:
    engine, carry = phases.engine_of(cell), run.carry
    eps = float(jnp.finfo(carry.h.dtype).eps)  # type: ignore[no-untyped-call]
    tolerance = newton.tolerance or min(_ROUNDING * eps, 1e-3)
    u = engine.project(cell, run.params, run.sequence.xs)
    every_step = jax.vmap(functools.partial(engine.step, cell, run.params))

    def next_of(states: State) -> State:
        s_prev = phases.previous(run, states)
        stepped: State = every_step(s_prev, u, engine.recur(cell, run.params, s_prev))
        return select(run.sequence.mask, stepped, s_prev)  # (Q1)

    def converged(at: _Iterate) -> Array:
        residual = _relative(carry, at.s, at.f)
        return (residual == 0) | ((residual < tolerance) & (at.change < tolerance**0.5))  # (Q7)

    def goes_on(at: _Iterate) -> Array:
        return (at.k < newton.iterations) & ~converged(at)

    def iterate(at: _Iterate) -> _Iterate:
        new = _updated(newton, cell, run, at.s, at.f)
        return _Iterate(at.k + 1, new, next_of(new), _relative(carry, new, at.s))

    with jax.named_scope("bptt/newton"):
        s = jax.tree.map(lambda s_0: jnp.broadcast_to(s_0, (len(run.sequence.xs), *s_0.shape)), carry)
        begin = _Iterate(jnp.int32(0), s, next_of(s), jnp.full((), jnp.inf, carry.h.dtype))
        end = jax.lax.while_loop(goes_on, iterate, begin)
        return end.s, NewtonInfo(end.k, _relative(carry, end.s, end.f), converged(end))


@_solve.defjvp
def _no_derivative(newton: Newton, cell: AnyCell, primals: ArrayTree, tangents: ArrayTree) -> Any:
    """The derivative of a loop of unknown length would be that of its last iterations, silently wrong."""
    came = "a derivative through Newton's iteration (jvp, hessian, grad of grad)"
    raise bad("gradient", "first derivatives in reverse mode", came, "take jb.parallel() without newton")


def _updated(newton: Newton, cell: AnyCell, run: Run, s: State, f: State) -> State:
    """s^{k+1} from s^k and f = F(s^k)."""
    form = UNITS if newton.diagonal else form_of(cell)
    slopes = phases.linearise(cell, run, phases.previous(run, s), f)
    slope = newton.damping * jacobians(cell, run.params, slopes, s, form)
    slope = jacobians_with_marks(slope, run.sequence.mask, run.sequence.reset)  # (Q2)
    r = form.pack(f) - form.pack(s)  # (Q1)
    _, z = jax.lax.associative_scan(_composed, (slope, r))  # (Q3)
    through = form.unpack(z - r, s)

    def update(s: Array, f: Array, through: Array) -> Array:
        new = f + through  # (Q5)
        return jnp.where(jnp.isfinite(new), new, jnp.where(jnp.isfinite(f), f, s))  # (Q6)

    return jax.tree.map(update, s, f, through)


def _composed(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    """The map of the earlier step and then that of the later one."""
    (m, b), (n, c) = first, second
    return small_matmul(n, m), small_matmul(n, b[..., None])[..., 0] + c  # (Q4)


def _relative(carry: State, s: State, other: State) -> Array:
    """The largest difference over steps and rows, relative to s; what is no number counts as infinite.

    Each step has a scale of its own: a global scale would let one huge iterate hide errors at earlier
    steps. A NaN must not reach the maximum: XLA:CPU leaves it out of one over three axes or more.
    """
    gap = jnp.abs(WHOLE.pack(other) - WHOLE.pack(s)).max(-1)
    sizes = [jnp.abs(WHOLE.pack(z)).max(-1) for z in (jax.tree.map(lambda s_0: s_0[None], carry), s)]
    scale = jax.lax.cummax(jnp.concatenate(sizes))[1:]  # (Q8)
    ratios = jnp.where(gap == 0, jnp.zeros_like(gap), gap / scale)
    return jnp.where(jnp.isfinite(ratios), ratios, jnp.inf).max()

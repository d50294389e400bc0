"""Newton's method solves the recurrence for the states of all steps at once (DEER, Lim et al. 2024).

The recurrence s_t = F_t(s_{t−1}), where F_t is the step with its marks, is a system of equations for
s_1..s_T. Linearised about an iterate s^k it becomes a linear recurrence, which a parallel scan (also called
parallel prefix) solves. For the change z_t = s_t^{k+1} − s_t^k it reads:

    residual   f_t = F_t(s_{t−1}^k),  r_t = f_t − s_t^k        all t at once; zero at the solution  (Q1)
    slope      A_t = κ dF_t/ds_{t−1}                           κ: the damping; 1 where the carry is
                                                               held, 0 where it begins anew         (Q2)
    solve      z_t = A_t z_{t−1} + r_t,  z_0 = 0                                                    (Q3)
               (N, c) after (M, b):  z → N (M z + b) + c       is (N M, N b + c)                    (Q4)
    update     s_t^{k+1} = f_t + (z_t − r_t)                   f_t itself where z_{t−1} = 0         (Q5)
               s_t^{k+1} = f_t, or else s_t^k                  where a number overflowed            (Q6)
    stop       |r_t|∞ below ε m_t and |s_t^{k+1} − s_t^k|∞ below √ε m_t at every t and in every row (Q7)
               m_t = max of |s_0|∞..|s_t|∞                     what earlier steps do not excuse     (Q8)

Whatever A is, after k iterations s_1..s_k equal the states of the loop (to the last bit, if both compute a
step in the same way): by (Q5) and (Q6) each iteration corrects the first wrong step and leaves the correct
steps before it alone. So T iterations always suffice; contracting dynamics need only a few, whatever T is.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import flag, number, positive, size
from jax_bptt.base.errors import bad
from jax_bptt.base.made import Call, made
from jax_bptt.base.trees import common_dtype, select
from jax_bptt.base.types import State
from jax_bptt.cell.body import Body
from jax_bptt.engine import chunks, phases
from jax_bptt.engine.devices import to_local
from jax_bptt.engine.engine import Runnable
from jax_bptt.engine.run import Run
from jax_bptt.gradients.jacobians import UNITS, WHOLE, form_of, jacobians, jacobians_with_marks, small_matmul
from jax_bptt.gradients.method import differentiated_once

_ROUNDING = 16  # the residual of converged states stays below this multiple of eps


@made()
class Newton(NamedTuple):
    """These are the settings of Newton's method; `newton` makes them.

    Attributes:
      iterations: the largest number of iterations.
      tolerance: ε, the bound on the residual; None for 16 eps of the dtype, but at most 1e-3.
      diagonal: whether each unit's own block replaces the whole Jacobian.
      damping: κ, the factor of the Jacobian.
      made_by: the call that made it, by which it is printed, copied and pickled.
    """

    iterations: int
    tolerance: float | None
    diagonal: bool
    damping: float
    made_by: Call | None = None


class NewtonInfo(NamedTuple):
    """This reports whether the iteration converged, and how fast.

    Attributes:
      iterations: the number of iterations made, int32.
      residual: max_t |s_t − step(s_{t−1})|∞ / m_t over all rows, of the states returned; m_t is the largest
        absolute number in s_0..s_t.
      converged: bool, True if the residual is below the tolerance ε and the last change below √ε, or if the
        residual is zero.
    """

    iterations: Array
    residual: Array
    converged: Array


def _tolerance(argument: str, value: object) -> float | None:
    if value is None:
        return None
    return positive(argument, "a number above 0, or None", value, "pass None for the default")


def _damping(argument: str, value: object) -> float:
    found = number(argument, "a number in (0, 1]", value)
    if not 0 < found <= 1:
        raise bad(argument, "a number in (0, 1]", value, "pass 1.0 for no damping")
    return found


@cached(iterations=size, tolerance=_tolerance, diagonal=flag, damping=_damping)
def newton(
    iterations: int = 100, tolerance: float | None = None, diagonal: bool = False, damping: float = 1.0
) -> Newton:
    """This makes the settings of Newton's method, for `parallel` and `unroll_by_newton`.

    s_t^{k+1} = step(s_{t−1}^k) + κ J_t (s_{t−1}^{k+1} − s_{t−1}^k)   for all t by a parallel prefix

    The method finds the states of all steps at once. With S numbers in one row's carry an iteration has
    O(log T) depth, O(T·B·S³) work and O(T·B·S²) memory; work and memory are O(T·B·H) for a cell without
    recurrent weights between units, and for every pointwise cell with `diagonal`. The cost depends on the
    number of iterations: a few where the dynamics contract (the largest Lyapunov exponent is negative), up
    to T where they are chaotic, and then a loop is better. So the method suits long T, small H and
    contracting dynamics, on a GPU. On a CPU the loop was faster; see `parallel`.

    Args:
      iterations: the largest number of iterations, at least 1.
      tolerance: ε, the bound on the residual max_t |s_t − step(s_{t−1})|∞ / m_t, where m_t is the largest
        absolute number in s_0..s_t; the last change must be below √ε. None stands for 16 eps of the dtype,
        but at most 1e-3. In 16 bits the iteration seldom converges, and `parallel` then uses the loop.
      diagonal: whether only each unit's own block of J_t is used (quasi-DEER). An iteration then takes less
        work and memory, but more iterations are needed. All fields of the carry must be [..., H].
      damping: κ in (0, 1], the factor of J_t. A value below 1 can save iterations where the product of the
        J_t explodes, and costs iterations elsewhere. See experiments/MEASURED.md, "Damping of Newton's
        method".

    Returns:
      The `Newton`; the same object for the same arguments.

    Raises:
      ValueError: iterations is below 1, tolerance is not above 0, damping is outside (0, 1], or diagonal
        is not a bool.

    Reference: Lim et al. 2024, Parallelizing non-linear sequential models over the sequence length;
    Gonzalez et al. 2024, Towards scalable and stable parallelization of nonlinear RNNs; Gonzalez et al.
    2025, Predictability enables parallelization of nonlinear state space models.

    >>> newton(diagonal=True)
    newton(diagonal=True)
    """
    return Newton(iterations, tolerance, diagonal, damping)


def states_by_newton(newton: Newton, cell: Runnable, run: Run) -> tuple[State, NewtonInfo]:
    """The states of the whole sequence are found at once by Newton's method.

    s_t = F_t(s_{t−1}), t = 1..T   (Q1 to Q8)

    Args:
      newton: the settings of the method.
      cell: the cell.
      run: its parameters, s_0, the initial carry for resets, x_1..x_T and the marks.

    Returns:
      s_1..s_T, leaves [T, ..., H], and the `NewtonInfo`.

    Raises:
      ValueError: `diagonal` with a carry that has other shapes than h; a carry that holds anything but real
        numbers; or the iteration is differentiated.
    """
    if not all(jnp.issubdtype(z.dtype, jnp.floating) for z in jax.tree.leaves(run.carry)):
        fix = "use jb.parallel() without newton, or jb.full()"
        raise bad("newton", "a carry of real numbers", run.carry, fix)
    if newton.diagonal and isinstance(cell, Body):
        fix = "pass diagonal=False: only the units of a cell have blocks of their own"
        raise bad("newton", "diagonal=False for the body of a scan", "diagonal=True", fix)
    if newton.diagonal and {z.shape for z in jax.tree.leaves(run.carry)} != {run.carry.h.shape}:
        fix = "pass diagonal=False, or a cell whose carry has only fields of shape [..., H]"
        raise bad("newton", "diagonal=False for this cell", "diagonal=True", fix)
    # the derivative of a loop of unknown length would silently be wrong
    came = "a derivative through Newton's iteration (jvp, hessian, grad of grad)"
    solve = functools.partial(_solve, newton, cell)
    return differentiated_once(came, "use jb.parallel() without newton", solve)(run)


class _Iterate(NamedTuple):
    """After k iterations these are the states s, f = F(s), and the relative change of s in the last one."""

    k: Array
    s: State
    f: State
    change: Array


def _solve(newton: Newton, cell: Runnable, run: Run) -> tuple[State, NewtonInfo]:
    engine, carry = phases.engine_of(cell), run.carry
    dtype, axes = common_dtype(carry), 1 + len(run.sequence.rows)
    eps = float(jnp.finfo(dtype).eps)  # type: ignore[no-untyped-call]
    tolerance = newton.tolerance or min(_ROUNDING * eps, 1e-3)
    u = engine.project(cell, run.params, run.sequence.xs)
    every_step = engine.at_once(cell, functools.partial(engine.step, cell, run.params))

    def next_of(states: State) -> State:
        s_prev = phases.previous(run, states)
        stepped: State = every_step(s_prev, u, engine.recur(cell, run.params, s_prev)).state
        return select(run.sequence.mask, stepped, s_prev)  # (Q1)

    def converged(at: _Iterate) -> Array:
        residual = _relative(axes, carry, at.s, at.f)
        return (residual == 0) | ((residual < tolerance) & (at.change < tolerance**0.5))  # (Q7)

    def goes_on(at: _Iterate) -> Array:
        return (at.k < newton.iterations) & ~converged(at)

    def iterate(at: _Iterate) -> _Iterate:
        new = _updated(newton, cell, run, at.s, at.f)
        return _Iterate(at.k + 1, new, next_of(new), _relative(axes, carry, new, at.s))

    with jax.named_scope("bptt/newton"):
        steps = chunks.fixed(run.sequence.steps)
        s = jax.tree.map(lambda s_0: jnp.broadcast_to(s_0, (steps, *s_0.shape)), carry)
        begin = _Iterate(jnp.int32(0), s, next_of(s), jnp.full((), jnp.inf, dtype))
        # each device has rows and iterations of its own, so everything that begins the loop must vary
        end = jax.lax.while_loop(goes_on, iterate, to_local(begin, run))
        return end.s, NewtonInfo(end.k, _relative(axes, carry, end.s, end.f), converged(end))


def _updated(newton: Newton, cell: Runnable, run: Run, s: State, f: State) -> State:
    """One iteration makes s^{k+1} from s^k and f = F(s^k)."""
    form, axes = UNITS if newton.diagonal else form_of(cell), 1 + len(run.sequence.rows)
    slopes = phases.linearise(cell, run, phases.previous(run, s), f)
    slope = newton.damping * jacobians(cell, run.params, slopes, s, form)
    slope = jacobians_with_marks(slope, form, s, axes, run.sequence.mask, run.sequence.reset)  # (Q2)
    r = form.pack(f, axes) - form.pack(s, axes)  # (Q1)
    _, z = jax.lax.associative_scan(_composed, (slope, r))  # (Q3)
    through = form.unpack(z - r, s)

    def update(s: Array, f: Array, through: Array) -> Array:
        new = f + through  # (Q5)
        return jnp.where(jnp.isfinite(new), new, jnp.where(jnp.isfinite(f), f, s))  # (Q6)

    return jax.tree.map(update, s, f, through)


def _composed(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    """Two affine maps become one: the map of the earlier step, followed by that of the later step."""
    (m, b), (n, c) = first, second
    return small_matmul(n, m), small_matmul(n, b[..., None])[..., 0] + c  # (Q4)


def _relative(axes: int, carry: State, s: State, other: State) -> Array:
    """This is the largest difference over steps and rows, relative to s; a NaN counts as infinite.

    Each step has its own scale, because with a global scale one huge iterate would hide errors at earlier
    steps. A NaN must not reach the maximum, because XLA:CPU ignores it in a maximum over three or more axes.
    """
    gap = jnp.abs(WHOLE.pack(other, axes) - WHOLE.pack(s, axes)).max(-1)
    sizes = [jnp.abs(WHOLE.pack(z, axes)).max(-1) for z in (jax.tree.map(lambda s_0: s_0[None], carry), s)]
    scale = jax.lax.cummax(jnp.concatenate(sizes))[1:]  # (Q8)
    ratios = jnp.where(gap == 0, jnp.zeros_like(gap), gap / scale)
    return jnp.where(jnp.isfinite(ratios), ratios, jnp.inf).max(initial=0)

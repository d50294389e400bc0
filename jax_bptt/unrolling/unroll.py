"""`unroll` runs a cell over a whole sequence; the caller chooses the gradient method.

    s_t = step(s̃_{t−1}, x_t),   t = 1..T   (`sequence` says what s̃ is under masks, resets and cuts)

If a function calls `unroll`, its jax.grad runs the backward pass of `gradient` for that call; JAX
differentiates the rest of the function. The jax.custom_vjp that does this is here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.typing import DTypeLike

from jax_bptt.base.caching import cached
from jax_bptt.base.compiling import compiled
from jax_bptt.base.errors import bad, named
from jax_bptt.base.trees import differentiable, flipped
from jax_bptt.base.types import ArrayTree, Mark, P, S, State
from jax_bptt.cell.body import Body
from jax_bptt.cell.cell import Cell
from jax_bptt.cell.step_cell import AnyCell, StepCell
from jax_bptt.engine import phases
from jax_bptt.engine.devices import ALL, ROWS, STEPS, on_devices, rows_of, to_local, typed_as
from jax_bptt.engine.emission import STATES
from jax_bptt.engine.engine import Runnable
from jax_bptt.engine.run import Kept, Outputs, Run
from jax_bptt.engine.sequence import Sequence, without_padding
from jax_bptt.gradients.full import full
from jax_bptt.gradients.method import GradientMethod
from jax_bptt.unrolling.arguments import check_unroll, with_dtype


@named()
@compiled("cell", "gradient", "reverse", "dtype")
def unroll(
    cell: Cell[P, S] | StepCell[P, S],
    params: P,
    carry: S | None,
    xs: Array,
    *,
    gradient: GradientMethod = full(),
    mask: Mark = None,
    reset: Mark = None,
    cut: Mark = None,
    starts: S | None = None,
    reverse: bool = False,
    dtype: DTypeLike | None = None,
) -> tuple[S, Array]:
    """`unroll` runs a cell over a sequence; it is differentiable by params, carry, xs and starts.

    s_t = step(s_{t−1}, x_t)

    Args:
      cell: the cell, such as from `elman`, `lstm`, `make_cell` or `step_cell`.
      params: from `cell.init`, all of one floating dtype.
      carry: s_0, from cell.initial_carry or an earlier call, leaves [..., H], dtype of params; None for
        the initial carry of these params, through which the gradient then reaches params.
      xs: [T, ..., I] with T >= 1, time first, with any number of batch axes or none; dtype of params. A
        batch may have no rows: the outputs are then empty, and its gradient is zero.
      gradient: the gradient method that jax.grad uses: `full` (derived by hand), `checkpointed`,
        `truncated`, `artbp`, `rtrl`, `parallel` or `autodiff` (JAX's own).
      mask: bool [T, ...]; where False the carry is held, h_t = h_{t−1}, and x_t is not read: padding,
        even a NaN, never affects an output or a gradient. See `mask_of_lengths`.
      reset: bool [T, ...]; where True the step starts from the initial carry of params, or from starts.
      cut: bool [T, ...]; where True the step treats s_{t−1} as a constant (stop_gradient).
      starts: like carry, but leaves [T, ..., H]: where reset is True step t starts from starts_t, such as a
        stored state or one that was observed (teacher forcing). None for the initial carry of params.
      reverse: whether to go from the last step to the first, as jax.lax.scan does; marks and outputs stay
        at their steps.
      dtype: jnp.bfloat16 for mixed precision: the operands of every matrix product, forward and backward,
        are rounded to it; sums, states, biases, gradients and all else stay in the dtype of params.
        (`autodiff` and `rtrl` differentiate the rounding as JAX does, step by step, and the backward pass
        of `parallel` uses W_h without rounding.) It is not for cells of your own whose step does its
        products itself, those of `step_cell`.

    Returns:
      (carry, hs) as jax.lax.scan: the last state, leaves [..., H], and h_1..h_T, [T, ..., H].

    Raises:
      ValueError: at trace time, if an argument is wrong; it says which one, what was expected and what was
        passed.

    Reference: Werbos 1990, Backpropagation through time: what it does and how to do it.

    >>> from jax_bptt import lstm, mask_of_lengths
    >>> cell = lstm(3, 5)
    >>> params = cell.init(jax.random.key(0))
    >>> mask = mask_of_lengths(jnp.array([7, 4]), 7)
    >>> carry, hs = unroll(cell, params, None, jnp.ones((7, 2, 3)), mask=mask)
    >>> carry.h.shape, hs.shape
    ((2, 5), (7, 2, 5))
    """
    sequence = Sequence(xs, mask, reset, cut, starts=starts)
    params, carry, sequence = check_unroll(cell, params, carry, sequence, gradient, reverse)
    return _run(with_dtype(dtype, cell, params), params, carry, sequence, gradient, reverse)


@named()
@compiled("cell", "gradient", "reverse", "dtype")
def unroll_states(
    cell: Cell[P, S] | StepCell[P, S],
    params: P,
    carry: S | None,
    xs: Array,
    *,
    gradient: GradientMethod = full(),
    mask: Mark = None,
    reset: Mark = None,
    cut: Mark = None,
    starts: S | None = None,
    reverse: bool = False,
    dtype: DTypeLike | None = None,
) -> tuple[S, S]:
    """`unroll_states` is `unroll` that returns the whole state of every step, such as h and c of an LSTM.

    s_t = step(s_{t−1}, x_t)

    A loss may read every leaf of every state, and its gradient goes back through all of them. Take it to
    store states to which a later sequence is reset, or to penalise activity inside a cell.

    Args:
      cell, params, carry, xs, gradient, mask, reset, cut, starts, reverse, dtype: as for `unroll`.

    Returns:
      (carry, states): the last state, leaves [..., H], and s_1..s_T, leaves [T, ..., H].

    Raises:
      ValueError: as for `unroll`.

    >>> from jax_bptt import lstm
    >>> cell = lstm(3, 5)
    >>> params = cell.init(jax.random.key(0))
    >>> carry, states = unroll_states(cell, params, None, jnp.ones((7, 2, 3)))
    >>> states.h.shape, states.c.shape
    ((7, 2, 5), (7, 2, 5))
    """
    sequence = Sequence(xs, mask, reset, cut, starts=starts)
    params, carry, sequence = check_unroll(cell, params, carry, sequence, gradient, reverse)
    cell = with_dtype(dtype, cell, params)._replace(emission=STATES)
    return _run(cell, params, carry, sequence, gradient, reverse)


def _run(
    cell: AnyCell, params: P, carry: S | None, sequence: Sequence, gradient: GradientMethod, reverse: bool
) -> tuple[S, Any]:
    run = functools.partial(run_checked, cell, gradient=gradient, reverse=reverse)
    rows = rows_of(sequence.xs, params, carry)
    last, ys = on_devices(run, rows, (ALL, ROWS, STEPS), (ROWS, STEPS))(params, carry, sequence)
    return last, ys


def run_checked(
    cell: AnyCell,
    params: ArrayTree,
    carry: State | None,
    sequence: Sequence,
    gradient: GradientMethod,
    reverse: bool = False,
) -> tuple[State, Any]:
    """This is `unroll` for arguments that have been checked, on one device or inside a jax.shard_map."""
    run = begin(cell, params, carry, flipped(sequence) if reverse else sequence)
    last, ys = _of_cell(gradient.on_engine(cell), gradient)(run)
    return last, flipped(ys) if reverse else ys


def begin(cell: AnyCell, params: ArrayTree, carry: State | None, sequence: Sequence) -> Run:
    """The run of a cell gets what is missing: valid x for padding, s_0, and where resets go back to.

    In a jax.shard_map every device has its own copy of the parameters.
    """
    sequence, rows = without_padding(sequence), sequence.rows
    s_0: State = cell.initial_carry(params, rows) if carry is None else carry
    to_initial = sequence.reset is not None and sequence.starts is None
    start: State | None = cell.initial_carry(params, rows) if to_initial else None
    run = Run(params, s_0, start, sequence)
    return to_local(run, run)


def run_with_gradient(cell: Runnable, gradient: GradientMethod) -> Callable[[Run], Outputs]:
    """The result runs a cell, or the body of a scan, and has the backward pass of a gradient method."""
    backward = gradient.backward

    def check(run: Run) -> None:
        if gradient.check is not None:
            gradient.check(cell, run)

    @functools.partial(jax.jit, inline=True)
    def forward(run: Run) -> tuple[Outputs, Kept]:
        if backward is not None and isinstance(cell, Body) and cell.calls_host:
            fix = "use gradient=jb.autodiff(), which runs each step once"
            came = "a callback whose result the body uses, or a jax.new_ref"
            raise bad("f", "a body that the backward pass may run again", came, fix)
        check(run)
        return gradient.forward(cell, run)

    @functools.partial(jax.jit, inline=True)
    def plain(run: Run) -> Outputs:
        # nothing is kept where nobody differentiates
        if isinstance(cell, Body) and backward is not None and gradient.is_loop:
            check(run)
            return phases.outputs(cell, phases.forward(cell, run))
        outputs, _ = forward(run)
        return outputs

    if backward is None:  # JAX differentiates: without a custom_vjp, forward mode (jvp) works too
        return plain
    unrolled = jax.custom_vjp(plain)

    # compiled, since jax.grad outside jax.jit runs both rules as they stand, operation by operation
    @functools.partial(jax.jit, inline=True)
    def back(kept: Kept, d: Outputs) -> tuple[Run]:
        found = backward(cell, kept, d)
        # masks, resets and cuts are bools, which have no derivative: None stands for their cotangents
        by = Run(found.params, found.carry, found.start, Sequence(found.xs, starts=found.starts))
        sequence = Sequence(kept.run.sequence.xs, starts=kept.run.sequence.starts)
        return (typed_as(by, differentiable(kept.run._replace(sequence=sequence))),)

    unrolled.defvjp(forward, lambda kept, d: back(kept, differentiable(d)))
    return unrolled


_of_cell = cached()(run_with_gradient)

"""Roads to a gradient, and the program of each gradient method that they all must be the gradient of.

A road is a function of the params that gives a tree: the gradient, or what two training steps make of it. It
is taken as it is, and differentiated again, forward over reverse and reverse over reverse; the loss and the
carry that come with a gradient are differentiated, too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jax_bptt as jb
from support.network_by_loop import Program, by_loop

RATE, LARGEST = 0.3, 0.4  # of artbp; of clipped


@jax.custom_jvp
def _with_factor(s):
    """The carry itself, and 1 / (1 − c) times its derivative."""
    return s


@_with_factor.defjvp
def _with_factor_jvp(primals, tangents):
    # by the factor again, for a derivative of this one
    return _with_factor(primals[0]), jax.tree.map(lambda z: z / (1 - RATE), tangents[0])


@jax.custom_vjp
def _clipped(s):
    """The carry itself; what comes back is clipped, row by row."""
    return s


def _clip(_, d):
    squared = sum(jnp.square(z).sum(-1) for z in d.values())
    above = squared > LARGEST**2
    scale = jnp.where(above, LARGEST / jnp.sqrt(jnp.where(above, squared, 1.0)), 1.0)
    return ({n: z * scale[..., None] for n, z in d.items()},)


_clipped.defvjp(lambda s: (s, None), _clip)

PLAIN = Program()
PROGRAMS: dict[str, tuple[Any, Program]] = {
    "full": (jb.full(), PLAIN),
    "full in chunks": (jb.full(chunk=2), PLAIN),
    "full, half recomputed": (jb.full(chunk=3, recompute=0.5), PLAIN),
    "full, slopes kept": (jb.full(recompute=False), PLAIN),
    "checkpointed": (jb.checkpointed(), PLAIN),
    "checkpointed, few slots": (jb.checkpointed(slots=2, chunk=2), PLAIN),
    "truncated to 1": (jb.truncated(1), Program(window=1)),
    "truncated to 3": (jb.truncated(3), Program(window=3)),
    "artbp": (jb.artbp(RATE), Program(link=_with_factor)),
    "clipped": (jb.clipped(LARGEST), Program(link=_clipped)),
    "rtrl": (jb.rtrl(), PLAIN),
    "parallel": (jb.parallel(), PLAIN),
    "autodiff": (jb.autodiff(), PLAIN),
}
ONCE: dict[str, Any] = {  # these refuse a second derivative by name
    "sliding": jb.truncated(9, stride=2),  # as long as any sequence here, so that the gradient is exact
    "newton": jb.parallel(jb.newton()),
}


class Problem(NamedTuple):
    """A network with everything that its gradient needs; plains are its steps, one for each cell."""

    net: Any
    plains: tuple
    params: Any
    carry: Any
    xs: jax.Array
    targets: Any
    d_carry: Any  # weights of the last carry in the loss of a road
    marks: dict[str, Any]
    weight: jax.Array | None = None  # of the outputs in the loss


def squares(ys, targets, mask=None, weight=None):
    """The squared error as a loss of one's own."""
    each = jnp.square(ys - targets).sum(-1)
    each = each if weight is None else weight * each
    return (each if mask is None else jnp.where(mask, each, jnp.zeros_like(each))).sum()


def nats(ys, targets, mask=None, weight=None):
    """The mean softmax cross-entropy, written out."""
    each = jax.nn.logsumexp(ys, -1) - jnp.take_along_axis(ys, targets[..., None], -1)[..., 0]
    weight = jnp.ones_like(each) if weight is None else weight
    weight = weight if mask is None else jnp.where(mask, weight, jnp.zeros_like(weight))
    return (weight * each).sum() / weight.sum()


def _of_a_step(y, target):
    return jax.nn.logsumexp(y) - y[target] + jnp.square(jnp.square(y).sum())


OF_STEPS = jb.mean_over_steps(_of_a_step)


def of_steps(ys, targets, mask=None, weight=None):
    """The loss that is made of the error of one step, written out."""
    each = jnp.square(jnp.square(ys).sum(-1))
    weight = jnp.ones_like(each) if weight is None else weight
    weight = weight if mask is None else jnp.where(mask, weight, jnp.zeros_like(weight))
    return nats(ys, targets, mask, weight) + (weight * each).sum() / weight.sum()


def of_carry(problem, last):
    """A number that depends on every leaf of the last carry."""
    weights = jax.tree.map(jnp.vdot, problem.d_carry, jax.tree.map(jnp.sin, last))
    return sum(jax.tree.leaves(weights))


def counted(problem):
    """Which outputs count in the loss; None if all do."""
    mask = problem.marks.get("mask")
    return mask.any(0) if mask is not None and problem.net.readout.of_last else mask


def run_loop(problem, params, program):
    """The last carry and the outputs of the program, by the loop."""
    return by_loop(problem.net, problem.plains, params, problem.carry, problem.xs, problem.marks, program)


def looped(problem, loss, program, with_carry):
    """E of the program, by the loop, as a function of params."""

    def error(params):
        last, ys = run_loop(problem, params, program)
        e = loss(ys, problem.targets, counted(problem), problem.weight)
        return e + of_carry(problem, last) if with_carry else e

    return error


BY_CLASS = ("value_and_grad, softmax_cross_entropy", "value_and_grad, an error of one's own")
Road = Callable[[Problem, Any, Program], tuple[Any, Any]]  # (found, wanted), functions of the params


def applied(problem, method, program):
    """jax.grad around net.apply; the last carry counts, too."""

    def error(params):
        last, ys = problem.net.apply(params, problem.carry, problem.xs, gradient=method, **problem.marks)
        error = squares(ys, problem.targets, counted(problem), problem.weight)
        return error + of_carry(problem, last)

    return jax.grad(error), jax.grad(looped(problem, squares, program, True))


def first_of(problem, of_layers):
    """The part of the first cell, of the params or the carry of all layers; None stays None."""
    if of_layers is None:
        return None
    return of_layers[0].forward if problem.net.layers[0].backward is not None else of_layers[0]


def alone(problem):
    """The problem of the first cell alone, with outputs h_1..h_T; and its params, from those of the cell."""
    cell = problem.net.layers[0].forward
    net = jb.network([cell], jb.readout(cell.hidden_size, cell.hidden_size))
    eye = jnp.eye(cell.hidden_size, dtype=problem.xs.dtype)
    passed_through = jb.ReadoutParams(eye, jnp.zeros_like(eye[0]))
    carry = None if problem.carry is None else (first_of(problem, problem.carry),)
    d_carry = (first_of(problem, problem.d_carry),)
    marks = dict(problem.marks)
    if "starts" in marks:
        marks["starts"] = (first_of(problem, marks["starts"]),)
    of_cell = problem._replace(net=net, plains=problem.plains[:1], carry=carry, d_carry=d_carry, marks=marks)
    return of_cell, lambda params: jb.NetworkParams((params,), passed_through)


def unrolled(problem, method, program):
    """jax.grad around unroll, of the first cell."""
    of_cell, params_of = alone(problem)
    s_0, starts = (first_of(problem, z) for z in (problem.carry, problem.marks.get("starts")))
    marks = {**problem.marks, "starts": starts}

    def found(params):
        cell = of_cell.net.layers[0].forward
        last, hs = jb.unroll(cell, params, s_0, problem.xs, gradient=method, **marks)
        return jnp.sum(jnp.square(hs)) + of_carry(of_cell, (last,))

    def wanted(params):
        last, hs = run_loop(of_cell, params_of(params), program)
        return jnp.sum(jnp.square(hs)) + of_carry(of_cell, last)

    return tuple(lambda p, f=f: jax.grad(f)(first_of(problem, p.cells)) for f in (found, wanted))


def built_in(loss, same):
    """value_and_grad with a loss; `same` is that loss, written out."""

    def road(problem, method, program):
        run = jb.value_and_grad(problem.net, loss)

        def found(params):
            given = {"gradient": method, "weight": problem.weight, **problem.marks}
            return run(params, problem.carry, problem.xs, problem.targets, **given)

        return lambda params: found(params)[1], jax.grad(looped(problem, same, program, False))

    return road


def _of_values(program):
    """A clipped gradient is the derivative of no loss, so what comes with it is the plain loop's."""
    return PLAIN if program.link is _clipped else program


def returned(problem, method, program):
    """jax.grad of the loss and the carry that value_and_grad returns."""
    run = jb.value_and_grad(problem.net, jb.squared_error)

    def found(params):
        given = {"gradient": method, "weight": problem.weight, **problem.marks}
        (error, last), _ = run(params, problem.carry, problem.xs, problem.targets, **given)
        return error + of_carry(problem, last)

    return jax.grad(found), jax.grad(looped(problem, squares, _of_values(program), True))


def trained(problem, method, program):
    """These are the params after two training steps. The first step's last carry is a constant for the second
    step's gradient.
    """
    net, optimizer = problem.net, optax.sgd(0.05)
    step = jb.make_train_step(net, jb.squared_error, optimizer, gradient=method, donate=False)
    batch = jb.Batch(problem.xs, problem.targets, weight=problem.weight, **problem.marks)
    none = jnp.zeros((), jnp.int32)

    def found(params):
        carry = None if problem.carry is None else net.next_carry(problem.carry)
        state = jb.TrainState(none, params, optimizer.init(params), carry, none)
        for _ in range(2):
            state, _ = step(state, batch)
        return state.params

    def wanted(params):
        carry = problem.carry
        for _ in range(2):
            # a cell that reads backwards begins every batch at its initial carry, which is trained
            carry = None if carry is None else net.next_carry(carry)
            here = problem._replace(carry=carry)
            error = looped(here, squares, program, False)
            last = run_loop(here, params, _of_values(program))[0]
            params = jax.tree.map(lambda p, g: p - 0.05 * g, params, jax.grad(error)(params))
            carry = None if carry is None else last
        return params

    return found, wanted


def online(problem, method, program):
    """The sum of rtrl_gradient over the steps of a stream, from the initial carry."""
    of_cell, params_of = alone(problem._replace(carry=None))
    cell, rows = of_cell.net.layers[0].forward, problem.xs.shape[1:-1]

    def found(params):
        state, total = jb.rtrl_init(cell, params, rows), jax.tree.map(jnp.zeros_like, params)
        for t in range(len(problem.xs)):
            marks = {n: mark[t] for n, mark in problem.marks.items()}
            state, h = jb.rtrl_step(cell, params, state, problem.xs[t], **marks)
            total = jax.tree.map(jnp.add, total, jb.rtrl_gradient(params, state, 2 * h))
        return total

    def error(params):
        return jnp.sum(jnp.square(run_loop(of_cell, params_of(params), program)[1]))

    return tuple(lambda p, f=f: f(first_of(problem, p.cells)) for f in (found, jax.grad(error)))


ROADS: dict[str, Road] = {
    "unroll": unrolled,
    "net.apply": applied,
    "value_and_grad, squared_error": built_in(jb.squared_error, squares),
    "value_and_grad, softmax_cross_entropy": built_in(jb.softmax_cross_entropy, nats),
    "value_and_grad, a loss of one's own": built_in(squares, squares),
    "value_and_grad, an error of one's own": built_in(OF_STEPS, of_steps),
    "what value_and_grad returns beside": returned,
    "training steps": trained,
    "rtrl_step": online,
}


def orders(f, direction):
    """A road and its derivatives, as one function of the params."""

    def forward(params):
        return jax.jvp(f, (params,), (direction,))[1]

    def reverse(params):
        out, back = jax.vjp(f, params)
        return back(out)[0]

    return {"first": f, "forward over reverse": forward, "reverse over reverse": reverse}

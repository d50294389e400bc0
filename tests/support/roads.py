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
def _weighted(s):
    """The carry itself, and 1 / (1 − c) times its derivative."""
    return s


@_weighted.defjvp
def _weighted_jvp(primals, tangents):
    # weighted again, for a derivative of this one
    return _weighted(primals[0]), jax.tree.map(lambda z: z / (1 - RATE), tangents[0])


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
    "artbp": (jb.artbp(RATE), Program(link=_weighted)),
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


def squares(ys, targets, mask=None):
    """The squared error as a loss of one's own."""
    each = jnp.square(ys - targets).sum(-1)
    return (each if mask is None else jnp.where(mask, each, jnp.zeros_like(each))).sum()


def nats(ys, targets, mask=None):
    """The mean softmax cross-entropy, written out."""
    each = jax.nn.logsumexp(ys, -1) - jnp.take_along_axis(ys, targets[..., None], -1)[..., 0]
    mask = jnp.ones(each.shape, bool) if mask is None else mask
    return jnp.where(mask, each, jnp.zeros_like(each)).sum() / mask.sum().astype(ys.dtype)


def of_carry(problem, last):
    """A number that depends on every leaf of the last carry."""
    weights = jax.tree.map(jnp.vdot, problem.d_carry, jax.tree.map(jnp.sin, last))
    return sum(jax.tree.leaves(weights))


def looped(problem, loss, program, with_carry):
    """E of the program, by the loop, as a function of params."""
    counts = problem.marks.get("mask")
    if counts is not None and problem.net.readout.of_last:
        counts = counts.any(0)

    def error(params):
        last, ys = by_loop(
            problem.net, problem.plains, params, problem.carry, problem.xs, problem.marks, program
        )
        e = loss(ys, problem.targets, counts)
        return e + of_carry(problem, last) if with_carry else e

    return error


Road = Callable[[Problem, Any, Program], tuple[Any, Any]]  # (found, wanted), functions of the params


def applied(problem, method, program):
    """jax.grad around net.apply; the last carry counts, too."""
    counts = problem.marks.get("mask")
    if counts is not None and problem.net.readout.of_last:
        counts = counts.any(0)

    def error(params):
        last, ys = problem.net.apply(params, problem.carry, problem.xs, gradient=method, **problem.marks)
        return squares(ys, problem.targets, counts) + of_carry(problem, last)

    return jax.grad(error), jax.grad(looped(problem, squares, program, True))


def _as_it_is(cell, problem):
    """A readout that passes h through."""
    eye = jnp.eye(cell.hidden_size, dtype=problem.xs.dtype)
    return jb.ReadoutParams(eye, jnp.zeros_like(eye[0]))


def unrolled(problem, method, program):
    """jax.grad around unroll, of the first cell."""
    cell = problem.net.layers[0].forward
    net = jb.network([cell], jb.readout(cell.hidden_size, cell.hidden_size))

    def parts(of_layers):
        first = of_layers[0]
        return (first.forward,) if problem.net.layers[0].backward is not None else (first,)

    carry = None if problem.carry is None else parts(problem.carry)
    alone = problem._replace(net=net, plains=problem.plains[:1], carry=carry, d_carry=parts(problem.d_carry))
    readout = _as_it_is(cell, problem)

    def hs_and_carry(params):
        s = None if carry is None else carry[0]
        last, hs = jb.unroll(cell, params, s, problem.xs, gradient=method, **problem.marks)
        return jnp.sum(jnp.square(hs)) + of_carry(alone, (last,))

    def wanted(params):
        both = jb.NetworkParams((params,), readout)
        last, hs = by_loop(net, alone.plains, both, carry, problem.xs, problem.marks, program)
        return jnp.sum(jnp.square(hs)) + of_carry(alone, last)

    def of_first(f):
        def run(params):
            return jax.grad(f)(parts(params.cells)[0])

        return run

    return of_first(hs_and_carry), of_first(wanted)


def built_in(loss, same):
    """value_and_grad with a loss; `same` is that loss, written out."""

    def road(problem, method, program):
        run = jb.value_and_grad(problem.net, loss)

        def found(params):
            return run(params, problem.carry, problem.xs, problem.targets, gradient=method, **problem.marks)

        return lambda params: found(params)[1], jax.grad(looped(problem, same, program, False))

    return road


def _of_values(program):
    """A clipped gradient is the derivative of no loss, so what comes with it is the plain loop's."""
    return PLAIN if program.link is _clipped else program


def returned(problem, method, program):
    """jax.grad of the loss and the carry that value_and_grad returns."""
    run = jb.value_and_grad(problem.net, jb.squared_error)

    def found(params):
        (error, last), _ = run(
            params, problem.carry, problem.xs, problem.targets, gradient=method, **problem.marks
        )
        return error + of_carry(problem, last)

    return jax.grad(found), jax.grad(looped(problem, squares, _of_values(program), True))


def trained(problem, method, program):
    """The params after two training steps, the carry going on as a number."""
    net, optimizer = problem.net, optax.sgd(0.05)
    step = jb.make_train_step(net, jb.squared_error, optimizer, gradient=method, donate=False)
    batch = jb.Batch(problem.xs, problem.targets, **problem.marks)
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
            error = looped(problem._replace(carry=carry), squares, program, False)
            last = by_loop(
                net, problem.plains, params, carry, problem.xs, problem.marks, _of_values(program)
            )[0]
            params = jax.tree.map(lambda p, g: p - 0.05 * g, params, jax.grad(error)(params))
            carry = None if carry is None else last
        return params

    return found, wanted


def online(problem, method, program):
    """The sum of rtrl_gradient over the steps of a stream, from the initial carry."""
    cell = problem.net.layers[0].forward
    rows = problem.xs.shape[1:-1]

    def found(params):
        state, total = jb.rtrl_init(cell, params, rows), jax.tree.map(jnp.zeros_like, params)
        for t in range(len(problem.xs)):
            marks = {n: mark[t] for n, mark in problem.marks.items()}
            state, h = jb.rtrl_step(cell, params, state, problem.xs[t], **marks)
            total = jax.tree.map(jnp.add, total, jb.rtrl_gradient(params, state, 2 * h))
        return total

    net = jb.network([cell], jb.readout(cell.hidden_size, cell.hidden_size))
    readout = _as_it_is(cell, problem)

    def wanted(params):
        both = jb.NetworkParams((params,), readout)
        return jnp.sum(
            jnp.square(by_loop(net, problem.plains[:1], both, None, problem.xs, problem.marks, program)[1])
        )

    def of_first(f):
        def run(params):
            first = params.cells[0]
            return f(first.forward if problem.net.layers[0].backward is not None else first)

        return run

    return of_first(found), of_first(jax.grad(wanted))


ROADS: dict[str, Road] = {
    "unroll": unrolled,
    "net.apply": applied,
    "value_and_grad, squared_error": built_in(jb.squared_error, squares),
    "value_and_grad, softmax_cross_entropy": built_in(jb.softmax_cross_entropy, nats),
    "value_and_grad, a loss of one's own": built_in(squares, squares),
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

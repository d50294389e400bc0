"""Second derivatives: of every gradient method, by every road, under marks, they are those of its program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support.witnesses as w
from cases import CELLS, METHODS, H, I, make
from support.roads import BY_CLASS, ONCE, PLAIN, PROGRAMS, ROADS, Problem, orders

import jax_bptt as jb

LIMIT = 1e-11

EVERY = ("full, half recomputed", "checkpointed, few slots", "truncated to 3", "artbp", "clipped", "rtrl")
EVERY = (*EVERY, "parallel", "autodiff")
BY_CHUNKS = ("full", "checkpointed, few slots", "truncated to 3")

# Road: the methods that have code of their own there. `python tests/search.py` tries all of them.
TABLE = {
    "unroll": EVERY,
    "net.apply": ("full", "truncated to 3"),
    "value_and_grad, squared_error": (*BY_CHUNKS, "artbp", "rtrl"),
    "value_and_grad, softmax_cross_entropy": ("checkpointed, few slots",),
    "value_and_grad, a loss of one's own": ("full", "truncated to 3"),
    "value_and_grad, an error of one's own": ("truncated to 3",),
    "what value_and_grad returns beside": ("full", "truncated to 3"),
    "training steps": ("full", "checkpointed, few slots"),
    "rtrl_step": ("rtrl",),
}


# Reverse over reverse is the transpose of forward over reverse, so on the other roads it is enough.
BOTH_ORDERS = ("unroll",)


def _problem(road):
    """Two layers, the second with a residual, of which one reads both ways where the loss needs all steps."""
    both = jb.elman(I, H) if road == "value_and_grad, a loss of one's own" else None
    first = jb.layer(jb.learn_carry(jb.elman(I, H)), backward=both)
    second = jb.layer(jb.indrnn(first.output_size, H, activation="tanh"), residual=both is None)
    net = jb.network([first] if road in ("unroll", "rtrl_step") else [first, second], jb.readout(H, 2))
    rng, steps, rows = np.random.default_rng(7), 5, (2,)

    def normal(shape):
        return jnp.asarray(rng.normal(size=shape))

    params = jax.tree.map(lambda z: z + 0.3 * normal(z.shape), net.init(jax.random.key(0)))
    zeros = net.initial_carry(params, rows)
    pattern = np.arange(steps * 2).reshape(steps, 2)
    marks = {"mask": pattern % 5 != 3, "reset": pattern % 7 == 6, "cut": pattern % 4 == 2}
    targets = jnp.asarray(pattern % 2) if road in BY_CLASS else normal((steps, *rows, 2))
    carry = None if road == "training steps" else jax.tree.map(lambda z: normal(z.shape), zeros)
    plains = CELLS["elman-tanh"].plain, CELLS["indrnn"].plain
    d_carry = jax.tree.map(lambda z: normal(z.shape), zeros)
    problem = Problem(net, plains, params, carry, normal((steps, *rows, I)), targets, d_carry, marks)
    if road.startswith("value_and_grad"):
        problem = problem._replace(weight=jnp.asarray(pattern % 3 * 0.7))
    return problem, jax.tree.map(lambda z: normal(z.shape), params)


@pytest.mark.parametrize("road", ROADS)
def test_every_method_by_every_road(road):
    problem, direction = _problem(road)

    def derivatives(f):
        functions = orders(f, direction)
        if road not in BOTH_ORDERS:
            del functions["forward over reverse"]
        return jax.jit(lambda p: {name: f(p) for name, f in functions.items()})(problem.params)

    wanted = {}
    for name in TABLE[road]:
        method, program = PROGRAMS[name]
        ours, theirs = ROADS[road](problem, method, program)
        if program not in wanted:
            wanted[program] = derivatives(theirs)
        found = derivatives(ours)
        for order in found:
            assert not w.wrong(found[order], wanted[program][order], LIMIT), (name, order)
            if program is not PLAIN and PLAIN in wanted:  # a negative control: programs differ
                assert w.wrong(found[order], wanted[PLAIN][order], 1e-2), (name, order)


@pytest.mark.parametrize("name", ONCE)
def test_what_has_no_second_derivative_says_so(name):
    """By the gradient, and by what comes with it, in both modes; and it names the way out."""
    for road in ("unroll", "value_and_grad, squared_error", "what value_and_grad returns beside"):
        problem, direction = _problem(road)
        found, _ = ROADS[road](problem, ONCE[name], PLAIN)
        for order, f in orders(found, direction).items():
            if order == "first" and road != "what value_and_grad returns beside":
                continue
            with pytest.raises(ValueError, match=r"gradient: expected first derivatives in reverse.*; use "):
                jax.eval_shape(f, problem.params)


def test_second_derivatives_of_every_leaf():
    """The whole Hessian, forward over reverse; forward mode of the unroll itself with autodiff."""
    case = make("elman-tanh", 3, ())

    def loss(w_h, method):
        params = case.params._replace(w_h=w_h)
        return jnp.sum(jb.unroll(case.row.cell, params, case.carry, case.xs, gradient=method)[1] ** 2)

    found, wanted = (jax.hessian(loss)(case.params.w_h, m) for m in METHODS.values())
    assert not w.wrong({"w_h": found}, {"w_h": wanted}, 1e-12)
    forward = jax.jacfwd(loss)(case.params.w_h, jb.autodiff())
    assert not w.wrong({"w_h": jax.grad(loss)(case.params.w_h, jb.full())}, {"w_h": forward}, 1e-12)


def test_second_derivatives_where_a_reset_and_a_cut_meet():
    """The cut ends the carry that came in; the reset begins at the initial carry, which is trained."""
    cell = jb.learn_carry(jb.elman(2, 3))
    params = jax.tree.map(lambda p: p + 0.3, cell.init(jax.random.key(0)))
    xs, meet = jax.random.normal(jax.random.key(1), (4, 2)), jnp.arange(4) == 2

    def loss(h_0, method):
        run = functools.partial(jb.unroll, cell, params._replace(h_0=h_0), None, xs, gradient=method)
        return jnp.sum(run(reset=meet, cut=meet)[1] ** 3)

    found, wanted = (jax.hessian(loss)(params.h_0, method) for method in METHODS.values())
    assert not w.wrong({"h_0": found}, {"h_0": wanted}, 1e-12)

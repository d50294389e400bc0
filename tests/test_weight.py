"""A weight says how much an output counts in the loss; a step of weight 0 is read, but it is not scored."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import support.witnesses as w
from cases import CELLS, H, I
from support.roads import OF_STEPS, PLAIN, PROGRAMS, Problem, looped, nats, of_steps, run_loop, squares

import jax_bptt as jb
from jax_bptt.networks import losses, step_errors
from jax_bptt.networks.judged import Judged

T, B, O = 7, 3, 2  # noqa: E741
PATTERN = np.arange(T * B).reshape(T, B)
WRITTEN_OUT = {
    jb.squared_error: squares,
    jb.softmax_cross_entropy: nats,
    squares: squares,
    OF_STEPS: of_steps,
}
BY_CLASS = (jb.softmax_cross_entropy, OF_STEPS)


def _problem(loss, both=False, last=False):
    """Two layers under marks. The weights are of both signs, and one in three is 0."""
    cell = jb.learn_carry(jb.elman(I, H))
    first = jb.layer(cell, backward=cell if both else None)
    readout = jb.readout(H, O)
    layers = [first, jb.indrnn(first.output_size, H, activation="tanh")]
    net = jb.network(layers, jb.last(readout) if last else readout)
    rng = np.random.default_rng(3)

    def normal(shape):
        return jnp.asarray(rng.normal(size=shape))

    params = jax.tree.map(lambda z: z + 0.3 * normal(z.shape), net.init(jax.random.key(0)))
    scored = PATTERN[0] if last else PATTERN
    targets = jnp.asarray(scored % O) if loss in BY_CLASS else normal((*scored.shape, O))
    weight = jnp.where(scored % 3 == 1, 0.0, normal(scored.shape) + 0.5)
    marks = {"mask": PATTERN % 5 != 3, "reset": PATTERN % 7 == 6, "cut": PATTERN % 11 == 5}
    plains = CELLS["elman-tanh"].plain, CELLS["indrnn"].plain
    return Problem(net, plains, params, None, normal((T, B, I)), targets, None, marks, weight)


def _run(problem, loss, method, weight, **more):
    run = jb.value_and_grad(problem.net, loss)
    given = {"gradient": method, "weight": weight, **problem.marks, **more}
    return run(problem.params, None, problem.xs, problem.targets, **given)


def _everything(problem, loss, method):
    """E, the last carry, dE/dparams and dE/dweight."""

    def error(weight):
        return _run(problem, loss, method, weight)[0][0]

    return _run(problem, loss, method, problem.weight), jax.grad(error)(problem.weight)


def _everything_by_loop(problem, loss, program):
    error = looped(problem, WRITTEN_OUT[loss], program, False)

    def of_weight(weight):
        return looped(problem._replace(weight=weight), WRITTEN_OUT[loss], program, False)(problem.params)

    last = run_loop(problem, problem.params, program)[0]
    value, grads = jax.value_and_grad(error)(problem.params)
    return ((value, last), grads), jax.grad(of_weight)(problem.weight)


CASES = {
    "a sum": (jb.squared_error, {}, ("full in chunks", "checkpointed, few slots", "truncated to 3")),
    "a mean": (jb.softmax_cross_entropy, {}, ("truncated to 3",)),
    "an error of one's own": (OF_STEPS, {}, ("full in chunks", "truncated to 3")),
    "one's own": (squares, {"both": True}, ("full", "checkpointed, few slots")),
    "a mean of the last step": (jb.softmax_cross_entropy, {"last": True}, ("full", "truncated to 3")),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_those_of_a_loop(name):
    """By layers and by chunks, and the derivative by the weights as well, where they are 0, too."""
    loss, kind, methods = CASES[name]
    problem = _problem(loss, **kind)
    programs = {PROGRAMS[method][1] for method in methods}

    def run():
        found = {method: _everything(problem, loss, PROGRAMS[method][0]) for method in methods}
        return found, [_everything_by_loop(problem, loss, program) for program in programs]

    found, wanted = jax.jit(run)()
    wanted = dict(zip(programs, wanted, strict=True))
    for method in methods:
        assert not w.wrong(found[method], wanted[PROGRAMS[method][1]], 1e-12), method


@pytest.mark.parametrize("loss", [jb.squared_error, jb.softmax_cross_entropy])
def test_a_step_of_weight_0_is_read_and_its_target_is_not(loss):
    """It may be NaN, −1 or a number whose square is none. A mask would leave out the step, too."""
    problem = _problem(loss)
    targets, mask, weight = problem.targets, problem.marks["mask"], problem.weight
    unscored = (weight == 0).reshape(weight.shape + (1,) * (targets.ndim - weight.ndim))

    @jax.jit
    def run(targets, mask):
        """The gradient, and a derivative of it."""
        here = problem._replace(targets=targets, marks=problem.marks | {"mask": mask})

        def of_readout(params):
            return _run(here._replace(params=params), loss, jb.full(), weight)[1].readout.w_y.sum()

        return _run(here, loss, jb.full(), weight), jax.grad(of_readout)(problem.params)

    wanted = run(targets, mask)
    for nothing in (-1, 99) if WRITTEN_OUT[loss] is nats else (jnp.nan, jnp.inf, 1e300):
        found = run(jnp.where(unscored, jnp.asarray(nothing, targets.dtype), targets), mask)
        assert not w.wrong(found, wanted, 1e-14), nothing
        assert not np.isfinite(run(jnp.full_like(targets, nothing), mask)[0][0][0])
    assert w.wrong(run(targets, mask & (weight != 0)), wanted, 1e-2)


@pytest.mark.parametrize("loss", [jb.squared_error, jb.softmax_cross_entropy])
def test_what_went_wrong_in_a_step_is_seen_though_it_is_not_scored(loss):
    ys = jax.random.normal(jax.random.key(0), (T, B, O))
    targets, weight = (ys if WRITTEN_OUT[loss] is squares else jnp.ones((T, B), int)), jnp.ones((T, B))
    weight, mask = weight.at[2].set(0), jnp.ones((T, B), bool).at[3].set(False)

    @jax.jit
    def are_finite(ys, weight):
        """E and dE/dY, by JAX and by hand."""
        by_jax = jax.value_and_grad(loss)(ys, targets, mask, weight)
        by_hand = losses.value_and_slope(loss, ys, Judged(targets, mask, weight))
        return [jnp.isfinite(z).all() for z in (*by_jax, *by_hand)]

    assert all(are_finite(ys.at[3].set(jnp.nan), weight.at[3].set(jnp.nan)))  # it is not read
    assert not any(are_finite(ys.at[2, 0, 0].set(jnp.nan), weight))
    assert not any(are_finite(ys, weight.at[1, 0].set(jnp.nan)))


def _drop_weight(f):
    def forgetful(loss, rows, n):
        return f(loss, rows._replace(scored=rows.scored._replace(weight=None)), n)

    return forgetful


MISTAKES = {
    "the value forgets the weight": (jb.squared_error, step_errors, "_value", _drop_weight),
    "the slope forgets the weight": (jb.squared_error, step_errors, "_slope", _drop_weight),
    "the slope of one's own forgets it": (OF_STEPS, step_errors, "_slope", _drop_weight),
    "N is the number of steps": (
        jb.softmax_cross_entropy,
        losses,
        "total_weight",
        lambda _: lambda judged, leading: jnp.asarray(np.prod(leading)),
    ),
    "N is that of a chunk": (
        OF_STEPS,
        step_errors,
        "_slope",
        lambda f: lambda loss, rows, n: f(loss, rows, rows.scored.weight.sum()),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_caught(mistake, monkeypatch):
    """These are the negative controls of the first test."""
    loss, module, name, mutated = MISTAKES[mistake]
    monkeypatch.setattr(module, name, mutated(getattr(module, name)))
    problem = _problem(loss)

    def run(weight):  # an argument, so that no program that was compiled before is taken
        return _run(problem, loss, jb.truncated(3), weight)

    found = jax.jit(run)(problem.weight)
    monkeypatch.undo()
    assert w.wrong(found, jax.jit(lambda weight: run(weight))(problem.weight), 1e-2)


def test_many_steps_of_training():
    """Rows that go on: a batch may have its scored steps where the one before has none."""
    problem, optimizer = _problem(jb.softmax_cross_entropy), optax.sgd(0.05)
    net, s_0 = problem.net, problem.net.initial_carry(problem.params, (B,))
    weights = jnp.stack([problem.weight, jnp.zeros((T, B)).at[-1].set(1.0)])
    classes = jnp.where(weights == 0, -1, problem.targets)
    xs = jnp.stack([problem.xs, problem.xs[::-1]])
    marks = {name: jnp.stack([mark, mark]) for name, mark in problem.marks.items()}
    none = jnp.zeros((), jnp.int32)
    state = jb.TrainState(none, problem.params, optimizer.init(problem.params), s_0, none)
    steps = jb.make_train_steps(
        net, jb.softmax_cross_entropy, optimizer, gradient=jb.checkpointed(2, 3), donate=False
    )
    after, metrics = steps(state, jb.Batch(xs, classes, weight=weights, **marks))

    params, carry, errors = problem.params, s_0, []
    for x, weight in zip(xs, weights, strict=True):
        here = problem._replace(carry=carry, xs=x, weight=weight)
        error, grads = jax.value_and_grad(looped(here, nats, PLAIN, False))(params)
        carry, errors = run_loop(here, params, PLAIN)[0], [*errors, error]
        params = jax.tree.map(lambda p, g: p - 0.05 * g, params, grads)
    assert not w.wrong((after.params, after.carry, metrics.loss), (params, carry, jnp.stack(errors)), 1e-12)


def test_what_looks_into_the_gradient_looks_at_the_weighted_loss():
    """A loss of one's own that is given the weights among its targets."""
    problem = _problem(jb.squared_error)
    net, params, weight = problem.net, problem.params, problem.weight

    def own(ys, targets, mask):
        return squares(ys, targets[0], mask, targets[1])

    def look(loss, targets, **more):
        arguments = net, loss, params, None, problem.xs, targets
        more = more | problem.marks
        return {
            "credit": jb.credit(*arguments, **more),
            "flow": jb.gradient_flow(*arguments, **more)[1:],  # the profiles have NaN where no loss reaches
            "omega": jb.omega(*arguments, **more),
            "clipped": jb.clipped_share(*arguments, max_norm=0.3, **more),
        }

    found = jax.jit(lambda: look(jb.squared_error, problem.targets, weight=weight))()
    assert not w.wrong(found, jax.jit(lambda: look(own, (problem.targets, weight)))(), 1e-12)
    assert not w.wrong(
        found["credit"].gradient, _run(problem, jb.squared_error, jb.full(), weight)[1].cells, 1e-12
    )

"""The states of all steps, and resets that go back to given states, against loops in plain JAX.

Every leaf of every state counts in E, as does the last carry; E is differentiated by params, carry, xs and
starts. A carry may hold what has no derivative, such as a PRNG key and a counter.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support.witnesses as w
from cases import CELLS, H, I
from support import noisy_cell as noisy
from support.network_by_loop import T, by_loop, problem, some_marks, states_one_way
from support.optimizers import SGD
from support.roads import PLAIN, PROGRAMS

import jax_bptt as jb
from jax_bptt.base.trees import differentiable, merged

SLIDING = 4, 2  # the window and the stride of the truncated method that is not exact


def _some(tree, key):
    """Random numbers in place of those of a tree; keys and counters stay."""
    leaves, structure = jax.tree.flatten(differentiable(tree))
    keys = jax.random.split(jax.random.key(key), len(leaves))
    drawn = [jax.random.normal(k, z.shape, z.dtype) for k, z in zip(keys, leaves, strict=True)]
    return merged(jax.tree.unflatten(structure, drawn), tree)


def _weighed(share, z):
    return z * jnp.broadcast_to(share.reshape(-1, *[1] * (z.ndim - 1)), z.shape)


class Runs:
    """A cell with two independent programs of E: the library's and a loop's."""

    def __init__(self, cell, plain, rows, reverse, with_starts=True, steps=T):
        self.cell, self.plain, self.reverse = cell, plain, reverse
        params = _some(cell.init(jax.random.key(0)), 1)
        initial = cell.initial_carry(params, rows)
        self.like = type(initial)
        pattern = np.arange(steps * max(1, int(np.prod(rows)))).reshape(steps, *rows)
        self.marks = {"mask": pattern % 5 != 3, "reset": pattern % 4 == 2, "cut": pattern % 6 == 4}
        xs = jax.random.normal(jax.random.key(2), (steps, *rows, I))
        every = jax.tree.map(lambda z: jnp.broadcast_to(z, (steps, *z.shape)), initial)
        if with_starts and "key" in self.like._fields:  # other keys than those of the initial carry
            every = every._replace(key=jax.random.split(jax.random.key(9), every.key.shape))
        starts = _some(every, 3) if with_starts else every
        self.at = tuple(map(differentiable, (params, _some(initial, 4), xs, starts)))
        self.fixed, self.with_starts = (params, initial, xs, starts), with_starts
        self.weights = differentiable((_some(initial, 5), _some(every, 6)))
        self.read = np.arange(steps)[::-1] if reverse else np.arange(steps)

    def whole(self, at):
        return tuple(merged(part, whole) for part, whole in zip(at, self.fixed, strict=True))

    def run(self, method, at):
        params, carry, xs, starts = self.whole(at)
        starts = starts if self.with_starts else None
        marks = {**self.marks, "reverse": self.reverse, "starts": starts}
        return jb.unroll_states(self.cell, params, carry, xs, gradient=method, **marks)

    def loop(self, program, at, marks=None):
        params, carry, xs, starts = self.whole(at)
        marks = {**(marks or self.marks), "starts": starts._asdict()}
        found = states_one_way(self.plain, params, carry._asdict(), xs, marks, self.reverse, program)
        return tuple(self.like(**part) for part in found)

    def error(self, run, weights=None):
        def of(at):
            found = differentiable(run(at))
            return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, weights or self.weights, found)))

        return of

    def sliding(self, window, stride):
        """The sum over blocks of losses, each with a cut `window` steps before its end."""

        def gradient(at):
            total = []
            for first in range(0, len(self.read), stride):
                end = min(first + stride, len(self.read)) - 1
                inside = ((first <= self.read) & (self.read <= end)).astype(float)
                of_carry, of_states = self.weights
                of_states = jax.tree.map(functools.partial(_weighed, inside), of_states)
                of_carry = jax.tree.map(lambda z, end=end: z * float(end == len(self.read) - 1), of_carry)
                border = ((self.read == end - window + 1) & (self.read > 0)).reshape(-1, *[1] * (self.marks["cut"].ndim - 1))
                marks = {**self.marks, "cut": self.marks["cut"] | border}
                run = functools.partial(self.loop, PLAIN, marks=marks)
                total.append(jax.grad(self.error(run, (of_carry, of_states)))(at))
            return jax.tree.map(lambda *z: sum(z), *total)

        return gradient

    def ours(self, method):
        return jax.grad(self.error(functools.partial(self.run, method)))

    def wanted(self, program):
        return jax.grad(self.error(functools.partial(self.loop, program)))


LSTM = CELLS["lstm"].cell, CELLS["lstm"].plain
NOISY = noisy.CELL, noisy.plain
RUNS = {
    "lstm, two batch axes": lambda: Runs(*LSTM, (2, 2), False),
    "lstm, reversed": lambda: Runs(*LSTM, (), True),
    "noise and counters": lambda: Runs(*NOISY, (3,), False, steps=4),
    "noise and counters, reversed, to the initial carry": lambda: Runs(*NOISY, (), True, with_starts=False),
}
FEW = {  # each goes another way through a carry whose leaves are not all numbers, or through the time
    "lstm, reversed": ["full", "truncated to 3", "rtrl", "sliding"],
    "noise and counters": [
        "full, half recomputed",
        "checkpointed, few slots",
        "truncated to 3",
        "clipped",
        "rtrl",
        "parallel",
        "autodiff",
    ],
    "noise and counters, reversed, to the initial carry": ["rtrl", "sliding"],
}


@pytest.mark.parametrize("name", RUNS)
def test_states_and_their_gradients_are_those_of_a_loop_by_every_method(name):
    """Values bit by bit for keys and counters; gradients of the program that each method stands for."""
    runs = RUNS[name]()
    programs = {**PROGRAMS, "sliding": (jb.truncated(*SLIDING), None)}
    programs = {method: programs[method] for method in FEW.get(name, programs)}

    @jax.jit
    def everything(at):
        found = {method: runs.ours(value)(at) for method, (value, _) in programs.items()}
        different = {program for _, program in programs.values() if program}
        wanted = {program: runs.wanted(program)(at) for program in different}
        wanted[None] = runs.sliding(*SLIDING)(at) if "sliding" in programs else None
        wanted = {method: wanted[program] for method, (_, program) in programs.items()}
        return found, wanted, runs.run(jb.full(), at), runs.loop(PLAIN, at)

    found, wanted, states, by_hand = everything(runs.at)
    counts = 4 if runs.with_starts else 3
    for method in programs:
        assert not w.wrong(found[method][:counts], wanted[method][:counts], 1e-12), method
    numbers = [differentiable(z) for z in (states, by_hand)]
    assert not w.wrong(*numbers, 1e-13)
    for a, b in zip(*map(jax.tree.leaves, (states, by_hand)), strict=True):
        assert jnp.issubdtype(a.dtype, jnp.inexact) or (a == b).all()
    if runs.with_starts:  # each of them counts
        assert all(np.linalg.norm(z) > 1e-3 for z in jax.tree.leaves(found["rtrl"][3]))


def test_second_derivatives_through_states_and_starts():
    runs = Runs(*LSTM, (2,), False)
    names = ["full", "truncated to 3", "rtrl", "checkpointed, few slots"]
    direction = jax.tree.map(jnp.cos, runs.at)

    @jax.jit
    def everything(at):
        def along(gradient):
            return jax.jvp(gradient, (at,), (direction,))[1]

        found = {name: along(runs.ours(PROGRAMS[name][0])) for name in names}
        by_program = {program: along(runs.wanted(program)) for program in {PROGRAMS[n][1] for n in names}}
        return found, {name: by_program[PROGRAMS[name][1]] for name in names}

    found, wanted = everything(runs.at)
    for name in names:
        assert not w.wrong(found[name], wanted[name], 1e-11), name


def test_a_program_that_ignores_starts_differs():
    """The negative control of the tests above, and the h of unroll is that of the states."""
    runs = RUNS["lstm, two batch axes"]()
    params, carry, xs, starts = runs.fixed[0], *runs.at[1:]
    given = functools.partial(jb.unroll, runs.cell, params, carry, xs, **runs.marks)
    last, hs = given(starts=starts)
    of_states, states = jb.unroll_states(runs.cell, params, carry, xs, starts=starts, **runs.marks)
    assert all((a == b).all() for a, b in zip((*last, hs), (*of_states, states.h), strict=True))
    assert np.linalg.norm(given()[1] - hs) > 0.1 * np.linalg.norm(hs)



# Networks and training

LEARNED = jb.learn_carry(jb.gru(2 * H, H))
NETS = {  # the layers, a step for each of them, the methods, and the layers without starts of their own
    "both directions": (
        [jb.layer(LSTM[0], backward=jb.learn_carry(LSTM[0])), LEARNED],
        [LSTM[1], CELLS["gru"].plain],
        ["full"],
        (1,),
    ),
    "by chunks": (
        [LSTM[0], jb.lstm(H, 2 * H), LEARNED],
        [LSTM[1], LSTM[1], CELLS["gru"].plain],
        ["full", "checkpointed, few slots", "truncated to 3"],
        (0,),
    ),
}


def _problem(name):
    layers, plains, methods, without = NETS[name]
    net, marks = jb.network(layers, jb.readout(H, 2)), some_marks()
    marks["cut"] = np.roll(marks["reset"], 1, 0)
    params, carry, xs, targets = problem(net, marks)
    starts = _some(net.initial_carry(params, xs.shape[:-1]), 7)
    starts = tuple(None if number in without else s for number, s in enumerate(starts))
    return net, plains, methods, (params, carry, xs, targets), marks, starts


def _squares(ys, targets, mask):
    return jnp.sum(jnp.where(mask[..., None], (ys - targets) ** 2, 0.0))


@pytest.mark.parametrize("name", NETS)
def test_starts_of_a_network_are_those_of_a_loop(name):
    """value_and_grad by layers and by chunks; net.apply with respect to starts as well."""
    net, plains, methods, (params, carry, xs, targets), marks, starts = _problem(name)

    def applied(method, params, starts):
        ys = net.apply(params, carry, xs, starts=starts, gradient=method, **marks)[1]
        return _squares(ys, targets, marks["mask"])

    def looped(program, params, starts):
        initial = net.initial_carry(params, xs.shape[:-1])
        whole = tuple(i if s is None else s for s, i in zip(starts, initial, strict=True))
        ys = by_loop(net, plains, params, carry, xs, {**marks, "starts": whole}, program)[1]
        return _squares(ys, targets, marks["mask"])

    def by_both(error, method):
        error, grads = jax.value_and_grad(functools.partial(error, method), (0, 1))(params, starts)
        return error, *grads

    def of_params(method):
        run = jb.value_and_grad(net, jb.squared_error)
        (error, _), grads = run(params, carry, xs, targets, gradient=method, starts=starts, **marks)
        return error, grads

    @jax.jit
    def everything():
        wanted = {program: by_both(looped, program) for program in {PROGRAMS[n][1] for n in methods}}
        of_methods = ((n, *PROGRAMS[n]) for n in methods)
        return {n: (of_params(m), by_both(applied, m), wanted[program]) for n, m, program in of_methods}

    for method, (of_params, of_both, wanted) in everything().items():
        assert not w.wrong({"apply": of_both}, {"apply": wanted}, 1e-12), method
        assert not w.wrong({"by hand": of_params}, {"by hand": wanted[:2]}, 1e-12), method


def test_a_training_step_goes_down_the_gradient_with_starts():
    """And two batches at once are two steps."""
    net, _, _, (params, _, xs, targets), marks, starts = _problem("both directions")
    batch = jb.Batch(xs, targets, **marks, starts=starts)
    (_, last), grads = jb.value_and_grad(net, jb.squared_error)(
        params, None, xs, targets, starts=starts, **marks
    )
    state = jb.init_train_state(jax.random.key(0), net, SGD)._replace(params=params)
    once = jb.make_train_step(net, jb.squared_error, SGD, donate=False)
    after, _ = once(state, batch)
    assert not w.wrong(after.params, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), 1e-12)
    without, _ = once(state, batch._replace(starts=None))
    assert w.wrong(without.params, after.params, 1e-6)
    batches = jax.tree.map(lambda z: jnp.stack([z, z]), batch)
    both, _ = jb.make_train_steps(net, jb.squared_error, SGD, donate=False)(state, batches)
    assert not w.wrong(both.params, once(after, batch)[0].params, 1e-12)


# A carry with keys and counters


def test_a_network_is_trained_whose_carry_holds_a_key_that_goes_on():
    """Two batches against a loop; the second one draws on from where the first one ended."""
    net, rows = jb.network([noisy.CELL], jb.readout(H, 2)), (3,)
    state = jb.init_train_state(jax.random.key(0), net, SGD, rows)
    params, carry = state.params, noisy.start(state.params.cells[0], rows)
    step = jb.make_train_step(net, jb.squared_error, SGD, donate=False)
    for key in jax.random.split(jax.random.key(1)):
        xs, targets = (jax.random.normal(key, (4, *rows, size)) for size in (I, 2))
        state, metrics = step(state, jb.Batch(xs, targets))

        def error(params, carry=carry, xs=xs, targets=targets):
            last, states = states_one_way(noisy.plain, params.cells[0], carry._asdict(), xs, _BEGUN, False)
            z = states["h"] @ params.readout.w_y
            z = z + jnp.broadcast_to(params.readout.b_y, z.shape)
            return jnp.sum((z - targets) ** 2), noisy.Noisy(**last)

        grads, carry = jax.jit(jax.grad(error, has_aux=True))(params)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
        assert bool(metrics.finite)
        assert not w.wrong(state.params, params, 1e-12)
        assert (state.carry[0].key == carry.key).all()
    assert (state.carry[0].count == 8).all()


# nothing is reset, so any starts will do
_BEGUN = {"starts": noisy.start(noisy.init(jax.random.key(0)), (4, 3))._asdict()}


def test_a_stream_with_noise_has_the_gradient_of_the_sequence():
    runs = Runs(*NOISY, (2,), False, with_starts=False, steps=4)
    params, _, xs, _ = runs.fixed
    weights = jnp.cos(xs[..., :1] + jnp.arange(H, dtype=float).reshape(1, 1, H))
    state, total = jb.rtrl_init(noisy.CELL, params, (2,)), jax.tree.map(jnp.zeros_like, params)
    for t, x in enumerate(xs):
        marks = {name: mark[t] for name, mark in runs.marks.items()}
        state, _ = jb.rtrl_step(noisy.CELL, params, state, x, **marks)
        total = jax.tree.map(jnp.add, total, jb.rtrl_gradient(params, state, weights[t]))
    carry = noisy.start(params, (2,))._asdict()
    marks = {**runs.marks, "starts": runs.fixed[3]._asdict()}

    def error(params):
        return jnp.vdot(weights, states_one_way(noisy.plain, params, carry, xs, marks, False)[1]["h"])

    assert not w.wrong(total, jax.jit(jax.grad(error))(params), 1e-12)


def test_diagnostics_and_checks_take_a_carry_with_a_key():
    net, rows = jb.network([noisy.CELL], jb.readout(H, 2)), (2,)
    params = net.init(jax.random.key(0))
    xs, targets = jnp.ones((4, *rows, I)), jnp.zeros((4, *rows, 2))
    (_, _), grads = jb.value_and_grad(net, jb.squared_error)(params, None, xs, targets)
    terms = jb.credit(net, jb.squared_error, params, None, xs, targets)
    assert not w.wrong({"cells": terms.gradient}, {"cells": grads.cells}, 1e-12)
    (flow,) = jb.gradient_flow(net, jb.squared_error, params, None, xs, targets).layers
    flow = flow._replace(saturation=flow.profile)  # NaN for any step_cell
    assert all(np.isfinite(z).all() for z in jax.tree.leaves(flow))
    assert jb.check_cell(noisy.CELL).ok


def _of_kind(impl):
    start = functools.partial(noisy.start, impl=impl)
    return jb.step_cell(I, H, noisy.step, noisy.init, carry_type=noisy.Noisy, initial_carry=start)


CELL, XS = LSTM[0], jnp.ones((5, 2, I))
PARAMS = CELL.init(jax.random.key(0))
STATES, RESET = CELL.initial_carry(PARAMS, (5, 2)), jnp.zeros((5, 2), bool)
NET = jb.network([CELL, jb.gru(H, H)], jb.readout(H, 2))


def _unrolled(cell=CELL, run=jb.unroll_states, **rest):
    return run(cell, cell.init(jax.random.key(0)), None, XS, **rest)


def _applied(starts):
    return NET.apply(NET.init(jax.random.key(0)), None, XS, reset=RESET, starts=starts)


REFUSED = {
    "starts without reset": (
        lambda: _unrolled(starts=STATES),
        r"^unroll_states: starts: expected resets, which go back to them, got no reset; pass reset, bool \[T",
    ),
    "starts of one step": (
        lambda: _unrolled(reset=RESET, starts=CELL.initial_carry(PARAMS, (2,))),
        r"^unroll_states: starts\.h: expected shape \[5,2,4\], got float64\[2,4\]; pass a carry for each step",
    ),
    "starts of another cell": (
        lambda: _unrolled(reset=RESET, starts=jb.Carry(STATES.h)),
        r"^unroll_states: starts: expected LSTMCarry\(h=float64\[5,2,4\], .*, got Carry\(",
    ),
    "starts of another dtype": (
        lambda: _unrolled(reset=RESET, starts=jax.tree.map(lambda z: z.astype("float32"), STATES)),
        r"^unroll_states: starts\.h: expected float64, one dtype throughout, got float32\[5,2,4\]; cast it",
    ),
    "starts of one layer": (
        lambda: _applied((STATES,)),
        r"^net\.apply: starts: expected tuple of LSTMCarry\(.*, got tuple of LSTMCarry",
    ),
    "starts of a layer in another order": (
        lambda: _applied((STATES.h, None)),
        r"^net\.apply: starts: expected tuple of LSTMCarry\(",
    ),
    "newton with keys": (
        lambda: _unrolled(noisy.CELL, jb.unroll_by_newton),
        r"^unroll_by_newton: newton: expected a carry of real numbers, got .*; use jb\.parallel\(\) without",
    ),
    "parallel by newton with keys": (
        lambda: _unrolled(noisy.CELL, gradient=jb.parallel(jb.newton())),
        r"newton: expected a carry of real numbers, got ",
    ),
    "keys of another kind": (
        lambda: _unrolled(_of_kind("rbg")),
        r"initial_carry\.key: expected keys of the kind threefry, got key<rbg>\[2\]; jax\.random\.key\(seed",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_named(name):
    call, said = REFUSED[name]
    with pytest.raises(ValueError, match=said):
        call()

"""The states of all steps, and resets that go back to given states, against loops in plain JAX.

Every leaf of every state counts in E, as does the last carry; E is differentiated by params, carry, xs and
starts. A carry may hold what has no derivative, such as a PRNG key and a counter.
"""

import functools

import jax
import jax.numpy as jnp
import mutations
import numpy as np
import pytest
import support.witnesses as w
from cases import H, I
from support import noisy_cell as noisy
from support.roads import PLAIN, PROGRAMS
from support.states_programs import LSTM, NOISY, SLIDING, Runs

import jax_bptt as jb
from jax_bptt.base.trees import differentiable

RUNS = {
    "lstm, two batch axes": lambda: Runs(*LSTM, (2, 2), False),
    "lstm, reversed": lambda: Runs(*LSTM, (), True),
    "noise and counters": lambda: Runs(*NOISY, (3,), False, steps=4),
    "noise and counters, reversed, to the initial carry": lambda: Runs(*NOISY, (), True, with_starts=False),
}
FEW = {  # each goes another way through a carry whose leaves are not all numbers, or through the time
    "lstm, two batch axes": [
        "checkpointed, few slots",
        "truncated to 1",
        "artbp",
        "clipped",
        "rtrl",
        "parallel",
        "sliding",
    ],
    "lstm, reversed": ["full", "truncated to 3", "rtrl", "sliding"],
    "noise and counters": [
        "full, half recomputed",
        "checkpointed, few slots",
        "truncated to 3",
        "rtrl",
        "parallel",
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


def test_the_comparison_catches_every_mistake_and_names_what_it_spoils():
    runs, mistakes = Runs(*LSTM, (3,), False), mutations.OF_STATES

    @jax.jit
    def everything(at):
        methods = {n: jb.full()._replace(name="mutated", backward=back) for n, (back, _) in mistakes.items()}
        return {n: runs.ours(method)(at) for n, method in methods.items()}, runs.wanted(PLAIN)(at)

    found, wanted = everything(runs.at)
    for mistake, (_, spoiled) in mistakes.items():
        wrong = {leaf.partition(".")[0] for leaf in w.wrong(found[mistake], wanted, 1e-12)}
        assert wrong == set(spoiled.split(", ")), mistake


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
        r"^unroll_states: starts\.h: expected shape \[5,2,4\], got float64\[2,4\]; pass a carry for each",
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

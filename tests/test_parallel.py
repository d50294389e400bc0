"""`parallel` and `unroll_by_newton` agree with the loop, and say so where Newton does not converge."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
import support.witnesses as w
from cases import CELLS, make
from support.refusals import refused

import jax_bptt as jb

T, H = 400, 16


@functools.cache
def _elman(gain):
    """Lyapunov exponent below zero at 0.9, chaotic well above 1."""
    return jb.elman(4, H, recurrent=lambda k, s, d: gain * jax.random.normal(k, s, d) / s[0] ** 0.5)


def _problem(cell, steps=T, dtype="float64", rows=()):
    params = jax.tree.map(lambda z: z.astype(dtype), cell.init(jax.random.key(0)))
    return params, 0.5 * jax.random.normal(jax.random.key(1), (steps, *rows, cell.input_size), dtype)


@functools.cache
def _by_newton(cell, newton, **kwargs):
    """unroll_by_newton, and how far it is from the loop."""
    params, xs = _problem(cell, **kwargs)
    last, hs, info = jax.jit(lambda p, x: jb.unroll_by_newton(cell, p, None, x, newton=newton))(params, xs)
    wanted_last, wanted = _by_the_loop(cell, **kwargs)
    return info, {**w.ratios({"hs": hs}, {"hs": wanted}), **w.ratios({"last": last}, {"last": wanted_last})}


@functools.cache
def _by_the_loop(cell, **kwargs):
    params, xs = _problem(cell, **kwargs)
    return jax.jit(lambda p, x: jb.unroll(cell, p, None, x))(params, xs)


CONTRACTING = {
    "elman": _elman(0.9),
    "lstm": jb.lstm(4, H),
    "gru": jb.gru(4, H),
    "gru, reset before": jb.gru(4, H, reset_after=False),
    "indrnn": jb.indrnn(4, H, activation="tanh"),
    "layer norm": CELLS["own-layer-norm"].cell,
}


@pytest.mark.parametrize("name", CONTRACTING)
def test_newton_finds_the_states_of_the_loop_in_a_few_iterations(name):
    info, gaps = _by_newton(CONTRACTING[name], jb.newton())
    assert bool(info.converged)
    assert int(info.iterations) <= 25  # of T = 400 that would do in any case
    assert float(info.residual) < 64 * jnp.finfo("float64").eps
    assert max(gaps.values()) < 1e-11


@pytest.mark.parametrize("name", ["elman", "lstm", "layer norm"])
def test_unit_wise_blocks_need_more_iterations(name):
    whole, _ = _by_newton(CONTRACTING[name], jb.newton())
    info, gaps = _by_newton(CONTRACTING[name], jb.newton(T, diagonal=True))
    assert bool(info.converged)
    assert int(info.iterations) > int(whole.iterations)
    assert max(gaps.values()) < 1e-11


def test_unit_wise_blocks_are_all_there_is_of_independent_units():
    methods = jb.newton(), jb.newton(diagonal=True)
    iterations = {int(_by_newton(CONTRACTING["indrnn"], newton)[0].iterations) for newton in methods}
    assert len(iterations) == 1


def test_chaos_is_reported_as_not_converged():
    info, gaps = _by_newton(_elman(4.0), jb.newton(60), dtype="float32")
    assert not bool(info.converged)
    assert int(info.iterations) == 60
    assert float(info.residual) > 1e-2
    assert max(gaps.values()) > 1e-2


def test_damping_converges_where_the_undamped_form_does_not():
    """Near the edge of chaos unit-wise blocks explode as a linear recurrence; scaled by 0.6 they do not."""
    undamped, damped = (
        _by_newton(_elman(1.5), jb.newton(240, diagonal=True, damping=k), dtype="float32") for k in (1.0, 0.6)
    )
    assert not bool(undamped[0].converged)
    assert bool(damped[0].converged)
    assert max(damped[1].values()) < 1e-4


@pytest.mark.parametrize("name", ["own-pointwise", "own-attention"])
def test_an_iterate_of_enormous_numbers_is_not_a_solution(name):
    """A residual against the largest state of all, or a maximum that drops NaN, calls this converged."""
    case = make(name, 512, (2,))
    run = jax.jit(lambda *primals: jb.unroll_by_newton(case.row.cell, *primals, newton=jb.newton(20)))
    assert not bool(run(*case.primals())[-1].converged)
    outputs = jax.jit(w.unrolled(case, jb.parallel(jb.newton(20))))(*case.primals())
    assert not w.wrong(outputs, jax.jit(w.unrolled(case, jb.full()))(*case.primals()), 1e-12)


def test_a_carry_that_is_no_number_never_converges():
    case = make("elman-tanh", 5, (2, 2))
    carry = jax.tree.map(lambda z: jnp.full_like(z, jnp.nan), case.carry)
    info = jb.unroll_by_newton(case.row.cell, case.params, carry, case.xs, newton=jb.newton(3))[-1]
    assert not bool(info.converged)
    assert float(info.residual) == float("inf")


def test_a_small_lasting_signal_is_not_taken_for_rounding():
    """h_t = 0.9999 h_{t−1} + 1e-6: the initial guess misses each step by 1e-6, and the last by 0.004."""
    cell = jb.elman(1, 1)
    params = jb.Params(jnp.full((1, 1), 1e-6), jnp.full((1, 1), 0.9999), jnp.zeros(1))
    params, xs = jax.tree.map(lambda z: z.astype("float32"), (params, jnp.ones((5000, 1))))

    def total(params, method):
        return jb.unroll(cell, params, None, xs, gradient=method)[1].sum()

    found, wanted = (
        jax.jit(jax.value_and_grad(lambda p, m=m: total(p, m)))(params)
        for m in (jb.parallel(jb.newton()), jb.full())
    )
    assert not w.wrong(found, wanted, 1e-3)


def test_in_sixteen_bits_the_loop_is_taken():
    cell = CONTRACTING["elman"]
    params, xs = _problem(cell, dtype="bfloat16")
    info = jb.unroll_by_newton(cell, params, None, xs)[2]
    exact = jax.tree.map(lambda z: z.astype("float64"), (params, xs))

    def total(params, xs, method):
        return jb.unroll(cell, params, None, xs, gradient=method)[1].astype("float32").sum()

    found = jax.jit(jax.grad(lambda p: total(p, xs, jb.parallel(jb.newton()))))(params)
    wanted = jax.jit(jax.grad(lambda p: total(p, exact[1], jb.full())))(exact[0])
    found = jax.tree.map(lambda z: z.astype("float64"), found)
    assert not bool(info.converged) or float(info.residual) == 0
    assert not w.wrong(found, wanted, 0.05)


def test_derivatives_of_the_iteration_are_refused():
    case = make("elman-tanh", 4, ())
    unrolled = w.unrolled(case, jb.parallel(jb.newton()))

    def loss(w_h):
        return jnp.sum(unrolled(case.params._replace(w_h=w_h), case.carry, case.xs)[1] ** 2)

    def by_newton(xs):
        return jb.unroll_by_newton(case.row.cell, case.params, case.carry, xs)[1].sum()

    refused = (
        lambda: jax.hessian(loss)(case.params.w_h),
        lambda: jax.grad(lambda w_h: jnp.sum(jax.grad(loss)(w_h) ** 2))(case.params.w_h),
        lambda: jax.grad(by_newton)(case.xs),
        lambda: jax.jvp(by_newton, (case.xs,), (case.xs,)),
    )
    for call in refused:
        with pytest.raises(
            ValueError, match=r"gradient: expected first derivatives in reverse mode, got a deriv"
        ):
            call()


def test_as_many_iterations_as_steps_always_suffice():
    """Whatever the dynamics: the first wrong step is set right by each iteration, and one more sees it."""
    for newton in (jb.newton(21), jb.newton(21, diagonal=True), jb.newton(21, damping=0.1)):
        info, gaps = _by_newton(_elman(6.0), newton, steps=20)  # with more of them rounding grows
        assert bool(info.converged)
        assert max(gaps.values()) < 1e-12


@pytest.mark.parametrize("gain", [0.9, 4.0], ids=["contracting", "chaotic"])
def test_parallel_falls_back_to_the_loop_where_newton_fails(gain):
    cell = _elman(gain)
    params, xs = _problem(cell, steps=60, rows=(2,))
    weights = jax.random.normal(jax.random.key(2), (60, 2, H))

    def loss(params, method):
        return jnp.sum(weights * jb.unroll(cell, params, None, xs, gradient=method)[1])

    def both(method):
        return jax.jit(functools.partial(jax.value_and_grad(loss), method=method))(params)

    assert not w.wrong(both(jb.parallel(jb.newton(8))), both(jb.full()), 1e-9)


@pytest.mark.parametrize(
    ("name", "reverse"),
    [
        ("lstm-learned-carry", False),
        ("lstm-learned-carry", True),
        ("gru-reset-before", True),
        ("indrnn", False),
    ],
)
def test_newton_with_marks_in_both_directions(name, reverse):
    case = make(name, 7, (3,), marks=("mask", "reset", "cut"), reverse=reverse)
    marks = {name: case.marks[name] for name in ("mask", "reset")}

    def all_of_them(primals):
        outputs, pullback = jax.vjp(w.unrolled(case, jb.parallel(jb.newton())), *primals)
        blocks = jb.newton(diagonal=True, damping=0.7)
        alone = jb.unroll_by_newton(case.row.cell, *primals, newton=blocks, reverse=reverse, **marks)
        return outputs, pullback((case.d_carry, case.d_hs)), alone, w.plain(case)(*primals)

    run = jax.jit(all_of_them)
    outputs, gradient, (last, hs, info), wanted = run(case.primals())
    assert not w.wrong(outputs, wanted, 1e-12)
    assert not w.wrong(gradient, w.by_autodiff(case), 1e-9)
    assert not w.wrong((last, hs), wanted, 1e-12)
    assert bool(info.converged)


def test_memory_of_independent_units_is_linear_in_their_number():
    def temporaries(cell):
        params, xs = _problem(cell)

        def loss(params):
            return jnp.sum(jb.unroll(cell, params, None, xs, gradient=jb.parallel())[1])

        return jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(jb.indrnn(4, 32, activation="tanh")) < 5 * temporaries(
        jb.indrnn(4, 8, activation="tanh")
    )
    assert temporaries(jb.elman(4, 32)) > 8 * temporaries(jb.elman(4, 8))  # the comparison sees H²


def test_there_is_no_loop_over_time_in_either_pass():
    """Of 400 steps only the iteration of Newton's method is a loop."""
    cell = CONTRACTING["indrnn"]
    params, xs = _problem(cell)
    run = jax.grad(lambda p, m: jnp.sum(jb.unroll(cell, p, None, xs, gradient=m)[1]))

    def loops(method):
        # each loop over steps is there a second time for GPUs, unrolled
        return len(re.findall(r"unroll=1\b", str(jax.make_jaxpr(functools.partial(run, m=method))(params))))

    assert loops(jb.full()) >= 2
    assert loops(jb.parallel()) == 1  # the forward pass
    assert loops(jb.parallel(jb.newton())) == 1  # the branch that falls back


def test_second_derivatives():
    case = make("elman-tanh", 4, ())

    def loss(w_h, method):
        params = case.params._replace(w_h=w_h)
        return jnp.sum(jb.unroll(case.row.cell, params, case.carry, case.xs, gradient=method)[1] ** 3)

    def slope(w_h, method):
        return jnp.sum(jax.grad(loss)(w_h, method) ** 2)

    for f in (jax.hessian(loss), jax.grad(slope)):
        found, wanted = (
            jax.jit(f, static_argnums=1)(case.params.w_h, m) for m in (jb.parallel(), jb.autodiff())
        )
        assert not w.wrong({"w_h": found}, {"w_h": wanted}, 1e-12)


ATTENTION = CELLS["own-attention"].cell
BAD = {
    "no iteration": (lambda: jb.newton(0), r"iterations: expected an integer >= 1, got 0"),
    "tolerance of zero": (
        lambda: jb.newton(tolerance=0.0),
        r"tolerance: expected a number above 0, or None, got 0.0",
    ),
    "damping above one": (lambda: jb.newton(damping=1.5), r"damping: expected a number in \(0, 1\], got 1.5"),
    "damping of NaN": (
        lambda: jb.newton(damping=float("nan")),
        r"damping: expected a number in \(0, 1\], got nan",
    ),
    "diagonal by name": (lambda: jb.newton(diagonal="yes"), r"diagonal: expected True or False, got yes"),
    "newton itself": (lambda: jb.parallel(jb.newton), r"newton: expected a Newton or None, got function"),
    "newton as bool": (lambda: jb.parallel(True), r"newton: expected a Newton or None, got True"),
    "blocks of a carry of other shapes": (
        lambda: jb.unroll_by_newton(
            ATTENTION, *_problem(ATTENTION)[:1], None, jnp.ones((5, 3)), newton=jb.newton(diagonal=True)
        ),
        r"newton: expected diagonal=False for this cell, got diagonal=True; pass diagonal=False",
    ),
    "no Newton at all": (
        lambda: jb.unroll_by_newton(jb.elman(3, 4), None, None, jnp.ones((5, 3)), newton=3),
        r"newton: expected a Newton, got 3; make one by jb.newton\(\)",
    ),
}

test_messages = refused(BAD)


def test_methods_are_values():
    assert jb.parallel() is jb.parallel(newton=None)
    assert jb.parallel(jb.newton(5)) is jb.parallel(newton=jb.newton(iterations=5))
    assert repr(jb.parallel()) == "parallel()"
    assert repr(jb.parallel(jb.newton(5))).startswith("parallel(newton=newton(iterations=5)")

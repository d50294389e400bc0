"""`jb.scan` with marks, and the methods whose gradient is not that of the plain scan.

The right values are those of jax.lax.scan with jnp.where and jax.lax.stop_gradient in its step.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.bodies import BODIES
from support.body import OF_ALL, Body, H, T, W, draw, tanh_of
from support.scan_programs import EXACT, INEXACT, PLAIN, differences, orders, result_of, scan_of

import jax_bptt as jb

B = 3
WAYS = ["full", "checkpointed", "rtrl", "parallel", "newton", "autodiff"]


def _rows(w):
    """A step size for all rows, a counter and a state of each; y reads what was before."""

    def f(s, x):
        h = (1 - x["dt"]) * s["h"] + x["dt"] * tanh_of(w, s["h"], x["x"])
        return {"h": h, "n": s["n"] + 1}, (s["h"] * h, s["n"])

    return f


ROWS = Body(
    _rows,
    {"h": draw(60, B, H), "n": jnp.arange(B)},
    {"x": draw(61, T, B, H), "dt": jnp.abs(draw(62, T))},
    W,
)
_PATTERN = np.arange(T * B).reshape(T, B)
BY_ROW = {"mask": _PATTERN % 5 != 3, "reset": _PATTERN % 7 == 4, "cut": _PATTERN % 4 == 2}


def with_nan(body, mask):
    """The body with NaN in the x of every step that is masked."""
    wide = mask.reshape(mask.shape + (1,) * (3 - mask.ndim))
    return body._replace(xs={**body.xs, "x": jnp.where(wide, body.xs["x"], jnp.nan)})


def assert_agreement(body, cases, **given):
    """Each method of the cases is the derivative of its program."""

    programs = list(dict.fromkeys(program for _, program in cases.values()))

    @jax.jit
    def run(*args):
        wanted = [result_of(scan_of(p), body, args, **given) for p in programs]
        return wanted, {n: result_of(jb.scan, body, args, gradient=m, **given) for n, (m, _) in cases.items()}

    wanted, ours = run(body.weights, body.init, body.xs)
    wanted = dict(zip(programs, wanted, strict=True))
    wrong = {n: differences(one, wanted[cases[n][1]], body.tolerance) for n, one in ours.items()}
    assert not {n: which for n, which in wrong.items() if which}


def exact(*names):
    return {name: (EXACT[name], PLAIN) for name in names}


@pytest.mark.parametrize("marks", [OF_ALL, BY_ROW], ids=["of all", "by row"])
@pytest.mark.parametrize("mark", ["mask", "reset", "cut", "all"])
def test_each_mark(marks, mark):
    """With NaN in what is not read; a mark of its own forward, or for the rows from the last step."""
    chosen = marks if mark == "all" else {mark: marks[mark]}
    body = with_nan(ROWS, marks["mask"]) if "mask" in chosen else ROWS
    assert_agreement(body, exact("full", "checkpointed, few slots"), reverse=marks is BY_ROW, **chosen)


def test_every_exact_method_with_all_marks():
    names = [name for name in EXACT if name != "newton"]
    assert_agreement(with_nan(ROWS, BY_ROW["mask"]), exact(*names), **BY_ROW)


def test_newton_with_all_marks():
    body = BODIES["y reads both carries"]
    assert_agreement(body, exact("newton"), reverse=True, **OF_ALL)


def test_a_masked_step_divides_by_nothing():
    """The padding is zero, and the body divides by the length of x."""

    def build(w):
        def f(s, x):
            s = tanh_of(w, s, x / jnp.sqrt(jnp.sum(x * x)))
            return s, s

        return f

    def with_cond(f, init, xs, length, mask):
        def step(s, at):
            x, mask = at
            return jax.lax.cond(mask, f, lambda s, x: (s, jnp.zeros_like(s)), s, x)

        return jax.lax.scan(step, init, (xs, mask))

    mask = jnp.asarray(OF_ALL["mask"])
    body = Body(build, draw(65, H), jnp.where(mask[:, None], draw(66, T, H), 0.0), W)

    @jax.jit
    def run(*args):
        methods = {m: result_of(jb.scan, body, args, gradient=EXACT[m], mask=mask) for m in WAYS}
        return result_of(with_cond, body, args, mask=mask), methods

    wanted, ours = run(body.weights, body.init, body.xs)
    assert not {m: wrong for m in WAYS if (wrong := differences(ours[m], wanted, 1e-12))}


@pytest.mark.parametrize(
    "name", ["key in the carry", "init is the number 0.0", "constant output", "empty leaves"]
)
def test_marks_of_all_on_other_carries(name):
    """A key is held, too; a reset goes back to a Python number; a constant output is zero where masked."""
    assert_agreement(BODIES[name], exact("full", "checkpointed"), **OF_ALL)


def test_methods_that_are_not_exact():
    """With a counter in the carry; random truncation needs cuts."""
    cut = {"cut": jnp.asarray(OF_ALL["cut"])}
    assert_agreement(BODIES["counter"], {n: case for n, case in INEXACT.items() if n != "artbp"})
    assert_agreement(BODIES["counter"], {n: INEXACT[n] for n in ["artbp", "clipped"]}, **cut)


@pytest.mark.parametrize("name", ["complex", "float32 beside float64"])
def test_one_norm_of_numbers_of_every_kind(name):
    assert_agreement(BODIES[name], {"clipped": INEXACT["clipped"]})


def test_methods_that_are_not_exact_with_all_marks_from_the_last_step():
    assert_agreement(BODIES["y reads both carries"], INEXACT, reverse=True, **OF_ALL)


def test_methods_that_are_not_exact_with_marks_by_row():
    """But clipping, whose norm is that of all rows."""
    cases = {n: case for n, case in INEXACT.items() if n != "clipped"}
    assert_agreement(with_nan(ROWS, BY_ROW["mask"]), cases, **BY_ROW)


def test_second_derivatives_are_those_of_the_same_program():
    body = BODIES["y reads both carries"]
    cases = {n: INEXACT[n] for n in ("truncated to 3", "artbp", "clipped")}

    @jax.jit
    def run(*args):
        wanted = {n: orders(scan_of(p), body, args, False, **OF_ALL) for n, (_, p) in cases.items()}
        return wanted, {
            n: orders(jb.scan, body, args, False, gradient=m, **OF_ALL) for n, (m, _) in cases.items()
        }

    wanted, ours = run(body.weights, body.init, body.xs)
    assert not {n: wrong for n in cases if (wrong := differences(ours[n], wanted[n], 1e-12))}


def test_vmap_of_marks_is_marks_by_row():
    """Each row a sequence of its own, with its own marks; the marks are traced."""

    def f(s, x):
        new = tanh_of(W, s, x)
        return new, s * new

    def outputs(s, xs, marks, scan=jb.scan):
        return scan(f, s, xs, **marks)

    s, xs = draw(63, B, H), draw(64, T, B, H)
    mapped = jax.vmap(outputs, (0, 1, 1), (0, 1))

    def gradient(run, *args):
        out, back = jax.vjp(lambda s, xs: run(s, xs, args[2]), *args[:2])
        return out, back(jax.tree.map(jnp.cos, out))

    marks = jax.tree.map(jnp.asarray, BY_ROW)
    ours = jax.jit(lambda *args: [gradient(run, *args) for run in (mapped, outputs)])(s, xs, marks)
    wanted = jax.jit(lambda *args: gradient(lambda *a: outputs(*a, scan_of(PLAIN)), *args))(s, xs, marks)
    assert not [wrong for one in ours if (wrong := differences(one, wanted, 1e-12))]

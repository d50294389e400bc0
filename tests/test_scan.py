"""`jb.scan` is jax.lax.scan with another way to its gradient: every body, method and transform.

The right values are those of jax.vjp of jax.lax.scan, with random cotangents on every floating leaf of the
last carry and of ys, by every floating leaf of init, of xs and of the weights that the body closes over.
"""

import jax
import jax.numpy as jnp
import pytest
from support.bodies import BODIES
from support.body import H, T, W, draw, tanh_of, tanh_step
from support.device_meshes import ALL, MODES, ROWS, STEPS, spread_over_devices
from support.scan_programs import EXACT, differences, orders, result_of

import jax_bptt as jb


def plain(f, init, xs, length=None, reverse=False):
    return jax.lax.scan(f, init, xs, length=length, reverse=reverse)


def by_methods(body, methods, transform=lambda run: run, **given):
    """The result of lax.scan and that of each method."""

    def run(*args):
        ours = {m: result_of(jb.scan, body, args, gradient=EXACT[m], **given) for m in methods}
        return result_of(plain, body, args, build=body.plain, **given), ours

    return transform(run)(body.weights, body.init, body.xs)


def assert_agreement(body, methods, transform=jax.jit, **given):
    wanted, ours = by_methods(body, methods, transform, **given)
    wrong = {m: differences(one, wanted, body.tolerance) for m, one in ours.items()}
    assert not {m: which for m, which in wrong.items() if which}


@pytest.mark.parametrize(("number", "name"), list(enumerate(BODIES)))
def test_every_body(number, name):
    """Every second one reads from the last step to the first."""
    assert_agreement(BODIES[name], ["full", "checkpointed"], reverse=number % 2 == 1)


def test_every_exact_method():
    others = [name for name in EXACT if name not in ("full", "checkpointed")]
    assert_agreement(BODIES["y reads both carries"], others, reverse=True)


SOME = ["rtrl", "parallel", "full in chunks", "sliding over all steps", "clipped where nothing is"]


@pytest.mark.parametrize(
    "name",
    ["key in the carry", "root not taken", "length only", "no carry", "float32 beside float64", "counter"],
)
def test_other_ways_back_through_bodies_of_other_kinds(name):
    assert_agreement(BODIES[name], SOME)


@pytest.mark.parametrize("name", ["nested carry", "no carry", "float32 beside float64"])
def test_newton_with_other_carries(name):
    assert_agreement(BODIES[name], ["newton"])


def test_complex_numbers():
    """A derivative by influence or in parallel is of real numbers."""
    assert_agreement(
        BODIES["complex"], ["full in chunks", "sliding over all steps", "clipped where nothing is"]
    )


def test_one_step():
    body = BODIES["y reads both carries"]
    assert_agreement(body._replace(xs=body.xs[:1]), ["full", "checkpointed", "newton", *SOME])


@pytest.mark.parametrize("name", ["counter", "no output"])
def test_without_jit(name):
    assert_agreement(BODIES[name], ["full", "checkpointed", "parallel"], transform=lambda run: run)


@pytest.mark.parametrize(
    ("of", "methods"),
    [(0, ["full", "checkpointed, few slots", "rtrl", "parallel", "newton"]), (1, ["full"]), (2, ["full"])],
    ids=["weights", "init", "xs"],
)
def test_vmap(of, methods):
    body = BODIES["y reads both carries"]
    args = [body.weights, body.init, body.xs]
    args[of] = jax.tree.map(lambda z: jnp.stack([z, -z, z / 2]), args[of])
    mapped = body._replace(weights=args[0], init=args[1], xs=args[2])
    axes = [0 if i == of else None for i in range(3)]
    assert_agreement(mapped, methods, lambda run: jax.jit(jax.vmap(run, axes)))


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("y reads both carries", ["full", "checkpointed, few slots", "rtrl", "parallel"]),
        ("counter", ["full"]),
    ],
)
def test_second_derivatives(name, methods):
    """Reverse over reverse; the first method in forward mode over reverse, too."""
    body = BODIES[name]

    @jax.jit
    def run(*args):
        ours = {m: orders(jb.scan, body, args, m == methods[0], gradient=EXACT[m]) for m in methods}
        return orders(plain, body, args, True), ours

    wanted, ours = run(body.weights, body.init, body.xs)
    for name, one in ours.items():
        assert not differences(one, {order: wanted[order] for order in one}, 1e-12), name


SPREAD = ["full", "full in chunks", "checkpointed", "rtrl", "parallel", "newton"]


@pytest.mark.parametrize("mode", MODES)
def test_rows_that_are_spread_over_devices(mode):
    """The rows of init and xs are split, the weights are on every device."""

    def gradient(scan, **given):
        def run(*args):
            out, back = jax.vjp(lambda w, init, xs: scan(tanh_step(w), init, xs, **given), *args)
            return back(jax.tree.map(jnp.cos, out))

        return run

    def all_of_them(*args):
        return {m: gradient(jb.scan, gradient=EXACT[m])(*args) for m in SPREAD}

    args = W, draw(50, 4, H), draw(51, T, 4, H)
    wanted = jax.jit(gradient(jax.lax.scan))(*args)
    spread, placed = spread_over_devices(
        mode, all_of_them, (ALL, ROWS, STEPS), dict.fromkeys(SPREAD, (ALL, ROWS, STEPS)), args
    )
    found = jax.device_get(spread(*placed))
    assert not {m: wrong for m, one in found.items() if (wrong := differences(one, wanted, 1e-12))}


def test_a_body_that_reads_all_rows():
    """By a collective, under a named jax.vmap."""

    def f(s, x):
        new = tanh_of(W, s, x - jax.lax.pmean(s, "rows"))
        return new, s * new

    def gradient(scan, **given):
        def run(init, xs):
            out, back = jax.vjp(lambda init, xs: scan(f, init, xs, **given), init, xs)
            return out, back(jax.tree.map(jnp.cos, out))

        return jax.vmap(run, (0, 1), axis_name="rows")

    @jax.jit
    def run(*args):
        return gradient(jax.lax.scan)(*args), {
            m: gradient(jb.scan, gradient=EXACT[m])(*args) for m in ["full", "checkpointed"]
        }

    wanted, ours = run(draw(52, 4, H), draw(53, T, 4, H))
    assert not {m: wrong for m, one in ours.items() if (wrong := differences(one, wanted, 1e-12))}

"""What `jb.scan` compiles to: no sum over steps in its loops, few traces of the body, little memory."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from support.compile_options import OPTIMISED
from support.compiled_loops import innermost

import jax_bptt as jb

T, B, I, H = 16, 3, 4, 5  # noqa: E741
SHAPES = {"w_x": (I, H), "w_h": (H, H), "b": (H,)}
WEIGHTS = {name: jax.ShapeDtypeStruct(shape, "float64") for name, shape in SHAPES.items()}


def _gradient(scan, **given):
    def error(w, init, xs):
        last, ys = scan(lambda s, x: _step(w, s, x), init, xs, **given)
        return (last**2).sum() + (ys**2).sum()

    return jax.grad(error, (0, 1, 2))


def _step(w, s, x):
    """The y of the body is not the carry, and has no matrix."""
    z = s @ w["w_h"] + x @ w["w_x"]
    new = jnp.tanh(z + jnp.broadcast_to(w["b"], z.shape))
    return new, new * s


def _arguments(steps=T):
    init, xs = (jax.ShapeDtypeStruct(shape, "float64") for shape in ((B, H), (steps, B, I)))
    return WEIGHTS, init, xs


PASSED_ON = "get-tuple-element|parameter|copy|bitcast|constant|transpose"


def _sums_in_loops(compiled):
    """What the innermost loops make of the shape of a weight."""
    shapes = "|".join(",".join(map(str, shape)) for shape in SHAPES.values())
    made = rf"= f64\[(?:{shapes})\]\S* (?!{PASSED_ON})([\w\-]+)\("
    return [name for loop in innermost(compiled) for name in re.findall(made, loop)]


@pytest.mark.parametrize("gradient", [jb.full(), jb.full(recompute=True), jb.checkpointed()], ids=repr)
def test_no_weight_gradient_is_summed_in_a_loop(gradient):
    run = jax.jit(_gradient(jb.scan, gradient=gradient))
    assert _sums_in_loops(run.lower(*_arguments()).compile(OPTIMISED)) == []


def test_the_search_sees_the_sums_of_a_plain_scan():
    """Negative control: one for each of the three weights, at least."""
    assert len(_sums_in_loops(jax.jit(_gradient(jax.lax.scan)).lower(*_arguments()).compile(OPTIMISED))) >= 3


def _traces(steps, **given):
    """How often the gradient calls the body."""
    calls = []

    def counted(w, s, x):
        calls.append(1)
        return _step(w, s, x)

    def error(w, init, xs):
        last, ys = jb.scan(functools.partial(counted, w), init, xs, **given)
        return (last**2).sum() + (ys**2).sum()

    jax.jit(jax.grad(error)).trace(*_arguments(steps))
    return len(calls)


@pytest.mark.parametrize("gradient", [jb.full(), jb.checkpointed()], ids=repr)
def test_the_body_is_traced_a_few_times_for_any_length(gradient):
    assert _traces(50, gradient=gradient) == _traces(7, gradient=gradient) <= 1


def _reaction(w, u):
    """One step of a field that diffuses and reacts."""
    near = sum(jnp.roll(u, shift, axis) for shift in (-1, 1) for axis in (0, 1)) - 4 * u
    return u + w["step"] * (w["diffusion"] * near + w["growth"] * u - u**3 + w["field"])


def _temporaries(scan, **given):
    """Bytes for the gradient by weights and field of 4,096 steps."""

    def error(w, u):
        last, _ = scan(lambda u, _: (_reaction(w, u), None), u, None, length=4096, **given)
        return jnp.square(last).sum()

    field = jax.ShapeDtypeStruct((64, 64), "float32")
    number = jax.ShapeDtypeStruct((), "float32")
    w = {"step": number, "diffusion": number, "growth": number, "field": field}
    return (
        jax.jit(jax.grad(error, (0, 1)))
        .lower(w, field)
        .compile(OPTIMISED)
        .memory_analysis()
        .temp_size_in_bytes
    )


def test_temporaries_of_a_long_simulation_are_a_part_of_those_of_jax():
    jax_alone = _temporaries(jax.lax.scan)
    assert _temporaries(jb.scan) <= 0.3 * jax_alone
    assert _temporaries(jb.scan, gradient=jb.checkpointed(slots=16)) <= jax_alone / 35


def test_what_a_body_does_beside_its_numbers_is_done_once_a_step():
    """Also under jax.grad, whose backward pass runs the steps again; what cannot be left out is refused."""
    seen = []

    def noted(c, x):
        jax.debug.callback(lambda z: seen.append(float(z)), x[0])
        return jnp.tanh(c + x), None

    xs = jnp.arange(6.0).reshape(3, 2)
    for run in (lambda c: jb.scan(noted, c, xs)[0].sum(), jax.grad(lambda c: jb.scan(noted, c, xs)[0].sum())):
        seen.clear()
        jax.block_until_ready(run(jnp.ones(2)))
        jax.effects_barrier()
        assert sorted(seen) == [0.0, 2.0, 4.0]

    total = jax.new_ref(0.0)

    def added(c, x):
        total[...] = total[...] + x[0]
        return c + x, None

    jb.scan(added, jnp.ones(2), xs)
    assert float(total[...]) == 6.0
    with pytest.raises(ValueError, match=r"^scan: f: .* or a jax\.new_ref; use gradient=jb\.autodiff\(\)"):
        jax.grad(lambda c: jb.scan(added, c, xs)[0].sum())(jnp.ones(2))


def test_a_body_is_compiled_once_outside_jit():
    """A partial is a new object at each call, but not a new program."""
    from jax_bptt.unrolling import scan as module

    def scaled(a, c, x):
        return jnp.sin(a * c) + x, None

    once = functools.partial(scaled, 2.0)
    jb.scan(once, jnp.ones(2), jnp.ones((3, 2)))
    programs = len(module._COMPILED)
    jb.scan(once, jnp.zeros(2), jnp.ones((3, 2)))
    assert len(module._COMPILED) == programs > 0

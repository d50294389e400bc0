"""A program for a GPU does 8 steps in an iteration of its loops; it is lowered here, and not compiled."""

import functools

import jax
import jax.numpy as jnp
import pytest
import support.witnesses as w
from cases import make

import jax_bptt as jb
from jax_bptt.engine import over_steps

T = 16


def _of_cell(cell):
    return lambda w, xs: jnp.sum(jb.unroll(cell, cell.init(jax.random.key(0)), None, xs)[1])


def _of_scan(operations, w, xs):
    def body(carry, x):
        for _ in range(operations):
            carry = jnp.sin(w * carry)
        return carry, carry + x

    return jnp.sum(jb.scan(body, xs[0], xs)[1])


def _printing(w, xs):
    def body(carry, x):
        jax.debug.print("{}", x[0])
        return jnp.sin(w * carry), carry + x

    return jnp.sum(jb.scan(body, xs[0], xs)[1])


def _gradient(loss):
    return jax.jit(jax.grad(loss, (0, 1))).trace(0.5, jnp.ones((T, 3)))


def _iterations(loss, platform):
    """The n with an array [iterations, n steps, inputs] in the program for this platform."""
    text = _gradient(loss).lower(lowering_platforms=(platform,)).as_text()
    return [n for n in (2, 4, 8, 16) if f"tensor<{T // n}x{n}x3x" in text]


@pytest.mark.parametrize(
    "loss",
    [_of_cell(jb.lstm(3, 3)), functools.partial(_of_scan, 3)],
    ids=["cell", "small body"],
)
def test_a_loop_is_unrolled_for_a_gpu_and_for_no_other_machine(loss):
    assert _iterations(loss, "cuda") == [8]
    assert _iterations(loss, "cpu") == _iterations(loss, "tpu") == []


@pytest.mark.parametrize("loss", [functools.partial(_of_scan, 60), _printing], ids=["large", "prints"])
def test_a_body_that_is_large_or_has_effects_stands_once_in_a_program(loss):
    assert "platform_index" not in str(_gradient(loss).jaxpr)


def test_a_step_is_traced_once_for_both_programs():
    traced = []

    def step(h, x):
        traced.append(x)
        return jnp.tanh(h + x), h

    loop = jax.jit(functools.partial(over_steps.over_steps, jb.elman(3, 3), step))
    assert "platform_index" in str(loop.trace(jnp.ones(3), jnp.ones((T, 3))).jaxpr)
    assert len(traced) == 1


@pytest.mark.parametrize("steps", [16, 19])
def test_the_unrolled_loops_have_the_same_gradient(steps, monkeypatch):
    """Here on a CPU, with 3 steps left over of 19."""
    taken = []

    def for_a_gpu(*args, cuda, default):
        taken.append(cuda)
        return cuda(*args)

    case = make("lstm", steps, (3,), marks=("mask", "reset", "cut"))
    right = w.by_autodiff(case)
    monkeypatch.setattr(over_steps.jax.lax, "platform_dependent", for_a_gpu)
    assert not w.wrong(w.manual(case, jb.full(steps)._replace(name="unrolled")), right, 1e-12)
    assert [f.keywords["unroll"] for f in taken] == [8, 8]

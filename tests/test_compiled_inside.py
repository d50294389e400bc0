"""Without jax.jit a public function compiles once for each shape; inside a transformation nothing changes."""

import inspect
import re

import jax
import jax.numpy as jnp
import pytest

import jax_bptt as jb

CELL = jb.gru(3, 4)
NET = jb.network([CELL], jb.readout(4, 2))
PARAMS = CELL.init(jax.random.key(0))
NET_PARAMS = NET.init(jax.random.key(0))
XS, TARGETS = jnp.ones((6, 2, 3)), jnp.zeros((6, 2, 2))
OF_NET = NET_PARAMS, None, XS, TARGETS
CALLS = {
    "unroll": lambda: jb.unroll(CELL, PARAMS, None, XS),
    "unroll_states": lambda: jb.unroll_states(CELL, PARAMS, None, XS),
    "gradient of unroll": lambda: jax.grad(lambda p: jb.unroll(CELL, p, None, XS)[1].sum())(PARAMS),
    "net.apply": lambda: NET.apply(NET_PARAMS, None, XS),
    "value_and_grad": lambda: jb.value_and_grad(NET, jb.squared_error)(*OF_NET),
    "credit": lambda: jb.credit(NET, jb.squared_error, *OF_NET),
    "gradient_flow": lambda: jb.gradient_flow(NET, jb.squared_error, *OF_NET),
    "lag_profile": lambda: jb.lag_profile(CELL, PARAMS, None, XS),
    "lyapunov_spectrum": lambda: jb.lyapunov_spectrum(CELL, PARAMS, None, XS),
    "omega": lambda: jb.omega(NET, jb.squared_error, *OF_NET),
    "step": lambda: jb.step(CELL, PARAMS, None, XS[0]),
    "net.step": lambda: NET.step(NET_PARAMS, None, XS[0]),
    "rtrl_step": lambda: jb.rtrl_step(CELL, PARAMS, jb.rtrl_init(CELL, PARAMS, (2,)), XS[0]),
    "check_gradient": lambda: jb.check_gradient(NET, steps=3),
}
COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: COMPILED.append(event) if "backend_compile" in event else None
)


@pytest.mark.parametrize("name", CALLS)
def test_a_second_call_compiles_nothing(name):
    CALLS[name]()
    CALLS[name]()  # the first has compiled what is between the programs, too
    COMPILED.clear()
    CALLS[name]()
    assert COMPILED == []


def test_the_count_sees_a_compilation():
    COMPILED.clear()
    jax.jit(lambda x: jnp.sin(x) * 3)(XS).block_until_ready()
    assert len(COMPILED) > 0


def _instructions(f, *args):
    """The opcodes of the compiled program, by how often each is there."""
    text = jax.jit(f).lower(*args).compile().as_text()
    return sorted(re.findall(r" = \S+ ([\w-]+)\(", text))


@pytest.mark.parametrize("transform", [lambda f: f, jax.vmap, jax.grad], ids=["jit", "vmap", "grad"])
def test_inside_a_transformation_the_program_is_the_same(transform):
    def through(unroll):
        return transform(lambda p, xs: unroll(CELL, p, None, xs)[1].sum())

    params, xs = PARAMS, XS
    if transform is jax.vmap:
        params, xs = jax.tree.map(lambda z: jnp.stack([z, z]), (PARAMS, XS))
    inlined, plain = (_instructions(through(f), params, xs) for f in (jb.unroll, inspect.unwrap(jb.unroll)))
    assert len(inlined) > 20
    assert inlined == plain


def test_inside_jit_a_step_is_traced_as_often_as_without():
    def traces(unroll):
        count = []

        def step(units, s, u, v):
            count.append(1)
            return jb.Carry(jnp.tanh(u[0] + v[0]))

        cell = jb.make_cell(3, 4, step)
        params = cell.init(jax.random.key(0))
        jax.jit(jax.grad(lambda p: unroll(cell, p, None, XS)[1].sum())).lower(params)
        return len(count)

    assert traces(jb.unroll) == traces(inspect.unwrap(jb.unroll)) > 0


def test_forward_mode_of_autodiff_and_a_jitted_function_of_a_cell():
    def hs(params):
        return jb.unroll(CELL, params, None, XS, gradient=jb.autodiff())[1]

    _, along = jax.jvp(hs, (PARAMS,), (PARAMS,))
    assert jnp.isfinite(along).all()
    _, jitted = jax.jit(jb.unroll)(CELL, PARAMS, None, XS, gradient=jb.full())
    assert jnp.allclose(jitted, hs(PARAMS))

"""Cells with the functions of other frameworks, and weights of other frameworks inside jax.grad."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.live import compared

import jax_bptt as jb
from jax_bptt.adapters.functions_of_numbers import program_of
from jax_bptt.adapters.gated import elman_with, gru_with, lstm_with

T, B, I, H = 5, 2, 3, 4  # noqa: E741
DRAW = np.random.default_rng(0)


def _wave(z):
    return jnp.sin(z)


@jax.custom_vjp
def _with_a_derivative_of_its_own(z):
    return z


_with_a_derivative_of_its_own.defvjp(lambda z: (z, None), lambda _, d: (d / jnp.linalg.norm(d),))
SCALE = jnp.array(2.0)


def _numbers(*shape):
    return jnp.asarray(DRAW.normal(size=shape))


def _lstm(params, carry, x):
    i, f, g, o = jnp.split(x @ params.w_x + carry.h @ params.w_h + params.b[None], 4, -1)
    gate = jax.nn.hard_sigmoid
    c = gate(f) * carry.c + gate(i) * _wave(g)
    return jb.LSTMCarry(gate(o) * _wave(c), c)


def _gru(params, carry, x):
    u = jnp.split(x @ params.w_x + params.b[None], 3, -1)
    v = jnp.split(carry.h @ params.w_h + params.b_h[None], 3, -1)
    r, z = (jax.nn.hard_sigmoid(u[k] + v[k]) for k in (0, 1))
    return jb.Carry((1 - z) * _wave(u[2] + r * v[2]) + z * carry.h)


@pytest.mark.parametrize(("make", "step"), [(lstm_with, _lstm), (gru_with, _gru)])
def test_other_functions_stand_in_the_places_of_sigmoid_and_tanh(make, step):
    cell = make(I, H, jax.nn.hard_sigmoid, _wave, True)
    assert cell is make(I, H, jax.nn.hard_sigmoid, _wave, True)
    params = jax.tree.map(lambda p: _numbers(*p.shape), cell.init(jax.random.key(0)))
    carry = jax.tree.map(lambda s: _numbers(*s.shape), cell.initial_carry(params, (B,)))

    def by_loop(params, carry, xs):
        hs = []
        for x in xs:
            carry = step(params, carry, x)
            hs.append(carry.h)
        return carry, jnp.stack(hs)

    def ours(params, carry, xs):
        return jb.unroll(cell, params, carry, xs)

    found = compared(by_loop, ours, params, carry, _numbers(T, B, I))
    assert max(found.values()) < 1e-12


def test_the_usual_functions_give_the_cells_that_are_derived_by_hand():
    assert elman_with(I, H, jax.nn.relu, False) is jb.elman(I, H, activation="relu", bias=False)
    assert lstm_with(I, H, jax.nn.sigmoid, jnp.tanh, True) is jb.lstm(I, H)
    assert gru_with(I, H, jax.nn.sigmoid, jax.nn.tanh, True) is jb.gru(I, H)


@pytest.mark.parametrize(
    ("f", "is_one"),
    [
        (jax.nn.tanh, True),
        (jax.nn.hard_sigmoid, True),
        (_wave, True),
        (jax.nn.softmax, False),
        (lambda z: z / (1 + jnp.abs(z).sum(-1, keepdims=True)), False),
        (lambda z: jnp.flip(z, -1), False),
        (lambda z: z.sum(), False),
        (lambda z: z * jnp.minimum(1.0, 5.0 / jnp.max(jnp.abs(z))), False),
        (lambda z: jnp.tanh(SCALE * z), False),  # a value from outside, which may be a weight
        (_with_a_derivative_of_its_own, False),
        (lambda z: z.astype(jnp.float32), False),
    ],
)
def test_a_function_of_several_numbers_is_noticed(f, is_one):
    assert (program_of(f) is not None) == is_one
    assert jax.jit(lambda: jnp.array(program_of(f) is not None))() == is_one  # inside jax.jit too


def test_a_function_that_has_changed_makes_another_cell():
    scale = [1.0]

    def f(z):
        return jnp.tanh(scale[0] * z)

    makes = (
        lambda: elman_with(I, H, f, True),
        lambda: lstm_with(I, H, jax.nn.sigmoid, f, True),
        lambda: gru_with(I, H, jax.nn.sigmoid, f, True),
    )
    before = [make() for make in makes]
    assert all(make() is cell for make, cell in zip(makes, before, strict=True))
    scale[0] = 2.0
    assert not any(make() is cell for make, cell in zip(makes, before, strict=True))


def test_weights_of_a_framework_become_params_inside_a_gradient():
    """(∂p/∂w)ᵀ of the conversion: what goes to params and back is the same, so the gradient is one."""
    params = jax.tree.map(lambda p: _numbers(*p.shape), jb.gru(I, H).init(jax.random.key(0)))
    params = params._replace(b_h=params.b_h.at[: 2 * H].set(0))  # linen has one bias for r and z
    weights = jax.tree.map(jnp.asarray, jb.convert.to_linen(params))
    c = jax.tree.map(lambda p: _numbers(*p.shape), params)

    @jax.jit
    @jax.grad
    def gradient(weights):
        products = jax.tree.map(lambda p, k: (p * k).sum(), jb.convert.from_linen(weights), c)
        return sum(jax.tree.leaves(products))

    found = jb.convert.from_linen(gradient(weights))
    wanted = c._replace(b_h=c.b_h.at[: 2 * H].set(0))
    np.testing.assert_allclose(
        jnp.concatenate([found.w_x, found.w_h]), jnp.concatenate([wanted.w_x, wanted.w_h])
    )
    np.testing.assert_allclose(found.b, wanted.b)
    np.testing.assert_allclose(found.b_h, wanted.b_h)

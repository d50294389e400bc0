"""Factories: the same object for the same arguments, however they are given."""

import functools
from multiprocessing.reduction import ForkingPickler
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb


def _step(units, s_prev, u, v):
    return jb.Carry(jnp.tanh(u[0] + v[0]))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: jb.full(32), lambda: jb.full(chunk=np.int64(32))),
        (lambda: jb.full(recompute=1), lambda: jb.full(recompute=True)),
        (lambda: jb.truncated(20), lambda: jb.truncated(20, stride=20)),
        (lambda: jb.checkpointed(slots=2), lambda: jb.checkpointed(np.int32(2), None)),
        (lambda: jb.artbp(0.5), lambda: jb.artbp(rate=np.float32(0.5))),
        (lambda: jb.clipped(1), lambda: jb.clipped(max_norm=1.0)),
        (lambda: jb.parallel(), lambda: jb.parallel(newton=None)),
        (lambda: jb.lstm(3, 5), lambda: jb.lstm(np.int64(3), hidden_size=5, forget_bias=1)),
        (lambda: jb.make_cell(3, 5, _step), lambda: jb.make_cell(3, 5, _step, gates=1, carry_type=jb.Carry)),
    ],
)
def test_the_same_arguments_make_the_same_object(one, other):
    assert one() is other()


def test_python_says_which_argument_of_which_function_is_missing():
    with pytest.raises(
        TypeError,
        match=r"truncated\(\) missing a required argument: 'window'; write truncated\(window, stride=None\)",
    ):
        jb.truncated()
    with pytest.raises(TypeError, match=r"full\(\) got an unexpected keyword argument 'nope'"):
        jb.full(nope=1)


def test_a_cell_of_a_step_at_the_top_of_a_module_can_be_sent_to_another_process():
    assert len(ForkingPickler.dumps(jb.make_cell(3, 5, _step))) > 0


def test_a_recurrent_bias_without_a_recurrent_product_is_not_read():
    class Params(NamedTuple):
        w_x: jax.Array
        w_h: jax.Array
        b: jax.Array
        b_h: jax.Array

    def step(units, s_prev, u, v):
        return jb.Carry(jnp.tanh(u[0] + units["w_h"] * s_prev.h))

    def init(key):
        return Params(jnp.ones((3, 4)), jnp.ones(4), jnp.zeros(4), jnp.ones(4))

    cell = jb.make_cell(3, 4, step, init=init)
    run = functools.partial(jb.unroll, cell, carry=None, xs=jnp.ones((2, 3)))
    grads = jax.grad(lambda params: run(params)[1].sum())(init(None))
    assert (grads.b_h == 0).all()
    assert (grads.w_h != 0).any()

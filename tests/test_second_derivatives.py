"""Second derivatives of the hand-derived passes agree with those of the plain scan, under every mark."""

import functools

import jax
import jax.numpy as jnp
import pytest
import support.witnesses as w
from cases import METHODS, make

import jax_bptt as jb

LIMIT = 1e-12


def test_second_derivatives():
    """Forward over reverse works with every method; forward mode of the unroll itself with autodiff."""
    case = make("elman-tanh", 3, ())

    def loss(w_h, method):
        params = case.params._replace(w_h=w_h)
        return jnp.sum(jb.unroll(case.row.cell, params, case.carry, case.xs, gradient=method)[1] ** 2)

    found, wanted = (jax.hessian(loss)(case.params.w_h, m) for m in METHODS.values())
    assert not w.wrong({"w_h": found}, {"w_h": wanted}, LIMIT)
    forward = jax.jacfwd(loss)(case.params.w_h, jb.autodiff())
    assert not w.wrong({"w_h": jax.grad(loss)(case.params.w_h, jb.full())}, {"w_h": forward}, LIMIT)


@pytest.mark.parametrize("mark", ["cut", "reset"])
def test_second_derivatives_under_marks(mark):
    """A carry that is a number is one for the derivative of the gradient too."""
    case = make("elman-tanh", 6, (), marks=(mark,))

    def loss(w_h, method, marks=case.marks):
        params = case.params._replace(w_h=w_h)
        return jnp.sum(
            jb.unroll(case.row.cell, params, case.carry, case.xs, gradient=method, **marks)[1] ** 3
        )

    def slope(w_h, method):
        return jnp.sum(jax.grad(loss)(w_h, method) ** 2)

    methods = jb.autodiff(), jb.full(), jb.checkpointed(2, 2), jb.parallel(), jb.rtrl()
    for f in (jax.hessian(loss), jax.grad(slope)):
        wanted, *found = (jax.jit(f, static_argnums=1)(case.params.w_h, m) for m in methods)
        for one in found:
            assert not w.wrong({"w_h": one}, {"w_h": wanted}, LIMIT)
    every_third = {"cut": jnp.arange(6) % 3 == 0}
    by_cuts = jax.hessian(loss)(case.params.w_h, jb.autodiff(), {"cut": every_third["cut"].at[0].set(False)})
    truncated = jax.hessian(loss)(case.params.w_h, jb.truncated(3), {})
    assert not w.wrong({"w_h": truncated}, {"w_h": by_cuts}, LIMIT)


def test_second_derivatives_where_a_reset_and_a_cut_meet():
    """The cut ends the carry that came in; the reset begins at the initial carry, which is trained."""
    cell = jb.learn_carry(jb.elman(2, 3))
    params = jax.tree.map(lambda p: p + 0.3, cell.init(jax.random.key(0)))
    xs, meet = jax.random.normal(jax.random.key(1), (4, 2)), jnp.arange(4) == 2

    def loss(h_0, method):
        run = functools.partial(jb.unroll, cell, params._replace(h_0=h_0), None, xs, gradient=method)
        return jnp.sum(run(reset=meet, cut=meet)[1] ** 3)

    found, wanted = (jax.hessian(loss)(params.h_0, method) for method in METHODS.values())
    assert not w.wrong({"h_0": found}, {"h_0": wanted}, LIMIT)

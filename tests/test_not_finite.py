"""Where numbers are huge or not finite, every exact method is finite exactly where JAX is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import EXACT
from support.optimizers import SGD

import jax_bptt as jb

T, B = 6, 3
NET = jb.network([jb.lstm(2, 4), jb.gru(4, 3)], jb.readout(3, 2))
PARAMS = NET.init(jax.random.key(0))
CARRY = jax.tree.map(lambda s: s + 0.3, NET.initial_carry(PARAMS, (B,)))
XS, TARGETS = jax.random.normal(jax.random.key(1), (2, T, B, 2))
MASK = jnp.arange(T * B).reshape(T, B) % 5 != 3
PADDING, VALID = (1, 0, 0), (2, 1, 0)
METHODS = EXACT | {
    "artbp without cuts": jb.artbp(0.0),
    "clipped nowhere": jb.clipped(1e305),
    "parallel by newton": jb.parallel(jb.newton()),
}
ALIKE = ("autodiff", "full, half recomputed", "truncated, chunked")  # as JAX, and as "full in chunks"
POISONS = {"NaN": np.nan, "infinite": np.inf, "huge": 1e300, "denormal": 1e-310}


def _with_w_h(poison):
    lstm, gru = PARAMS.cells
    return PARAMS._replace(cells=(lstm._replace(w_h=lstm.w_h.at[1, 2].set(poison)), gru))


def _with_c(poison):
    lstm, gru = CARRY
    return lstm._replace(c=lstm.c.at[1, 0].set(poison)), gru


PLACES = {
    "w_h": lambda poison: (_with_w_h(poison), CARRY, XS, TARGETS),
    "carry": lambda poison: (PARAMS, _with_c(poison), XS, TARGETS),
    "xs": lambda poison: (PARAMS, CARRY, XS.at[VALID].set(poison), TARGETS),
    "targets": lambda poison: (PARAMS, CARRY, XS, TARGETS.at[VALID].set(poison)),
    "padding": lambda poison: (PARAMS, CARRY, XS.at[PADDING].set(poison), TARGETS.at[PADDING].set(poison)),
}


@functools.cache
def _program(method):
    run = jb.value_and_grad(NET, jb.squared_error)
    return jax.jit(functools.partial(run, gradient=method, mask=MASK, cut=MASK & False))


def _is_as(found, wanted):
    """The same NaN in values; the same leaves of the gradient finite, and these close."""
    (values, grads), (wanted_values, wanted_grads) = found, wanted
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11), values, wanted_values)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted_grads), strict=True):
        assert bool(jnp.isfinite(a).all()) == bool(jnp.isfinite(b).all())
        if jnp.isfinite(b).all():
            scale = jnp.abs(b).max()  # the norm of huge numbers is infinite
            assert float(jnp.abs(a - b).max()) <= 1e-11 * float(scale)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ALIKE])
def test_every_method_is_as_finite_as_jax(name):
    for place, poisoned in PLACES.items():
        for poison in POISONS.values():
            found, wanted = (_program(m)(*poisoned(poison)) for m in (METHODS[name], jb.autodiff()))
            _is_as(found, wanted)
            if place == "padding":
                _is_as(found, _program(jb.autodiff())(PARAMS, CARRY, XS, TARGETS))


def _begun(optimizer, params, carry):
    return jb.init_train_state(jax.random.key(0), NET, optimizer, (B,))._replace(params=params, carry=carry)


@pytest.mark.parametrize("place", [place for place in PLACES if place != "padding"])
def test_nothing_is_trained_on_what_is_not_finite(place):
    params, carry, xs, targets = PLACES[place](np.nan)
    train_step = jb.make_train_step(NET, jb.squared_error, SGD)
    before = _begun(SGD, params, carry)
    after, metrics = train_step(jax.tree.map(jnp.copy, before), jb.Batch(xs, targets, MASK))
    assert not metrics.finite
    for field in ("params", "opt_state", "carry"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, field), getattr(before, field))


def test_what_a_loss_or_an_optimizer_captures_has_a_derivative():
    """Unlike what a cell captures, which is refused: the gradient through time does not go there."""
    batch = jb.Batch(XS, TARGETS, MASK)

    def loss_after(weight, rate):
        def loss(ys, targets, mask):
            return weight * jb.squared_error(ys, targets, mask)

        state = _begun(optax.sgd(1.0), PARAMS, CARRY)
        state, _ = jb.make_train_step(NET, loss, optax.sgd(rate))(jax.tree.map(jnp.copy, state), batch)
        return jb.value_and_grad(NET, loss)(state.params, CARRY, *batch[:2], mask=MASK)[0][0]

    run = jax.jit(jax.value_and_grad(loss_after, (0, 1)))
    _, slopes = run(0.7, 1e-3)
    for slope, (weight, rate) in zip(slopes, [(1e-5, 0.0), (0.0, 1e-5)], strict=True):
        difference = run(0.7 + weight, 1e-3 + rate)[0] - run(0.7 - weight, 1e-3 - rate)[0]
        np.testing.assert_allclose(slope, difference / 2e-5, rtol=1e-6)

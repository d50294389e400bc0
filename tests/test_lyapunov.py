"""Lyapunov exponents agree with published values and closed forms."""

import functools
from typing import NamedTuple

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.linear_network import linear_network

import jax_bptt as jb
from jax_bptt.engine.phases import forward, linearise, previous
from jax_bptt.engine.run import Run
from jax_bptt.engine.sequence import Sequence
from jax_bptt.gradients.jacobians import WHOLE, jacobians


class Point(NamedTuple):
    h: jax.Array
    c: jax.Array


def _henon(params, s, x):
    return Point(1 - params * s.h**2 + s.c, 0.3 * s.h)


def _spectrum(cell, **more):
    return jax.jit(functools.partial(jb.lyapunov_spectrum, cell, **more))


def test_exponents_of_the_henon_map():
    """Published: 0.419 and −1.623 (a = 1.4, b = 0.3); their sum is log 0.3 exactly."""
    cell = jb.step_cell(1, 1, _henon, init=lambda key: jnp.asarray(1.4), carry_type=Point)
    found = _spectrum(cell, transient=100)(jnp.asarray(1.4), None, jnp.zeros((60_000, 1)))
    assert np.abs(found.exponents - np.array([0.419, -1.623])).max() < 0.005
    assert abs(found.exponents.sum() - np.log(0.3)) < 1e-9
    assert (found.finite == 59_900).all()


@pytest.mark.parametrize("name", ["elman-tanh", "lstm"])
def test_exponents_sum_to_the_mean_log_determinant(name):
    case = cases.make(name, 9, (2,))
    cell, sequence = case.row.cell, Sequence(case.xs)
    found = _spectrum(cell, key=jax.random.key(0))(case.params, case.carry, case.xs)

    @jax.jit
    def of_determinants(params, carry):
        run = Run(params, carry, None, sequence)
        states = forward(cell, run).states
        a = linearise(cell, run, previous(run, states), states)
        return jnp.linalg.slogdet(jacobians(cell, params, a, states, WHOLE))[1].mean(0)

    wanted = of_determinants(case.params, case.carry)
    assert np.abs(found.exponents.sum(-1) - wanted).max() < 1e-9 * np.abs(wanted).max()
    few = _spectrum(cell, exponents=2, key=None)(case.params, case.carry, case.xs)
    assert few.exponents.shape == (2, 2)


def test_an_orthogonal_linear_net_has_zeros_and_a_dead_unit_none():
    net, params, xs, _ = linear_network(1.0)
    found = _spectrum(net.layers[0].forward, transient=5)(params.cells[0], None, xs)
    assert np.abs(found.exponents).max() < 1e-12
    dead = jb.elman(2, 4, activation="relu")
    p = dead.init(jax.random.key(0))._replace(b=jnp.array([9.0, 9.0, 9.0, -99.0]))
    found = _spectrum(dead)(p, None, xs)
    assert jnp.isneginf(found.exponents[:, -1]).all()
    assert (found.finite[:, 0] == len(xs)).all()
    assert (found.finite[:, -1] == 0).all()


@pytest.mark.parametrize("dead", [0, 2])
def test_any_dead_unit_is_counted(dead):
    """R_ii is rounding there, not zero, when the unit is not the last."""
    cell = jb.elman(2, 4, activation="relu", recurrent=jb.orthogonal(0.1))
    params = cell.init(jax.random.key(0))._replace(b=jnp.full(4, 99.0).at[dead].set(-99.0))
    found = _spectrum(cell)(params, None, jnp.zeros((9, 2, 2)))
    assert jnp.isneginf(found.exponents[:, -1]).all()
    assert (np.asarray(found.finite) == [9, 9, 9, 0]).all()


def test_the_first_exponent_is_the_largest_where_no_unit_reads_another():
    cell = jb.indrnn(1, 3, activation="identity")
    params = cell.init(jax.random.key(0))._replace(w_h=jnp.array([0.2, 0.9, 0.5]))
    found = _spectrum(cell, transient=60)(params, None, jnp.zeros((70, 1)))
    assert np.allclose(jnp.exp(found.exponents), [0.9, 0.5, 0.2])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"exponents": 5}, "exponents: expected an integer from 1 to 4"),
        ({"transient": 20}, "transient: expected an integer from 0 to 19"),
    ],
)
def test_messages_of_lyapunov(more, message):
    net, params, xs, _ = linear_network(1.0)
    with pytest.raises(ValueError, match=message):
        jb.lyapunov_spectrum(net.layers[0].forward, params.cells[0], None, xs, **more)

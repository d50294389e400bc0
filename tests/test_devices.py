"""Rows that are spread over devices have the gradient of one device, for one sum over the devices."""

import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import support.witnesses as w
from cases import EXACT, make
from jax.sharding import PartitionSpec as P
from support.device_meshes import (
    ALL,
    LEARNED,
    MODES,
    NETS,
    ROWS,
    STEPS,
    B,
    T,
    collectives_of,
    mesh_of,
    own_loss,
    problem,
    put,
    spread_over_devices,
)

import jax_bptt as jb
from experiments.support.collectives import collectives


def _gradient(case: Any, method: Any) -> Any:
    """dE/dparams, dE/ds_0 and dE/dx, all arrays as arguments."""

    def run(params: Any, carry: Any, d_carry: Any, xs: Any, d_hs: Any, marks: Any) -> Any:
        here = case._replace(marks=marks)
        return jax.vjp(w.unrolled(here, method), params, carry, xs)[1]((d_carry, d_hs))

    return run


@functools.cache
def _of_one_device(name: str) -> tuple[Any, tuple, Any]:
    """A case, what its gradient takes, and the gradient."""
    case = make(name, T, (B,), marks=("mask", "reset", "cut"))
    args = case.params, case.carry, case.d_carry, case.xs, case.d_hs, case.marks
    return case, args, jax.jit(_gradient(case, jb.full()))(*args)


CASES = [("lstm", method, MODES[i % 3]) for i, method in enumerate(EXACT)]
OTHERS = ["elman-tanh", "gru-before-learned", "indrnn", "own-pointwise", "own-attention"]
CASES += [(kind, "full in chunks", MODES[i % 3]) for i, kind in enumerate(OTHERS)]
CASES += [("lstm", "newton", mode) for mode in MODES]


@pytest.mark.parametrize(("name", "method", "mode"), CASES)
def test_unroll_has_the_gradient_of_one_device(name, method, mode):
    case, args, wanted = _of_one_device(name)
    lie = ALL, ROWS, ROWS, STEPS, STEPS, STEPS
    run = _gradient(case, {**EXACT, "newton": jb.parallel(jb.newton())}[method])
    spread, placed = spread_over_devices(mode, run, lie, (ALL, ROWS, STEPS), args)
    assert not w.wrong(jax.device_get(spread(*placed)), wanted, 1e-12)


PROBLEMS = [  # what is run, whether it has a mask and weights, and where
    ("begun", jb.squared_error, "checkpointed", "", "auto"),
    ("begun", jb.squared_error, "truncated, chunked", "mask", "shard_map"),
    ("plain", jb.softmax_cross_entropy, "checkpointed", "mask", "explicit"),
    ("plain", jb.softmax_cross_entropy, "full", "mask", "shard_map"),  # devices with no valid row
    ("plain", jb.softmax_cross_entropy, "checkpointed", "mask, weight", "shard_map"),
    ("plain", jb.softmax_cross_entropy, "full", "weight", "auto"),
    ("plain", own_loss, "full", "weight", "explicit"),
    ("dropout", jb.squared_error, "full", "mask, weight", "explicit"),
    ("both ways", jb.squared_error, "full in chunks", "mask", "shard_map"),
    ("both ways", own_loss, "full", "", "auto"),
    ("last", jb.softmax_cross_entropy, "full", "mask, weight", "auto"),
]


@pytest.mark.parametrize(("name", "loss", "method", "given", "mode"), PROBLEMS)
def test_value_and_grad_are_those_of_one_device(name, loss, method, given, mode):
    run, args, lie = problem(name, loss, EXACT[method], "mask" in given, "weight" in given)
    spread, placed = spread_over_devices(mode, run, lie, ((ALL, ROWS), ALL), args)
    assert not w.wrong(jax.device_get(spread(*placed)), jax.jit(run)(*args), 1e-12)


IN_PIECES = [  # mesh, and what splits parameters: all devices, which have pieces of the sum, or some
    ((4,), ("data",), ("data",)),
    ((2, 2), ("data", "b"), ("data", "b")),
    ((2, 2), ("data", "b"), ("b",)),
]


def _piece(shape, by):
    """The first axis that 4 devices divide is split."""
    axis = next((axis for axis, n in enumerate(shape) if n % 4 == 0), None)
    return P() if axis is None else P(*[None] * axis, by)


def _in_pieces(shape, names, by):
    """The gradient where each parameter is in pieces, its collectives, and whether it lies as they do."""
    run, (params, *others), (_, *lie) = problem("plain", jb.softmax_cross_entropy, jb.full(), marked=True)
    mesh = mesh_of("explicit", shape, names)
    rows = tuple(P(*(names if axis == "data" else axis for axis in spec)) for spec in lie)
    params = jax.tree.map(lambda z: put(mesh, z, _piece(z.shape, by)), params)
    placed = (params, *(put(mesh, arg, spec) for arg, spec in zip(others, rows, strict=True)))
    compiled = jax.jit(run).lower(*placed).compile()
    (error, _), grads = compiled(*placed)
    alike = jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), grads, params)
    return jax.device_get((error, grads)), collectives(compiled), all(jax.tree.leaves(alike))


def _whole():
    run, args, _ = problem("plain", jb.softmax_cross_entropy, jb.full(), marked=True)
    (error, _), grads = jax.jit(run)(*args)
    return error, grads


@pytest.mark.parametrize(("shape", "names", "by"), IN_PIECES)
def test_the_gradient_of_a_parameter_in_pieces_is_summed_in_pieces(shape, names, by):
    found, sent, alike = _in_pieces(shape, names, by)
    assert not w.wrong(found, _whole(), 1e-12)
    assert alike
    assert not any(c.in_loop for c in sent)
    if by == names:  # the sum of all rows, E, and a bias of 2 numbers are left for all-reduces
        assert sum(c.numbers for c in sent if c.kind == "all-reduce") < 8 * 8
        assert "reduce-scatter" in {c.kind for c in sent}


def _mean(whole, tree, axes, pieces):
    return jax.lax.pmean((whole, tree), axes)


def _first_piece(z, axes, *, scatter_dimension, tiled):
    whole = jax.lax.pcast(jax.lax.psum(z, axes), axes, to="varying")
    return jnp.split(whole, 4, scatter_dimension)[0]


def test_a_wrong_sum_over_devices_is_found(monkeypatch):
    """The negative controls: a mean, and on every device the piece of the first."""
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["jax_bptt.networks.value_and_grad"], "sum_in_pieces", _mean)
        run, args, lie = problem("one layer", jb.squared_error, jb.full())
        spread, placed = spread_over_devices("auto", run, lie, None, args)
        assert w.wrong(jax.device_get(spread(*placed)), jax.jit(run)(*args), 1e-12)
    jax.clear_caches()
    monkeypatch.setattr(jax.lax, "psum_scatter", _first_piece)
    found, _, _ = _in_pieces((4,), ("data",), ("data",))
    assert w.wrong(found, _whole(), 1e-12)


@functools.cache
def _one_layer_on_one_device() -> Any:
    run, args, _ = problem("one layer", jb.squared_error, jb.full())
    return jax.device_get(jax.jit(run)(*args))


@pytest.mark.parametrize("method", EXACT)
def test_one_collective_and_none_in_a_loop(method):
    """Loss and gradient of all rows are one all-reduce of a tuple, after the loops."""
    run, args, lie = problem("one layer", jb.squared_error, EXACT[method])
    spread, placed = spread_over_devices("auto", run, lie, None, args)
    compiled = spread.lower(*placed).compile()
    assert collectives_of(compiled) == (["all-reduce"], [])
    assert not w.wrong(jax.device_get(compiled(*placed)), _one_layer_on_one_device(), 1e-12)


def test_compiled_for_cpus_the_gradient_of_a_plain_scan_has_a_collective_in_every_step():
    case = make("lstm", T, (B,))

    def gradient(params, carry, xs, d_hs):
        def error(params):
            return (w.plain(case)(params, carry, xs)[1] * d_hs).sum()

        return jax.grad(error)(params)

    args = case.params, case.carry, case.xs, case.d_hs
    spread, placed = spread_over_devices("auto", gradient, (ALL, ROWS, STEPS, STEPS), None, args)
    found = collectives(spread.lower(*placed).compile())
    assert sum(c.times for c in found if c.in_loop) >= T


# Meshes and shapes of other kinds.


@pytest.mark.parametrize("mode", ["auto", "explicit"])
@pytest.mark.parametrize(("shape", "rows"), [((2, 2), (8,)), ((2, 2), (2, 2)), ((4,), (6,))])
def test_other_meshes(mode, shape, rows):
    """Two axes for one of rows, two for two, and rows that no axis divides."""
    names = ("a", "b")[: len(shape)]
    mesh, case = mesh_of(mode, shape, names), make("gru", 3, rows)
    run = _gradient(case, jb.full(chunk=2))
    args = case.params, case.carry, case.d_carry, case.xs, case.d_hs, case.marks
    axes = (names,) if len(rows) == 1 else names
    axes = () if rows == (6,) else axes
    lie = (P(), P(*axes), P(*axes), P(None, *axes), P(None, *axes), P(None, *axes))
    placed = (put(mesh, arg, spec) for arg, spec in zip(args, lie, strict=True))
    assert not w.wrong(jax.device_get(jax.jit(run)(*placed)), jax.jit(run)(*args), 1e-12)


@pytest.mark.parametrize("mode", ["auto", "explicit"])
def test_vmap_and_second_derivatives(mode):
    mesh, case = mesh_of(mode), make("elman-tanh", 3, (4,))

    def twice(params, xs):
        def error(params, scale):
            _, hs = jb.unroll(case.row.cell, params, None, xs * scale)
            return (hs**2).sum()

        once = jax.grad(error)
        return jax.vmap(jax.grad(lambda p, s: (once(p, s).w_h ** 2).sum()), (None, 0))(params, scales)

    scales = jnp.array([0.5, 1.0, 2.0])
    found = jax.jit(twice)(put(mesh, case.params, ALL), put(mesh, case.xs, STEPS))
    assert not w.wrong(jax.device_get(found), jax.jit(twice)(case.params, case.xs), 1e-12)


@pytest.mark.parametrize("mode", ["auto", "explicit"])
def test_functions_that_are_not_split_by_rows_are_right_too(mode):
    """What looks into the gradient, Newton's method, streams."""
    net, cell = NETS["one layer"], LEARNED
    _, (params, carry, xs, judged, _), _ = problem("one layer", jb.squared_error, jb.full(), weighed=True)

    def run(params, carry, xs, judged):
        targets, weight = judged
        terms = jb.credit(net, jb.squared_error, params, carry, xs, targets, weight=weight).of_all
        states = jb.unroll_by_newton(cell, params.cells[0], carry[0], xs)
        begun = jb.rtrl_init(cell, params.cells[0], (B,))
        return terms, states[:2], jb.rtrl_step(cell, params.cells[0], begun, xs[0])

    args = params, carry, xs, judged
    spread, placed = spread_over_devices(mode, run, (ALL, ROWS, STEPS, STEPS), None, args)
    assert not w.wrong(jax.device_get(spread(*placed)), jax.jit(run)(*args), 1e-12)


def test_what_is_known_of_each_row_is_found_in_a_shard_map_of_the_caller():
    """Newton's method, exponents and lags; terms of the loss are sums over all rows, and are refused."""
    _, (params, _, xs, (targets, _), _), _ = problem("one layer", jb.squared_error, jb.full())
    cell, net = LEARNED, NETS["one layer"]

    def run(params, xs):
        p, d_hs = params.cells[0], jnp.ones((*xs.shape[:-1], cell.hidden_size))
        return {
            "newton": jb.unroll_by_newton(cell, p, None, xs)[1],
            "states": jb.lag_profile(cell, p, None, xs)[-1],
            "losses": jb.lag_profile(cell, p, None, xs, d_hs)[-1],
            # their sum does not depend on Q_0, which is drawn on each device
            "lyapunov": jb.lyapunov_spectrum(cell, p, None, xs).exponents.sum(-1)[None],
        }

    spread, placed = spread_over_devices("shard_map", run, (ALL, STEPS), STEPS, (params, xs))
    assert not w.wrong(jax.device_get(spread(*placed)), jax.jit(run)(params, xs), 1e-10)

    def terms(params, xs, targets):
        return jb.credit(net, jb.squared_error, params, None, xs, targets).of_all

    args = params, xs, targets
    spread, placed = spread_over_devices("shard_map", terms, (ALL, STEPS, STEPS), ALL, args)
    with pytest.raises(ValueError, match=r"credit: xs: expected the rows of all devices, got different rows"):
        spread(*placed)

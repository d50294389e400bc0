"""Bad input to cells and `unroll` is refused at trace time by a ValueError.

It says which argument, what was expected, what was given, and what to do.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.refusals import refused

import jax_bptt as jb

CELL = jb.elman(3, 5)
PARAMS = CELL.init(jax.random.key(0))
CARRY = CELL.initial_carry(PARAMS, (2,))
XS = jnp.ones((7, 2, 3))


def _unroll(cell=CELL, params=PARAMS, carry=CARRY, xs=XS, **kwargs):
    return jb.unroll(cell, params, carry, xs, **kwargs)


def _cell(step, **kwargs):
    cell = jb.make_cell(3, 5, step, **kwargs)
    return _unroll(cell=cell)


class _Extra(NamedTuple):
    w_x: jax.Array
    w_h: jax.Array
    b: jax.Array
    k: jax.Array


def _with_extra(k):
    """A cell with one more parameter; only shape [H] is unit-wise."""
    cell = jb.make_cell(
        3,
        5,
        lambda units, s, u, v: jb.Carry(units["k"] * u[0] + v[0]),
        init=lambda key: _Extra(*CELL.init(key), k),
    )
    return jb.unroll(cell, cell.init(jax.random.key(0)), CARRY, XS)


BAD = {
    "no time axis": (
        lambda: _unroll(xs=jnp.ones(3)),
        r"xs: expected one array \[T, ..., 3\], got float64\[3\]",
    ),
    "wrong input size": (
        lambda: _unroll(xs=jnp.ones((7, 2, 4))),
        r"xs: .* got float64\[7,2,4\]; time comes first",
    ),
    "empty sequence": (lambda: _unroll(xs=jnp.ones((0, 2, 3))), r"xs: .* T >= 1, got float64\[0,2,3\]"),
    "ragged list": (
        lambda: _unroll(xs=[jnp.ones((4, 3)), jnp.ones((6, 3))]),
        r"xs: expected one array .* got list of float64\[4,3\], float64\[6,3\]; stack the steps; pad",
    ),
    "integers": (
        lambda: _unroll(xs=jnp.ones((7, 2, 3), int)),
        r"xs: expected float64 .* int64\[7,2,3\]; cast numbers; for classes .* jb\.embedding",
    ),
    "bools": (lambda: _unroll(xs=jnp.ones((7, 2, 3), bool)), r"xs: expected float64 .* bool\[7,2,3\]"),
    "complex": (lambda: _unroll(xs=jnp.ones((7, 2, 3), complex)), r"xs: expected float64 .* complex128"),
    "other precision": (
        lambda: _unroll(xs=XS.astype("float32")),
        r"xs: expected float64 .* cast by xs.astype",
    ),
    "carry of other rows": (
        lambda: _unroll(carry=CELL.initial_carry(PARAMS, (4,))),
        r"carry\.h: expected shape \[2,5\], got float64\[4,5\]; xs is \[T, \*batch, 3\], time first",
    ),
    "carry of other precision": (
        lambda: _unroll(carry=jb.Carry(CARRY.h.astype("float32"))),
        r"carry\.h: expected float64, one dtype throughout, got float32\[2,5\]; cast it by astype",
    ),
    "bare array as carry": (
        lambda: _unroll(carry=CARRY.h),
        r"carry: expected Carry\(h=float64\[2,5\]\), got float64\[2,5\]",
    ),
    "params of another size": (
        lambda: _unroll(params=jb.elman(3, 6).init(jax.random.key(0))),
        r"params\.w_x: expected shape \[3,5\], got float64\[3,6\]; make them by cell.init",
    ),
    "params of mixed precision": (
        lambda: _unroll(params=PARAMS._replace(b=PARAMS.b.astype("float32"))),
        r"params\.b: expected float64, one dtype throughout, got float32\[5\]",
    ),
    "integer params": (
        lambda: _unroll(params=jax.tree.map(lambda p: p.astype(int), PARAMS)),
        r"params: expected floating arrays Params\(.*got Params\(w_x=int64\[3,5\]",
    ),
    "params as a dict": (
        lambda: _unroll(params=PARAMS._asdict()),
        r"params: expected Params\(.*got \{b: float64",
    ),
    "params with None": (
        lambda: _unroll(params=PARAMS._replace(b=None)),
        r"params: .* got Params\(.*b=None\)",
    ),
    "factory as cell": (lambda: _unroll(cell=jb.elman), r"cell: expected a Cell, got function"),
    "factory as gradient": (
        lambda: _unroll(gradient=jb.full),
        r"gradient: .* got function; pass jb.full\(\)",
    ),
    "name as gradient": (lambda: _unroll(gradient="full"), r"gradient: expected a gradient method, got full"),
    "zero size": (lambda: jb.elman(0, 5), r"input_size: expected an integer >= 1, got 0"),
    "float size": (lambda: jb.elman(3, 5.0), r"hidden_size: expected an integer >= 1, got 5.0"),
    "unknown activation": (
        lambda: jb.elman(3, 5, activation="tahn"),
        r"activation: expected one of tanh, .* got 'tahn'",
    ),
    "activation of no kind": (
        lambda: jb.elman(3, 5, activation=7),
        r"activation: expected a name or a hashable callable, got 7",
    ),
    "softmax as activation": (
        lambda: _unroll(cell=jb.elman(3, 5, activation=jax.nn.softmax)),
        r"raised by activation; it is given a single number; a softmax or a layer norm is no activation",
    ),
    "activation that adds an axis": (
        lambda: _unroll(cell=jb.elman(3, 5, activation=lambda z: jnp.stack([z, z]))),
        r"activation: expected float64\[\] from float64\[\], got float64\[2\]",
    ),
    "activation that changes dtype": (
        lambda: _unroll(cell=jb.elman(3, 5, activation=lambda z: z > 0)),
        r"activation: expected float64\[\] from float64\[\], got bool\[\]",
    ),
    "batch shape as int": (lambda: CELL.initial_carry(PARAMS, 2), r"batch_shape: expected a tuple .* got 2"),
    "negative batch": (lambda: CELL.initial_carry(PARAMS, (-1,)), r"batch_shape: .* got -1"),
    "step of another shape": (
        lambda: _cell(lambda units, s, u, v: jb.Carry(u[0].sum(-1))),
        r"step\.h: expected shape \[2,5\], got float64\[2\]; return the carry type",
    ),
    "step without carry type": (
        lambda: _cell(lambda units, s, u, v: u[0] + v[0]),
        r"step: expected Carry\(h=float64\[2,5\]\), got float64\[2,5\]; return the carry type",
    ),
    "adjoint of another shape": (
        lambda: _cell(
            lambda units, s, u, v: jb.Carry(u[0] + v[0]),
            linearise=lambda units, s_prev, u, v, s: (),
            adjoint=lambda units, a, lam: jb.StepCotangent(lam, (lam.h,), (lam.h, lam.h), {}),
        ),
        r"adjoint: expected StepCotangent\(.*return a StepCotangent",
    ),
    "adjoint alone": (
        lambda: jb.make_cell(3, 5, lambda *a: a[1], adjoint=lambda *a: a),
        r"linearise, adjoint: expected both or neither, got adjoint alone",
    ),
    "carry type without h": (
        lambda: jb.make_cell(3, 5, lambda *a: a[1], carry_type=tuple),
        r"carry_type: expected a NamedTuple class with a field h",
    ),
    "shared parameter that is not unit-wise": (
        lambda: _with_extra(jnp.zeros(1)),
        r"init: k: expected shape \[5\], got float64\[1\]; parameters other than w_x",
    ),
    "scalar parameter": (
        lambda: _with_extra(jnp.zeros(())),
        r"init: k: expected shape \[5\], got float64\[\]",
    ),
    "heads that do not divide H": (
        lambda: jb.gru(3, 8, heads=3),
        r"gru: heads: expected a divisor of hidden_size 8, got 3; choose a .* such as 9",
    ),
    "heads with the reset before": (
        lambda: jb.gru(3, 8, reset_after=False, heads=2),
        r"gru: heads: expected 1, as reset_after=False, got 2; leave out",
    ),
    "projection with heads": (
        lambda: jb.lstm(3, 8, heads=2, projection=4),
        r"lstm: projection: expected None, as heads=2, got 4; leave out heads=2 or projection",
    ),
    "projection with peepholes": (
        lambda: jb.lstm(3, 8, peephole=True, projection=4),
        r"lstm: projection: expected None, as peephole=True, got 4; leave out",
    ),
    "blocks of another width": (
        lambda: _cell(
            lambda units, s, u, v: s, init=lambda key: CELL.init(key)._replace(w_h=jnp.ones((5, 1, 5)))
        ),
        r"init: w_h: expected shape \[5,5\], got float64\[5,1,5\]; return a matrix, the blocks of n heads",
    ),
    "init of too few gates": (
        lambda: _cell(lambda units, s, u, v: s, gates=2, init=CELL.init),
        r"init: w_x: expected shape \[3,10\], got float64\[3,5\]",
    ),
    "init without names": (
        lambda: _cell(lambda units, s, u, v: s, init=lambda key: CELL.init(key)[:2]),
        r"init: expected a NamedTuple with w_x, w_h, got tuple of",
    ),
    "step of another dtype": (
        lambda: _cell(lambda units, s, u, v: jb.Carry(u[0].astype("float32"))),
        r"step\.h: expected float64, one dtype throughout, got float32\[2,5\]",
    ),
    "adjoint of another dtype": (
        lambda: _cell(
            lambda units, s, u, v: jb.Carry(u[0] + v[0]),
            linearise=lambda units, s_prev, u, v, s: (),
            adjoint=lambda units, a, lam: jb.StepCotangent(lam, (lam.h,), (lam.h.astype("float32"),), {}),
        ),
        r"adjoint\.v\[0\]: expected float64, one dtype throughout, got float32",
    ),
    "adjoint without its type": (
        lambda: _cell(
            lambda units, s, u, v: jb.Carry(u[0] + v[0]),
            linearise=lambda units, s_prev, u, v, s: (),
            adjoint=lambda units, a, lam: None,
        ),
        r"adjoint: expected StepCotangent\(.*got None",
    ),
    "step of no kind": (lambda: jb.make_cell(3, 5, None), r"step: expected a hashable function, got None"),
    "init of no kind": (
        lambda: jb.make_cell(3, 5, lambda *a: a[1], init="zeros"),
        r"init: expected a hashable function, got zeros",
    ),
    "bool as size": (lambda: jb.elman(True, 5), r"input_size: expected an integer >= 1, got True"),
    "list as activation": (
        lambda: jb.elman(3, 5, activation=["tanh"]),
        r"activation: expected a name or a hashable callable",
    ),
    "activation without a value": (
        lambda: _unroll(cell=jb.elman(3, 5, activation=lambda z: None)),
        r"activation: expected float64\[\] from float64\[\], got None",
    ),
    "activation that raises": (
        lambda: _unroll(cell=jb.elman(3, 5, activation=lambda z: {}[0])),
        r"^KeyError: 0, raised by activation at test_errors\.py, line \d+: .*; it is given a single number",
    ),
    "texts": (
        lambda: _unroll(xs=np.array([["a", "b", "c"]])),
        r"xs: expected an array that JAX takes, got <U1",
    ),
    "shape as xs": (
        lambda: _unroll(xs=jax.ShapeDtypeStruct(XS.shape, XS.dtype)),
        r"xs: expected an array that JAX takes, got .*ShapeDtypeStruct float64\[7,2,3\]; pass an array",
    ),
    "number as key": (lambda: CELL.init(0), r"key: expected a PRNG key, got 0; make one by jax.random.key"),
}

test_messages = refused(BAD)


@pytest.mark.parametrize("transform", [jax.jit, jax.grad])
def test_a_captured_tracer_is_refused(transform):
    """Its gradient would be zero without a word; as a parameter it is right."""

    def loss(slope):
        cell = jb.elman(3, 5, activation=lambda z: jnp.tanh(slope * z))
        return jnp.sum(jb.unroll(cell, PARAMS, CARRY, XS)[1])

    with pytest.raises(ValueError, match=r"cell: .* got a captured tracer float64\[\]; make values"):
        transform(loss)(1.5)


def test_autodiff_takes_a_captured_tracer():
    def loss(slope, method):
        cell = jb.elman(3, 5, activation=lambda z: jnp.tanh(slope * z))
        return jnp.sum(jb.unroll(cell, PARAMS, CARRY, XS, gradient=method)[1])

    found = jax.grad(loss)(1.5, jb.autodiff())
    difference = (loss(1.5 + 1e-5, jb.full()) - loss(1.5 - 1e-5, jb.full())) / 2e-5
    assert abs(float(found - difference)) < 1e-7 * abs(float(found))


def test_errors_come_at_trace_time():
    with pytest.raises(ValueError, match="xs"):
        jax.eval_shape(
            lambda xs: jb.unroll(CELL, PARAMS, CARRY, xs), jax.ShapeDtypeStruct((7, 2, 9), XS.dtype)
        )


def test_nan_is_not_hidden():
    carry, hs = _unroll(xs=XS.at[3, 0, 0].set(np.nan))
    assert np.isnan(hs[3:, 0]).all()
    assert not np.isnan(hs[:, 1]).any()
    assert np.isnan(carry.h[0]).all()

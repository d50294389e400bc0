"""Bad masks, layers, own cells and initial values are refused by a ValueError that says what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.optimizers import SGD
from support.refusals import refused

import jax_bptt as jb

CELL = jb.lstm(3, 5)
PARAMS = CELL.init(jax.random.key(0))
XS = jnp.ones((7, 2, 3))
MASK = jnp.ones((7, 2), bool)
NET = jb.network([jb.layer(CELL, dropout=0.5)], jb.readout(5, 2))
NET_PARAMS = NET.init(jax.random.key(0))
TARGETS = jnp.zeros((7, 2, 2))


def _unroll(cell=CELL, params=PARAMS, **marks):
    return jb.unroll(cell, params, None, XS, **marks)


def _step_cell(step, init=lambda key: jax.random.normal(key, (5, 5)), **kwargs):
    cell = jb.step_cell(3, 5, step, init, **kwargs)
    return _unroll(cell, cell.init(jax.random.key(0)))


def _value_and_grad(loss=jb.squared_error, **kwargs):
    return jb.value_and_grad(NET, loss)(NET_PARAMS, None, XS, TARGETS, **kwargs)


BAD = {
    "mask of one row": (
        lambda: _unroll(mask=MASK[:, 0]),
        r"mask: expected bool\[7,2\], got bool\[7\]; one bool for each step and row",
    ),
    "mask of floats": (
        lambda: _unroll(mask=MASK.astype(float)),
        r"mask: expected bool\[7,2\], got float64\[7,2\]",
    ),
    "mask with batch first": (lambda: _unroll(mask=MASK.T), r"mask: expected bool\[7,2\], got bool\[2,7\]"),
    "lengths as mask": (
        lambda: _unroll(mask=jnp.array([7, 3])),
        r"mask: expected bool\[7,2\], got int64\[2\].*mask_of_lengths",
    ),
    "list as mask": (lambda: _unroll(mask=[[True]]), r"mask: expected bool\[7,2\], got list"),
    "reset of one step": (lambda: _unroll(reset=MASK[:1]), r"reset: expected bool\[7,2\], got bool\[1,2\]"),
    "reset as bool": (lambda: _unroll(reset=True), r"reset: expected bool\[7,2\], got True"),
    "cut of integers": (
        lambda: _unroll(cut=MASK.astype(int)),
        r"cut: expected bool\[7,2\], got int64\[7,2\]",
    ),
    "mask as reverse": (lambda: _unroll(reverse=MASK), r"reverse: expected True or False, got bool\[7,2\]"),
    "float lengths": (
        lambda: jb.mask_of_lengths(jnp.array([1.0]), 3),
        r"lengths: expected integers, got float64\[1\]",
    ),
    "lengths beyond T": (
        lambda: jb.mask_of_lengths(jnp.array([1, 4]), 3),
        r"lengths: expected integers from 0 to 3, got int64\[2\] from 1 to 4; pad to the longest",
    ),
    "negative length": (lambda: jb.mask_of_lengths(jnp.array([-1]), 3), r"lengths: .* from -1 to -1"),
    "mask in a network": (
        lambda: NET.apply(NET_PARAMS, None, XS, mask=MASK[0]),
        r"mask: expected bool\[7,2\], got bool\[2\]",
    ),
    "mask of a loss": (
        lambda: jb.squared_error(TARGETS, TARGETS, MASK[..., None]),
        r"mask: expected bool\[7, 2\], got bool\[7,2,1\]",
    ),
    "loss that takes no mask": (
        lambda: _value_and_grad(lambda ys, d: jnp.sum(ys), mask=MASK),
        r"loss: expected a function that takes the mask, got function; give it a third argument mask",
    ),
    "loss with another third argument": (
        lambda: _value_and_grad(lambda ys, d, weights=None: jnp.sum(ys), mask=MASK),
        r"loss: expected a function that takes the mask",
    ),
    "several keys": (
        lambda: _value_and_grad(key=jax.random.split(jax.random.key(0), 3)),
        r"key: expected one PRNG key, got key<fry>\[3\]",
    ),
    "carry with a part missing": (
        lambda: jb.unroll(CELL, PARAMS, jb.LSTMCarry(None, jnp.ones((2, 5))), XS),
        r"carry: expected LSTMCarry\(h=float64\[2,5\], c=.*, got LSTMCarry\(h=None, .*make it by cell",
    ),
    "word for a flag": (
        lambda: jb.gru(3, 5, reset_after="no"),
        r"reset_after: expected True or False, got no",
    ),
    "number for a flag": (lambda: jb.lstm(3, 5, peephole=1), r"peephole: expected True or False, got 1"),
    "word for residual": (
        lambda: jb.layer(jb.gru(3, 3), residual="no"),
        r"residual: expected True or False, got no",
    ),
    "function among the parameters": (
        lambda: jb.check_cell(jb.step_cell(3, 5, lambda p, s, x: s, lambda key: (jnp.ones(3), jnp.tanh))),
        r"init: expected a pytree of floating arrays, got .*; keep other values in a closure",
    ),
    "number as key": (lambda: _value_and_grad(key=3), r"key: expected a PRNG key, got 3"),
    "dropout trained without a key": (
        lambda: jb.make_train_step(NET, jb.squared_error, SGD)(
            jb.init_train_state(jax.random.key(0), NET, SGD, (2,)), jb.Batch(XS, TARGETS)
        ),
        r"batch\.key: expected a PRNG key for the network's dropout, got None; pass a new one",
    ),
    "dropout of more than all": (
        lambda: jb.layer(CELL, dropout=1.5),
        r"dropout: expected a probability from 0 to 1, got 1.5",
    ),
    "dropout as bool": (lambda: jb.layer(CELL, dropout=True), r"dropout: expected a probability .* got True"),
    "recurrent dropout of a step": (
        lambda: jb.layer(jb.step_cell(3, 5, lambda p, s, x: s, lambda key: key), recurrent_dropout=0.5),
        r"recurrent_dropout: expected 0 for a layer without such a matrix, got step_cell",
    ),
    "recurrent dropout of a diagonal": (
        lambda: jb.layer(CELL, backward=jb.indrnn(3, 5), recurrent_dropout=0.5),
        r"recurrent_dropout: expected 0 for a layer without such a matrix, got indrnn\(3, 5\)",
    ),
    "sum of one direction": (
        lambda: jb.layer(CELL, merge="sum"),
        r"merge: expected 'concatenate', as there is one direction, got 'sum'; pass backward",
    ),
    "sum of other sizes": (
        lambda: jb.layer(CELL, backward=jb.elman(3, 4), merge="mean"),
        r"backward: expected 5 units, as cell, got 4 units; a mean is of equal sizes",
    ),
    "merge of no kind": (
        lambda: jb.layer(CELL, merge="mul"),
        r"merge: expected 'concatenate' or 'sum' or 'mea",
    ),
    "residual of other size": (
        lambda: jb.layer(CELL, residual=True),
        r"residual: expected as many features out as in, got 3 features in and 5 out",
    ),
    "residual of two directions": (
        lambda: jb.layer(jb.gru(5, 5), backward=jb.gru(5, 5), residual=True),
        r"residual: .* got 5 features in and 10 out",
    ),
    "directions of unequal input": (
        lambda: jb.layer(CELL, backward=jb.lstm(4, 5)),
        r"backward: expected input_size 3, as cell, got input_size 4",
    ),
    "factory as layer": (lambda: jb.layer(jb.lstm), r"cell: expected a Cell, got function"),
    "factory as direction": (
        lambda: jb.layer(CELL, backward=jb.lstm),
        r"backward: expected a Cell, got function",
    ),
    "last of a number": (lambda: jb.last(3), r"readout: expected a Readout, got 3"),
    "readout of one direction": (
        lambda: jb.network([jb.layer(CELL, backward=CELL)], jb.readout(5, 2)),
        r"cells: expected hidden sizes \[5\], .* got \[10\]",
    ),
    "carry of one direction": (
        lambda: jb.network([jb.layer(CELL, backward=CELL)], jb.readout(10, 2)).apply(
            jb.NetworkParams((jb.Directions(PARAMS, PARAMS),), jb.readout(10, 2).init(jax.random.key(0))),
            (CELL.initial_carry(PARAMS, (2,)),),
            XS,
        ),
        r"carry: expected tuple of Directions\(.*, got tuple of LSTMCarry",
    ),
    "name as forget bias": (
        lambda: jb.lstm(3, 5, forget_bias="one"),
        r"forget_bias: expected a finite number, got 'one'",
    ),
    "a forget bias without biases": (
        lambda: jb.lstm(3, 5, forget_bias=2.0, bias=False),
        r"forget_bias: expected its default 1.0, as bias=False, got 2.0; .* leave out forget_bias or",
    ),
    "chrono without biases": (
        lambda: jb.gru(3, 5, update_bias=jb.chrono(9), bias=False),
        r"update_bias: expected its default 0.0, as bias=False, got Chrono\(longest=9\)",
    ),
    "infinite update bias": (
        lambda: jb.gru(3, 5, update_bias=np.inf),
        r"update_bias: expected a finite number, got inf",
    ),
    "chrono of two steps": (
        lambda: jb.chrono(2),
        r"longest: expected an integer from 3 to 2147483647, got 2",
    ),
    "gain as array": (
        lambda: jb.orthogonal(jnp.ones(())),
        r"gain: expected a finite number, got float",
    ),
    "matrix as initialiser": (
        lambda: jb.elman(3, 5, recurrent=np.eye(5)),
        r"recurrent: expected a hashable initialiser, got float64\[5,5\]; pass jb.orthogonal\(\)",
    ),
    "rate of one": (lambda: jb.leaky(3, 5, rate=1.0), r"rate: expected a number between 0 and 1, got 1.0"),
    "learned twice": (
        lambda: jb.learn_carry(jb.learn_carry(CELL)),
        r"cell: expected NamedTuple params and an initial carry of zeros, got learn_carry.*; let init make",
    ),
    "learned of a dict": (
        lambda: jb.learn_carry(jb.step_cell(3, 5, lambda p, s, x: s, lambda key: {"w": jnp.ones(3)})),
        r"cell: expected NamedTuple params and an initial carry of zeros",
    ),
    "learned of no cell": (lambda: jb.learn_carry(3), r"cell: expected a Cell, got 3"),
    "part of a derivative": (
        lambda: _step_cell(lambda p, s, x: s, adjoint=lambda p, a, lam: lam),
        r"linearise, adjoint, contract: expected all or none, got adjoint; leave all out",
    ),
    "step of another shape": (
        lambda: _step_cell(lambda p, s, x: jb.Carry(x)),
        r"step\.h: expected shape \[2,5\], got float64\[2,3\]; return the carry type",
    ),
    "step of an array": (
        lambda: _step_cell(lambda p, s, x: s.h),
        r"step: expected Carry\(h=float64\[2,5\]\), got float64\[2,5\]",
    ),
    "initial carry of one row": (
        lambda: _step_cell(lambda p, s, x: s, initial_carry=lambda p, rows: jb.Carry(jnp.zeros(5))),
        r"initial_carry\['h'\]: expected shape \[2,5\], got float64\[5\]; return a NamedTuple with h",
    ),
    "initial carry without batch axes": (
        lambda: _step_cell(
            lambda p, s, x: s,
            carry_type=jb.LSTMCarry,
            initial_carry=lambda p, rows: jb.LSTMCarry(jnp.zeros((*rows, 5)), jnp.zeros((4, 5))),
        ),
        r"initial_carry\.c: expected float64\[2,\.\.\.\], got float64\[4,5\]; put the batch axes first",
    ),
    "another dtype in the carry": (
        lambda: _step_cell(
            lambda p, s, x: s,
            carry_type=jb.LSTMCarry,
            initial_carry=lambda p, rows: jb.LSTMCarry(jnp.zeros((*rows, 5)), jnp.zeros(rows, "float32")),
        ),
        r"initial_carry\.c: expected float64\[2,\.\.\.\], got float32\[2\]",
    ),
    "init of integers": (
        lambda: _step_cell(lambda p, s, x: s, init=lambda key: jnp.ones((5, 5), int)),
        r"params: expected floating arrays int64\[5,5\], got int64\[5,5\]; init must return",
    ),
    "adjoint of a wrong shape": (
        lambda: _step_cell(
            lambda p, s, x: s,
            linearise=lambda p, s, u, s_next: (),
            adjoint=lambda p, a, lam: jb.Carry(lam.h[:2]),
            contract=lambda p, s_prev, xs, a, lam: (p, xs),
        ),
        r"adjoint\.h: expected shape \[2,5\], got float64\[2,2\]; return the cotangent of s_prev",
    ),
    "contract of a wrong shape": (
        lambda: _step_cell(
            lambda p, s, x: s,
            linearise=lambda p, s, u, s_next: (),
            adjoint=lambda p, a, lam: lam,
            contract=lambda p, s_prev, xs, a, lam: (p[0], xs),
        ),
        r"contract: expected shape \[5,5\], got float64\[5\]; return the gradient of params",
    ),
    "no step": (lambda: jb.step_cell(3, 5, None, lambda key: key), r"step: expected a hashable function"),
    "check of a factory": (lambda: jb.check_gradient(jb.lstm), r"cell: expected a Cell or a Network, got"),
    "check of a network as cell": (lambda: jb.check_cell(NET), r"cell: expected a Cell, .*jb.check_gradient"),
    "check of a network backwards": (
        lambda: jb.check_gradient(NET, reverse=True),
        r"reverse: expected False for a network, got True",
    ),
    "check of no rows": (
        lambda: jb.check_gradient(CELL, batch_shape=(0,)),
        r"xs, batch_shape: expected at least one row, got float64\[5,0,3\]",
    ),
    "check under a short mask": (
        lambda: jb.check_gradient(CELL, mask=MASK),
        r"mask: expected bool\[5,2\], got bool\[7,2\]",
    ),
}

test_messages = refused(BAD)


def test_a_captured_tracer_in_any_step_is_refused():
    def loss(slope):
        cell = jb.step_cell(5, 5, lambda p, s, x: jb.Carry(jnp.tanh(slope * (x + s.h @ p))), _square)
        return jnp.sum(jb.unroll(cell, cell.init(jax.random.key(0)), None, jnp.ones((4, 5)))[1])

    with pytest.raises(ValueError, match=r"cell: .* got a captured tracer float64\[\]; make values"):
        jax.grad(loss)(1.5)


def _square(key):
    return jax.random.normal(key, (5, 5))


def test_nan_in_a_valid_step_is_not_hidden_and_stays_in_its_row():
    mask = MASK.at[2, 0].set(False)
    _, hs = jb.unroll(CELL, PARAMS, None, XS.at[2:4, 0].set(jnp.nan), mask=mask)
    assert np.isfinite(hs[:3]).all()
    assert np.isnan(hs[3:, 0]).all()
    assert np.isfinite(hs[:, 1]).all()


def test_lengths_inside_jit():
    mask = jax.jit(lambda lengths: jb.mask_of_lengths(lengths, 3))(jnp.array([2, 9]))
    assert mask.tolist() == [[True, True], [True, True], [False, True]]
    constant = jnp.array([2, 0])
    assert jax.jit(lambda: jb.mask_of_lengths(constant, 3))().tolist() == [[True, False]] * 2 + [[False] * 2]
    with pytest.raises(ValueError, match=r"lengths: .* from 0 to 2"):
        jax.jit(lambda: jb.mask_of_lengths(constant, 1))()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint32"])
def test_narrow_lengths(dtype):
    """T may be larger than the integers of lengths can say."""
    lengths = jnp.array([100, 0], dtype)
    for mask in (jb.mask_of_lengths(lengths, 300), jax.jit(lambda n: jb.mask_of_lengths(n, 300))(lengths)):
        assert mask.sum(0).tolist() == [100, 0]

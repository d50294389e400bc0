"""One step at a time gives the numbers of the sequence, bit for bit, and the derivatives of the sequence."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import FORMS, KINDS, make

import jax_bptt as jb

T, FIRST = 100, 4  # 96 rows of a sequence and more are multiplied alike


def _steps(step, params, carry, xs, marks):
    """The carry and the outputs of a loop over xs."""
    outputs = []
    for t, x in enumerate(xs):
        carry, h = step(params, carry, x, **{name: mark[t] for name, mark in marks.items()})
        outputs.append(h)
    return carry, jnp.stack(outputs)


def _same(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize(
    ("name", "batch", "dtype"),
    [(name, (), "float32") for name in KINDS + FORMS]
    + [("mgu", (7,), "float32"), ("lstm", (64,), "float32")]
    + [("lstm", (64,), "float64"), ("gru-before-learned", (), "float64"), ("own-attention", (), "float64")],
)
def test_a_step_is_that_of_the_sequence_bit_for_bit(name, batch, dtype):
    case = make(name, T, batch, dtype)
    cell = case.row.cell
    found = _steps(lambda *at: jb.step(cell, *at), case.params, case.carry, case.xs[:FIRST], {})[1]
    _same(found, jb.unroll(cell, case.params, case.carry, case.xs)[1][:FIRST])


@pytest.mark.parametrize(("inputs", "hidden", "rows"), [(64, 100, 1), (5, 5, 64), (3, 16, 2)])
def test_bit_for_bit_where_few_rows_are_multiplied_otherwise(inputs, hidden, rows):
    cell = jb.gru(inputs, hidden)
    params = jax.tree.map(lambda p: p.astype("float32"), cell.init(jax.random.key(0)))
    xs = jax.random.normal(jax.random.key(1), (T, rows, inputs), "float32")
    found = _steps(lambda *at: jb.step(cell, *at), params, None, xs[:FIRST], {})[1]
    _same(found, jb.unroll(cell, params, None, xs)[1][:FIRST])


def test_marks_of_a_step_are_those_of_the_sequence():
    case = make("lstm-learned-carry", T, (2,), marks=("mask", "reset"))
    cell = case.row.cell
    found = _steps(lambda *at, **marks: jb.step(cell, *at, **marks), case.params, None, case.xs, case.marks)
    _same(found, jb.unroll(cell, case.params, None, case.xs, **case.marks))


@pytest.mark.parametrize("read", [lambda z: z, jb.last], ids=["every step", "last"])
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_a_network_takes_the_steps_of_its_sequence(read, dtype):
    layers = [jb.gru(3, 5), jb.layer(jb.lstm(5, 5), residual=True, dropout=0.5)]
    net = jb.network(layers, read(jb.readout(5, 2, activation="tanh")))
    params = net.init(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (T, 2, 3))
    mask, reset = (jax.random.bernoulli(jax.random.key(k), 0.7, (T, 2)) for k in (2, 3))
    # with `last` a masked step has the output of the last valid one
    marks = {"reset": reset} if read is jb.last else {"mask": mask, "reset": reset}
    carry, ys = _steps(lambda *at, **marks: net.step(*at, **marks, dtype=dtype), params, None, xs, marks)
    _same((carry, ys[-1] if read is jb.last else ys), net.apply(params, None, xs, **marks, dtype=dtype))


def test_the_gradient_through_a_loop_of_steps():
    case = make("gru", 3, (3,), marks=("mask", "reset"))
    cell = case.row.cell

    def loss(run):
        return lambda p, s, xs: sum(jnp.vdot(jnp.cos(z), z) for z in jax.tree.leaves(run(p, s, xs)))

    by_steps = loss(lambda *at: _steps(lambda *a, **m: jb.step(cell, *a, **m), *at, case.marks))
    at_once = loss(lambda *at: jb.unroll(cell, *at, **case.marks, gradient=jb.autodiff()))
    xs = jnp.where(jnp.isnan(case.xs), 0, case.xs)
    at = case.params, case.carry, xs
    for derivative in (
        lambda f: jax.jvp(f, at, at),
        lambda f: jax.jvp(jax.grad(f, (0, 1, 2)), at, at),
        lambda f: jax.vmap(jax.grad(f), (None, None, 0))(case.params, case.carry, jnp.stack([xs, 2 * xs])),
    ):
        found, wanted = jax.jit(lambda f=derivative: (f(by_steps), f(at_once)))()
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            assert jnp.linalg.norm(a - b) <= 1e-12 * jnp.linalg.norm(b)


def test_rows_of_vmap_are_counted_and_nothing_is_added_to_many():
    cell = jb.elman(3, 4)
    params, xs = cell.init(jax.random.key(0)), jnp.ones((200, 3))
    text = jax.jit(jax.vmap(lambda x: jb.step(cell, params, None, x)[1])).lower(xs).as_text()
    assert "tensor<200x3xf64>, tensor<3x4xf64>" in text
    assert f"tensor<{200 * 96}x3xf64>" not in text.replace("200x96x3", f"{200 * 96}x3")


def test_a_loop_outside_jit_traces_the_step_once():
    traced = []

    def step(units, s, u, v):
        traced.append(1)
        return jb.Carry(jnp.tanh(u[0] + v[0]))

    cell = jb.make_cell(3, 4, step)
    params, x = cell.init(jax.random.key(0)), jnp.ones((2, 3))
    carry, _ = jb.step(cell, params, cell.initial_carry(params, (2,)), x)
    before = len(traced)
    for _ in range(3):
        carry, _ = jb.step(cell, params, carry, x)
    assert len(traced) == before > 0


CELL, BOTH = jb.gru(3, 4), jb.network([jb.layer(jb.gru(3, 4), backward=jb.gru(3, 4))], jb.readout(8, 2))
PARAMS = CELL.init(jax.random.key(0))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: jb.step(CELL, PARAMS, None, jnp.ones(4)), r"^step: x: expected one step \[\.\.\., 3\]"),
        (lambda: jb.step(CELL, PARAMS, None, jnp.ones(3, "float32")), "^step: x: expected float64 as params"),
        (
            lambda: jb.step(CELL, PARAMS, CELL.initial_carry(PARAMS, (2,)), jnp.ones(3)),
            r"^step: carry\.h: .*; make the carry by cell\.initial_carry\(params, \(\)\)",
        ),
        (lambda: jb.step(CELL, PARAMS, None, jnp.ones(3), mask=jnp.ones(2, bool)), "^step: mask: "),
        (lambda: jb.step(BOTH, PARAMS, None, jnp.ones(3)), "^step: cell: expected a Cell"),
        (
            lambda: BOTH.step(BOTH.init(jax.random.key(0)), None, jnp.ones(3)),
            r"^net\.step: net: expected layers that read forwards only, .* net\.apply",
        ),
    ],
)
def test_what_is_wrong_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_a_call_that_fits_no_signature_says_so():
    step = inspect.unwrap(jb.step)
    for wrong in ((1,) * 5, {}), ((CELL, PARAMS, None), {}), ((CELL,), {"cell": CELL, "x": 1}):
        with pytest.raises(TypeError):
            step(*wrong[0], **wrong[1])
        with pytest.raises(TypeError, match=r"^step\(\) .*; write step\(cell, params, carry, x, \*"):
            jb.step(*wrong[0], **wrong[1])

"""Real-time recurrent learning gives the gradient of the backward pass, also one step at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support.witnesses as w
from cases import make
from test_gradients import LIMIT, _assert_agreement

import jax_bptt as jb

METHODS = {"rtrl": jb.rtrl()}
ALL = ("mask", "reset", "cut")


@pytest.mark.parametrize("marks", [("mask",), ("reset",)], ids="-".join)
def test_each_mark_alone(marks):
    _assert_agreement(make("lstm-learned-carry", 7, (2,), marks=marks), METHODS)


@pytest.mark.parametrize(
    ("name", "steps", "batch"),
    [("elman-tanh", 1, ()), ("gru-reset-before", 4, (2, 2)), ("own-attention", 4, ())],
    ids=str,
)
def test_no_batch_axis_and_two(name, steps, batch):
    _assert_agreement(make(name, steps, batch, marks=ALL), METHODS)


def test_vmap_over_networks_equals_a_loop():
    cases = [make("gru", 4, (2,)), make("gru", 4, (2,))._replace(xs=make("gru", 4, (2,)).xs + 0.5)]

    def run(params, carry, xs, d_carry, d_hs):
        return jax.vjp(w.unrolled(cases[0], jb.rtrl()), params, carry, xs)[1]((d_carry, d_hs))

    found = jax.jit(jax.vmap(run))(*jax.tree.map(lambda *z: jnp.stack(z), *(tuple(c[1:6]) for c in cases)))
    for i, case in enumerate(cases):
        assert not w.wrong(jax.tree.map(lambda z, i=i: z[i], found), w.by_autodiff(case), LIMIT)


def test_the_scalar_case_in_closed_form():
    """h_t = a h_{t−1} + x_t: dh_T/da = Σ_t a^(T−t) h_{t−1}, by hand."""
    cell, a, xs = jb.elman(1, 1, activation="identity"), 0.9, (1.0, 2.0, 3.0)
    params = jb.Params(jnp.ones((1, 1)), jnp.full((1, 1), a), jnp.zeros(1))
    h = [0.0]
    for x in xs:
        h.append(a * h[-1] + x)
    state = jb.rtrl_init(cell, params, ())
    for x in xs:
        state, _ = jb.rtrl_step(cell, params, state, jnp.array([x]))
    found = jb.rtrl_gradient(params, state, jnp.ones(1)).w_h[0, 0]
    assert abs(float(found) - (a * a * h[0] + a * h[1] + h[2])) < 1e-14


def test_an_activation_with_its_own_vjp():
    """Reverse mode of one step, so that a step need not have a jvp."""

    @jax.custom_vjp
    def sign(z):
        return jnp.sign(z)

    sign.defvjp(lambda z: (jnp.sign(z), None), lambda _, d: (d,))
    cell = jb.elman(3, 4, activation=sign)
    params, xs = cell.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (4, 2, 3))
    weights = jax.random.normal(jax.random.key(2), (4, 2, 4))

    def loss(params, method):
        return jnp.sum(weights * jb.unroll(cell, params, None, xs, gradient=method)[1])

    found, wanted = (jax.grad(lambda p, m=m: loss(p, m))(params) for m in (jb.rtrl(), jb.autodiff()))
    assert not w.wrong(found, wanted, LIMIT)


def _temporaries(method, steps, rows=4, hidden=6):
    """Bytes that the gradient by params of a loss on every h needs, beside inputs and outputs."""
    cell = jb.lstm(3, hidden)
    params, xs = cell.init(jax.random.key(0)), jnp.ones((steps, rows, 3))

    def loss(params):
        return jnp.sum(jb.unroll(cell, params, None, xs, gradient=method)[1])

    return jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis().temp_size_in_bytes


def test_the_memory_of_the_gradient_by_params_does_not_grow_with_time():
    """Beside the cotangents [T, B, H] and what goes in; nobody reads the gradient by xs, so it is dropped."""
    steps, one_array = 64, 64 * 4 * 6 * 8
    grown = {
        name: (_temporaries(m, 4 * steps) - _temporaries(m, steps)) / (3 * one_array)
        for name, m in {"rtrl": jb.rtrl(), "full": jb.full()}.items()
    }
    assert grown["rtrl"] < 2
    assert grown["full"] > 5  # the comparison sees what grows


@pytest.mark.parametrize(
    ("name", "batch"), [("lstm-learned-carry", (3,)), ("own-attention", ()), ("own-layer-norm", (2, 2))]
)
def test_a_stream_equals_the_unrolled_gradient(name, batch):
    """After every step, from the initial carry on: dE_t/dparams with mask, reset and cut."""
    case = make(name, 5, batch, marks=ALL)
    cell, params = case.row.cell, case.params

    @jax.jit
    def step(state, x, marks, d_h):
        state, h = jb.rtrl_step(cell, params, state, x, **marks)
        return state, h, jb.rtrl_gradient(params, state, d_h)

    @jax.jit
    def unrolled(d_hs):
        def loss(params):
            _, hs = jb.unroll(cell, params, None, case.xs, **case.marks)
            return jnp.sum(d_hs * hs), hs

        return jax.grad(loss, has_aux=True)(params)

    state = jb.rtrl_init(cell, params, batch)
    for t, x in enumerate(case.xs):
        state, h, found = step(state, x, {n: mark[t] for n, mark in case.marks.items()}, case.d_hs[t])
        wanted, hs = unrolled(jnp.zeros_like(case.d_hs).at[t].set(case.d_hs[t]))
        assert jnp.allclose(h, hs[t], rtol=1e-13, atol=0)
        assert not w.wrong(found, wanted, LIMIT)


def test_the_marks_of_a_stream_of_one_row_may_be_numpy_bools():
    cell = jb.elman(1, 2)
    params = cell.init(jax.random.key(0))
    begun = jb.rtrl_init(cell, params, ())
    for mark in np.array([True, False]):
        state, _ = jb.rtrl_step(cell, params, begun, jnp.ones(1), mask=mark)
        assert bool((state.carry.h != 0).all()) is bool(mark)


def test_a_stream_in_a_scan_with_moving_parameters():
    """The state is a pytree: online learning is one scan."""
    cell = jb.elman(2, 3)
    params = cell.init(jax.random.key(0))

    def learn(learning, x):
        params, state = learning
        state, h = jb.rtrl_step(cell, params, state, x)
        gradient = jb.rtrl_gradient(params, state, 2 * (h - 0.5))
        return (jax.tree.map(lambda p, d: p - 0.05 * d, params, gradient), state), jnp.sum((h - 0.5) ** 2)

    xs = jnp.ones((200, 4, 2))
    _, losses = jax.jit(lambda begin: jax.lax.scan(learn, begin, xs))(
        (params, jb.rtrl_init(cell, params, (4,)))
    )
    assert losses[-1] < 1e-3 * losses[0]


CELL = jb.elman(3, 5)
PARAMS = CELL.init(jax.random.key(0))
STATE = jb.rtrl_init(CELL, PARAMS, (2,))
X = jnp.ones((2, 3))


def _step(cell=CELL, params=PARAMS, state=STATE, x=X, **marks):
    return jb.rtrl_step(cell, params, state, x, **marks)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: jb.rtrl_init(jnp.tanh, PARAMS, (2,)), "cell: expected a Cell"),
        (lambda: jb.rtrl_init(CELL, PARAMS, 2), "batch_shape: expected a tuple"),
        (lambda: jb.rtrl_init(jb.elman(3, 4), PARAMS, (2,)), r"params.w_x: expected shape \[3,4\]"),
        (lambda: _step(params=None), "params: expected floating arrays"),
        (lambda: _step(x=jnp.ones((2, 4))), r"x: expected one step \[..., 3\], got float64\[2,4\]"),
        (lambda: _step(x=1.0), r"x: expected one step \[..., 3\], got 1.0"),
        (lambda: _step(x=jnp.ones((2, 3), int)), r"x: expected float64 as params, got int64\[2,3\]; cast"),
        (lambda: _step(x=X.astype("float32")), "x: expected float64 as params, got float32"),
        (lambda: _step(x=jnp.ones((4, 3))), r"state.carry.h: expected shape \[4,5\], got float64\[2,5\]"),
        (lambda: _step(x=jnp.ones((7, 2, 3))), r"state.carry.h: expected shape \[7,2,5\]"),
        (lambda: _step(state=STATE.carry), "state: expected RTRLState"),
        (lambda: _step(mask=jnp.ones(3, bool)), r"mask: expected bool\[2\], got bool\[3\]"),
        (lambda: _step(reset=jnp.ones(2)), r"reset: expected bool\[2\], got float64\[2\]"),
        (lambda: jb.rtrl_gradient(PARAMS, None, X), "state: expected an RTRLState, got None"),
        (lambda: jb.rtrl_gradient(PARAMS, STATE, X), r"d_h: expected shape \[2,5\], got float64\[2,3\]"),
        (
            lambda: jb.rtrl_gradient(jb.elman(3, 4).init(jax.random.key(0)), STATE, jnp.ones((2, 5))),
            "params: expected 45 numbers",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

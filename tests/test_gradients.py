"""Every gradient method agrees with four independent witnesses in every leaf of every case."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support.witnesses as w
from cases import EXACT, FORMS, KINDS, MARKS, METHODS, SHAPES, VARIED, every_case, make
from support.compile_options import OPTIMISED

import jax_bptt as jb

LIMIT, SINGLE, DIFFERENCES = 1e-12, 1e-5, 1e-7


def _by_methods(case, methods=METHODS):
    """Outputs and gradients of these methods and of the independent scan, by one compilation."""
    functions = {name: w.unrolled(case, method) for name, method in methods.items()}

    def all_of_them(primals):
        found = {}
        for name, f in {**functions, "plain": w.plain(case)}.items():
            outputs, pullback = jax.vjp(f, *primals)
            found[name] = outputs, pullback((case.d_carry, case.d_hs))
        return found

    return jax.jit(all_of_them)(case.primals())


def _assert_agreement(case, methods=METHODS):
    """Values and gradients of these methods and of an independent scan, each against each."""
    found = _by_methods(case, methods)
    for (one, (values, gradient)), (other, wanted) in itertools.combinations(found.items(), 2):
        assert not w.wrong(values, wanted[0], LIMIT), (one, other)
        assert not w.wrong(gradient, wanted[1], LIMIT), (one, other)


FULL = {"full": jb.full()}


@every_case
def test_full_agrees_with_a_plain_scan_in_every_shape(name, steps, batch):
    """Every cell at one shape; cells of every kind of state at the others, and at that one below."""
    _assert_agreement(make(name, steps, batch), METHODS if name in VARIED else FULL)


@pytest.mark.parametrize("name", VARIED)
def test_every_exact_method_agrees_with_every_other_and_a_plain_scan(name):
    """Without marks; with all of them, and for every cell, below."""
    _assert_agreement(make(name, *SHAPES[-1]), EXACT)


@pytest.mark.parametrize(
    ("name", "marks"), [(name, ("mask", "reset")) for name in [*KINDS, *FORMS]] + [("lstm", ())]
)
def test_full_agrees_with_differences_and_forward_mode(name, marks):
    case = make(name, 7, (2,), marks=marks)
    found = w.manual(case, jb.full())
    assert not w.wrong(found, w.by_differences(case), DIFFERENCES)
    assert not w.wrong(found, w.by_forward_mode(case), LIMIT)
    assert not w.broken_identity(case, found, LIMIT)


ALL_MARKS, BOTH_WAYS = MARKS[-1], (False, True)


# Each way back that is made of other parts of a cell; the other methods are made of the same parts.
WAYS_BACK = ("full in chunks", "truncated, sliding", "rtrl", "parallel")
EVERY_METHOD = ("elman-tanh", "gru-before-learned", "own-attention")


@pytest.mark.parametrize("name", [*KINDS, *FORMS, "lstm-learned-carry", "gru-reset-before"])
def test_every_exact_method_under_all_marks_in_reverse(name):
    methods = EXACT if name in EVERY_METHOD else {method: EXACT[method] for method in WAYS_BACK}
    _assert_agreement(make(name, 5, (3,), marks=ALL_MARKS, reverse=True), methods)


@pytest.mark.parametrize(
    ("name", "marks", "reverse"),
    [("elman-tanh", marks, reverse) for marks in MARKS for reverse in BOTH_WAYS if marks or reverse]
    + [("lstm", marks, False) for marks in MARKS if marks]
    + [("own-attention", marks, True) for marks in MARKS],
)
def test_masks_resets_and_cuts_in_every_combination(name, marks, reverse):
    _assert_agreement(make(name, 5, (3,), marks=marks, reverse=reverse), FULL)


@pytest.mark.parametrize("batch", [(), (2, 2)], ids=str)
@pytest.mark.parametrize("name", ["elman-tanh", "lstm", "gru-reset-before", "own-attention"])
def test_marks_without_and_with_two_batch_axes(name, batch):
    _assert_agreement(make(name, 6, batch, marks=("mask", "reset", "cut"), reverse=True))


@pytest.mark.parametrize("name", KINDS)
def test_single_precision(name):
    case = make(name, 7, (2,), "float32", marks=("mask", "reset", "cut"))
    *methods, (_, wanted) = _by_methods(case, EXACT if name in ("elman-tanh", "lstm") else FULL).values()
    for _, found in methods:
        assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {"float32"}
        assert not w.wrong(found, wanted, SINGLE)


@pytest.mark.parametrize(("name", "marks"), [(name, ALL_MARKS) for name in KINDS] + [("lstm", ())])
def test_full_equals_numpy_by_complex_step(name, marks):
    """By a program that is optimised as users have it."""
    case = make(name, 5, (2,), marks=marks, reverse=bool(marks))
    assert not w.wrong(w.manual(case, jb.full(), OPTIMISED), w.by_complex_step(case), LIMIT)


def test_the_scalar_case_in_closed_form():
    """h_t = a h_{t−1} + x_t: dh_T/da = Σ_t a^(T−t) h_{t−1}, by hand."""
    a, steps = 0.9, 11
    cell = jb.elman(1, 1, activation="identity")
    params = jb.Params(jnp.ones((1, 1)), jnp.full((1, 1), a), jnp.zeros(1))
    xs = jnp.arange(1.0, steps + 1).reshape(steps, 1)

    def last(params):
        return jb.unroll(cell, params, jb.Carry(jnp.array([0.5])), xs)[0].h.sum()

    h = [0.5]
    for t in range(1, steps + 1):
        h.append(a * h[-1] + t)
    expected = sum(a ** (steps - t) * h[t - 1] for t in range(1, steps + 1))
    assert abs(float(jax.grad(last)(params).w_h[0, 0]) - expected) < 1e-13 * expected


@pytest.mark.parametrize("name", ["elman-tanh", "lstm-peephole", "own-attention"])
def test_vmap_over_networks_equals_a_loop(name):
    cases = [make(name, 5, (2,)), make(name, 5, (2,))._replace(xs=make(name, 5, (2,)).xs + 0.5)]
    run = lambda params, carry, xs, d_carry, d_hs: jax.vjp(  # noqa: E731
        w.unrolled(cases[0], jb.full()), params, carry, xs
    )[1]((d_carry, d_hs))
    stacked = jax.tree.map(lambda *z: jnp.stack(z), *(tuple(c[1:6]) for c in cases))
    found = jax.vmap(run)(*stacked)
    for i, case in enumerate(cases):
        assert not w.wrong(jax.tree.map(lambda z, i=i: z[i], found), w.by_autodiff(case), LIMIT)


def test_inside_a_larger_model():
    """Trained before, behind and beside the unroll; two unrolls share parameters."""
    case = make("elman-tanh", 5, (2,))
    before, behind = jax.random.normal(jax.random.key(0), (2, 3, 3))

    def model(method, before, params, behind):
        run = w.unrolled(case, method)
        carry, hs = run(params, case.carry, jnp.sin(case.xs @ before))
        _, hs = run(params, carry, hs[::-1, :, :3] @ behind)
        return jnp.sum(jnp.cos(hs)) + jnp.sum(before**2)

    found, wanted = (
        jax.jit(jax.grad(lambda *a, m=m: model(m, *a), (0, 1, 2)))(before, case.params, behind)
        for m in (jb.full(), jb.autodiff())
    )
    assert not w.wrong(found, wanted, LIMIT)


def test_cotangents_on_one_output_only():
    case = make("lstm", 5, (2,))
    for d_carry, d_hs in ((0.0, 1.0), (1.0, 0.0)):
        part = case._replace(
            d_carry=jax.tree.map(lambda z, s=d_carry: s * z, case.d_carry), d_hs=d_hs * case.d_hs
        )
        found, wanted = w.manual(part, jb.full()), w.by_autodiff(part)
        assert not w.wrong(found, wanted, LIMIT)


def test_reverse_over_reverse():
    """The backward pass is plain JAX, so it can be differentiated again."""
    case = make("elman-tanh", 3, ())

    def slope_norm(method, params):
        def loss(params):
            return jnp.sum(jb.unroll(case.row.cell, params, case.carry, case.xs, gradient=method)[1] ** 3)

        return sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(loss)(params)))

    found, wanted = (jax.grad(lambda p, m=m: slope_norm(m, p))(case.params) for m in METHODS.values())
    assert not w.wrong(found, wanted, LIMIT)


@pytest.mark.parametrize(
    "method", [jb.full(), jb.full(1), jb.checkpointed(9, 1), jb.rtrl(), jb.truncated(1024)], ids=repr
)
def test_sums_over_chunks_are_kept_in_single_precision(method):
    """In bfloat16 a sum of a thousand small parts would stand still at the first few."""
    net = jb.network([jb.elman(2, 4)], jb.readout(4, 1))
    params, xs = net.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (1024, 1, 2))
    params = params._replace(cells=(params.cells[0]._replace(w_h=params.cells[0].w_h * 0.5),))
    grads = {}
    for dtype in ("bfloat16", "float64"):
        args = jax.tree.map(lambda z, d=dtype: z.astype(d), (params, None, xs, 1 + 0 * xs[..., :1]))
        grads[dtype] = jax.jit(
            lambda *a, m=method: jb.value_and_grad(net, jb.squared_error)(*a, gradient=m)[1]
        )(*args)
    assert {z.dtype.name for z in jax.tree.leaves(grads["bfloat16"])} == {"bfloat16"}
    found = jax.tree.map(lambda z: z.astype("float64"), grads["bfloat16"])
    assert not w.wrong(found, grads["float64"], 0.05)


def _batch_centred(units, s, u, v):
    z = u[0] + v[0]
    return jb.Carry(jnp.tanh(z - jnp.broadcast_to(z.mean(0, keepdims=True), z.shape)))


def _scaled(units, s, u, v):
    return jb.Carry((u[0] + v[0]) * jnp.broadcast_to(jnp.arange(1.0, 5.0), u[0].shape))


def _slope_without_time(units, s_prev, u, v, s):
    return jnp.arange(1.0, 5.0)


def _by_slope_without_time(units, a, lam):
    d_z = lam.h * jnp.broadcast_to(a, lam.h.shape)
    return jb.StepCotangent(jb.Carry(jnp.zeros_like(d_z)), (d_z,), (d_z,), {})


@jax.custom_vjp
def _straight_through_sign(z):
    return jnp.sign(z)


_straight_through_sign.defvjp(lambda z: (jnp.sign(z), None), lambda _, d: (d,))

UNUSUAL = {
    "step that mixes the rows of a batch": (jb.make_cell(3, 4, _batch_centred), (3,)),
    "slope that is the same at every t, T = H": (
        jb.make_cell(3, 4, _scaled, linearise=_slope_without_time, adjoint=_by_slope_without_time),
        (),
    ),
    "activation with its own vjp": (jb.elman(3, 4, activation=_straight_through_sign), (2,)),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_cells_have_the_right_gradient(name):
    cell, rows = UNUSUAL[name]
    keys = jax.random.split(jax.random.key(0), 4)
    params, xs = cell.init(keys[0]), jax.random.normal(keys[1], (4, *rows, 3))
    carry = jb.Carry(jax.random.normal(keys[2], (*rows, 4)))
    weights = jax.random.normal(keys[3], (4, *rows, 4))

    def loss(params, carry, xs, method):
        return jnp.sum(weights * jb.unroll(cell, params, carry, xs, gradient=method)[1])

    found, wanted = (jax.grad(loss, (0, 2))(params, carry, xs, m) for m in METHODS.values())
    if name.startswith("step that mixes"):  # a bias common to all rows drops out
        found, wanted = (jax.tree.map(lambda z: z, (g[0]._replace(b=xs), g[1])) for g in (found, wanted))
    assert not w.wrong(found, wanted, LIMIT)


def _unit_direction(p, s, x):
    return jb.Carry(jnp.tanh(s.h @ p["w_h"] + (x / jnp.linalg.norm(x)) @ p["w_x"]))


def _unit_gate(units, s, u, v):
    return jb.Carry(jnp.tanh(u[0] / jnp.sqrt(u[0] ** 2) * 0.5 + u[0] + v[0]))


SINGULAR = {
    "any step": jb.step_cell(3, 4, _unit_direction, lambda key: jb.elman(3, 4).init(key)._asdict()),
    "pointwise": jb.make_cell(3, 4, _unit_gate),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("name", SINGULAR)
def test_a_step_that_is_singular_at_zero_under_padding(name, method):
    """Padding is no zero vector: x/‖x‖ has no derivative there."""
    cell = SINGULAR[name]
    params, xs = cell.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (5, 3, 3))
    mask = jb.mask_of_lengths(jnp.array([5, 0, 3]), 5)

    def loss(params, xs, mask=None):
        last, _ = jb.unroll(cell, params, None, xs, gradient=method, mask=mask)
        return jnp.sum(last.h**3)

    found = jax.grad(loss)(params, jnp.where(mask[..., None], xs, jnp.nan), mask)
    alone = [jax.grad(loss)(params, xs[:n, b]) for b, n in ((0, 5), (2, 3))]
    assert not w.wrong(found, jax.tree.map(jnp.add, *alone), LIMIT)


def test_relu_at_exactly_zero_has_slope_zero():
    cell = jb.elman(1, 1, activation="relu")
    params = jb.Params(jnp.zeros((1, 1)), jnp.ones((1, 1)), jnp.zeros(1))
    for method in METHODS.values():
        d_b = jax.grad(
            lambda p, m=method: jb.unroll(cell, p, jb.Carry(jnp.zeros(1)), jnp.ones((2, 1)), gradient=m)[
                1
            ].sum()
        )(params).b
        assert float(d_b[0]) == 0


def test_numpy_inputs_are_taken():
    case = make("elman-tanh", 3, (2,))
    _, hs = jb.unroll(case.row.cell, case.params, case.carry, np.asarray(case.xs))
    assert isinstance(hs, jax.Array)


def test_single_precision_holds_over_long_sequences():
    """T = 1000, contracting: float32 stays within 1e-5 of float64."""
    long = {d: make("elman-tanh", 1000, (2,), d) for d in ("float32", "float64")}
    found, wanted = (w.manual(long[d], jb.full()) for d in ("float32", "float64"))
    assert not w.wrong(found, wanted, SINGLE)

"""dtype=: the operands of the matrix products are rounded, and nothing else is.

The regime is stated: contracting nets, W_h of norm 0.9 a gate, where a rounding error dies out as the
gradient does. In a chaotic net no two precisions agree on anything after some steps.
"""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
import support.witnesses as w
from cases import CELLS, EXACT

import jax_bptt as jb
from jax_bptt.cell.cell import Cell

T, B = 13, 4
BF16 = jnp.bfloat16
TWINS = ("elman-sigmoid", "elman-identity", "elman-callable", "one-unit")  # of elman-tanh
ROUNDED = {
    n: row.cell
    for n, row in CELLS.items()
    if getattr(row.cell, "takes_dtype", isinstance(row.cell, Cell)) and n not in TWINS
}


def _problem(cell, dtype):
    """Params of a contracting net, carry and xs; the same numbers in every dtype."""
    k = jax.random.split(jax.random.key(7), 3)
    params = jax.tree.map(lambda p: p + 0.1 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), cell.init(k[0]))
    if params.w_h.ndim > 1:
        blocks, axes = jnp.split(params.w_h, len(cell.gate_names), -1), (-2, -1)
        scaled = [0.9 * g / jnp.linalg.norm(g, 2, axes).max() for g in blocks]
        params = params._replace(w_h=jnp.concatenate(scaled, -1))
    carry = jax.tree.map(lambda s: 0.5 * jax.random.normal(k[1], s.shape), cell.initial_carry(params, (B,)))
    xs = jax.random.normal(k[2], (T, B, cell.input_size))
    return jax.tree.map(lambda z: z.astype(jnp.float32).astype(dtype), (params, carry, xs))


def _gradient(cell, params_dtype, method=None, dtype=None):
    def loss(params, carry, xs):
        last, hs = jb.unroll(cell, params, carry, xs, gradient=method or jb.full(), dtype=dtype)
        weight = jnp.sin(jnp.arange(hs.size, dtype=hs.dtype)).reshape(hs.shape)
        return jnp.sum(weight * hs) + sum(jnp.sum(s) for s in last)

    return jax.jit(jax.grad(loss, (0, 1, 2)))(*_problem(cell, params_dtype))


@pytest.mark.parametrize("name", ROUNDED)
def test_bfloat16_products_are_near_float64_in_contracting_nets(name):
    """Below 3e-2, all in float32; above 1e-4, or nothing would have been rounded.

    A relu near zero may change sides, and with it the whole path through that unit: below 0.3.
    """
    cell = ROUNDED[name]
    wanted = _gradient(cell, jnp.float64)
    grads = _gradient(cell, jnp.float32, dtype=BF16)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    distances = w.ratios(grads, wanted)
    assert max(distances.values()) < (0.3 if name == "elman-relu" else 3e-2), distances
    assert max(distances.values()) > 1e-4, distances


def test_every_method_computes_in_it():
    cell = jb.lstm(3, 8, peephole=True, heads=2)
    wanted = _gradient(cell, jnp.float64)
    for method in EXACT.values():
        distances = w.ratios(_gradient(cell, jnp.float32, method, dtype=BF16), wanted)
        assert 1e-4 < max(distances.values()) < 3e-2, (method, distances)


def test_only_operands_of_products_are_rounded():
    """Where these are exact in bfloat16, bits that only float32 has come through: bias, c, sums."""
    cell = jb.lstm(2, 3)
    params = jax.tree.map(lambda p: jnp.round(8 * p).astype(jnp.float32) / 8, cell.init(jax.random.key(0)))
    params = params._replace(b=params.b + jnp.float32(1 + 2**-20))
    carry = jb.lstm(2, 3).initial_carry(params, (2,))._replace(c=jnp.full((2, 3), 1 + 2**-20, jnp.float32))
    xs = jnp.array([[[1, 0.5], [2, -1]]], jnp.float32)
    run = functools.partial(jax.jit(jb.unroll, static_argnums=0, static_argnames="dtype"), cell, params)
    (rounded, hs), (exact, hs_exact) = run(carry, xs, dtype=BF16), run(carry, xs)
    assert (rounded.c == exact.c).all()
    assert (hs == hs_exact).all()
    assert rounded.c.dtype == hs.dtype == jnp.float32


def test_sums_over_many_steps_do_not_stand_still():
    """10,000 equal terms: a bfloat16 sum would stop at 256."""
    cell = jb.elman(1, 2, activation="identity")
    params = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), cell.init(jax.random.key(0)))
    xs = jnp.ones((10_000, 1, 1), jnp.float32)
    d = jax.jit(jax.grad(lambda p: jnp.sum(jb.unroll(cell, p, None, xs, dtype=BF16)[1])))(params)
    assert (d.b == 10_000).all()
    assert (d.w_x == 10_000).all()


def test_a_network_trains_in_it():
    """Two layers, one that reads both ways, dropout: float32 state, and the loss falls as in float32."""
    both = jb.layer(jb.lstm(3, 8), backward=jb.gru(3, 8), dropout=0.1)
    net, sgd = jb.network([both, jb.elman(16, 8)], jb.readout(8, 2)), optax.sgd(1e-4)
    losses = {}
    for dtype in (None, BF16):
        state = jb.init_train_state(jax.random.key(0), net, sgd, (B,))
        state = jax.tree.map(lambda z: z.astype("float32") if z.dtype == "float64" else z, state)
        xs = jax.random.normal(jax.random.key(1), (30, T, B, 3), "float32")
        batches = jb.Batch(xs, jnp.cumsum(xs[..., :2], 1), key=jax.random.split(jax.random.key(2), 30))
        train_steps = jb.make_train_steps(net, jb.squared_error, sgd, dtype=dtype)
        state, metrics = train_steps(state, batches)
        dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(state.params)}
        assert dtypes == {"float32"}
        losses[dtype] = metrics.loss
    assert 1e-5 < abs(losses[BF16][0] / losses[None][0] - 1) < 1e-2
    assert abs(losses[BF16][-5:].mean() / losses[None][-5:].mean() - 1) < 0.1


def test_second_derivatives_do_not_stand_still():
    """Σ over 1000 steps of dE/dx by w_h, each 1 at w_h = 0 but for the last."""
    cell, ones = jb.elman(1, 1, activation="identity"), jnp.ones((1000, 1, 1), "float32")
    params = jax.tree.map(lambda p: jnp.zeros(p.shape, "float32"), cell.init(jax.random.key(0)))
    params = params._replace(w_x=params.w_x + 1)

    def by_xs(w_h):
        return jax.grad(lambda x: jnp.sum(jb.unroll(cell, params._replace(w_h=w_h), None, x, dtype=BF16)[1]))

    assert jax.jit(jax.grad(lambda w_h: jnp.sum(by_xs(w_h)(ones))))(params.w_h) == 999


@pytest.mark.parametrize(
    ("cell", "dtype", "message"),
    [
        (
            jb.elman(3, 8),
            "float64",
            r"dtype: expected bfloat16 or float32, not wider than params, float32, got",
        ),
        (jb.elman(3, 8), int, r"dtype: expected bfloat16 or float32"),
        (jb.elman(3, 8), "bf17", r"dtype: expected bfloat16 or float32"),
        (jb.elman(3, 8), jnp.float4_e2m1fn, r"dtype: expected .* float32, got float4_e2m1fn"),
        (jb.elman(3, 8), jnp.float8_e5m2, r"dtype: expected .* float32, got float8_e5m2; pass jnp.bfloat16"),
        (
            jb.elman(3, 8),
            jnp.float16,
            r"got float16; pass jnp.bfloat16, .*; in float16 a derivative below 6e-8",
        ),
        (jb.elman(3, 8), jnp.ones(3), r"dtype: expected bfloat16 or float32"),
        (jb.gru(3, 8, reset_after=False), BF16, r"dtype: expected None for a cell whose step makes its own"),
    ],
    ids=["wider", "integer", "unknown", "too narrow", "of 8 bits", "float16", "array", "step cell"],
)
def test_dtypes_that_do_not_fit_are_refused(cell, dtype, message):
    params = jax.tree.map(lambda p: p.astype("float32"), cell.init(jax.random.key(0)))
    with pytest.raises(ValueError, match=message):
        jb.unroll(cell, params, None, jnp.ones((T, B, 3), "float32"), dtype=dtype)


def test_the_dtype_of_params_is_no_special_case():
    cell = jb.elman(3, 8)
    params, xs = cell.init(jax.random.key(0)), jnp.ones((T, B, 3))
    _, hs = jb.unroll(cell, params, None, xs, dtype=xs.dtype)
    assert (hs == jb.unroll(cell, params, None, xs)[1]).all()

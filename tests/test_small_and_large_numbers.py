"""What is computed from norms is right wherever the result is a float: no square underflows or overflows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.linear_network import linear_network

import jax_bptt as jb
from jax_bptt.base.trees import norm_of
from jax_bptt.gradients.clipped import clip
from jax_bptt.networks.judged import Judged
from jax_bptt.networks.losses import value_and_slope

STEPS, GAIN = 120, 0.5
SCALES = (1e-30, 1.0, 1e30)
SMALLEST = 1e-33  # below it some entries of λ are no float32


def _along_targets(ys, targets):
    return (ys * targets).sum()


def _single(tree):
    return jax.tree.map(lambda z: z.astype(jnp.float32), tree)


@functools.cache
def _network():
    """A linear network, λ shrinks to a half at every step back, and the loss is linear in the targets."""
    net, params, xs, _ = linear_network(GAIN, steps=STEPS)
    return net, _single(params), _single(xs)


@functools.cache
def _terms():
    """For targets of one, in NumPy: g_l of (w_x, w_h, b), [lags, parameters], and λ, [lags, rows, H]."""
    _, params, xs = jax.tree.map(lambda z: np.asarray(z, float), _network())
    w_x, w_h, b = params.cells[0]
    hs = [np.zeros((xs.shape[1], len(w_h)))]
    for x in xs:
        hs.append(x @ w_x + hs[-1] @ w_h + b)
    lam = np.ones((xs.shape[1], params.readout.w_y.shape[1])) @ params.readout.w_y.T
    terms, lams = [], []
    for lag in range(STEPS):
        k = STEPS - lag
        parts = xs[k - 1].T @ lam, hs[k - 1].T @ lam, lam.sum(0)
        terms.append(np.concatenate([z.ravel() for z in parts]))
        lams.append(lam)
        lam = lam @ w_h.T
    return np.array(terms), np.array(lams)


def _run(f, **more):
    net, params, xs = _network()
    program = jax.jit(functools.partial(f, net, _along_targets, **more))
    return lambda scale: program(params, None, xs, jnp.full((3, 2), scale, jnp.float32))


def _norm(z):
    return np.linalg.norm(z, axis=-1)


def test_credit():
    """Lag 80 has a term of 1e-24, whose square no float32 holds."""
    run, (terms, _) = _run(jb.credit), _terms()
    whole = terms.sum(0)
    cosine = terms @ whole / (_norm(terms) * _norm(whole))
    for scale in SCALES:
        found = run(scale).of_all
        wanted = _norm(terms) * scale
        held = wanted > SMALLEST
        np.testing.assert_allclose(found.lag_norm[held], wanted[held], rtol=1e-5)
        np.testing.assert_allclose(found.norm[held, -1], wanted[held], rtol=1e-5)  # only step T has a loss
        share = np.asarray(found.share) * _norm(whole) / _norm(terms)
        np.testing.assert_allclose(found.cosine[held, -1], cosine[held], atol=1e-5)
        np.testing.assert_allclose(share[held], cosine[held], atol=1e-5)
        np.testing.assert_allclose(found.cumulative[-1], 1, rtol=1e-5)


def test_gradient_flow():
    run, (terms, _) = _run(jb.gradient_flow), _terms()
    whole = terms.sum(0)
    bias = _norm(np.cumsum(terms, 0) - whole) / _norm(whole)
    for scale in SCALES:
        found = run(scale)
        held = scale * GAIN ** np.arange(STEPS) > SMALLEST
        np.testing.assert_allclose(found.layers[0].profile[held], GAIN ** np.arange(STEPS)[held], rtol=1e-4)
        np.testing.assert_allclose(found.grad_norm, _norm(whole) * scale, rtol=1e-5)
        np.testing.assert_allclose(found.bias[:9], bias[:9], rtol=1e-3)
        np.testing.assert_allclose(found.cosine[-1], 1, rtol=1e-5)


def test_lag_profile():
    net, params, xs = _network()
    run = jax.jit(functools.partial(jb.lag_profile, net.layers[0].forward, lags=105))
    np.testing.assert_allclose(run(params.cells[0], None, xs)[:, -1, 0], GAIN ** np.arange(105), rtol=1e-4)


def test_omega_counts_steps_whose_gradient_is_tiny():
    """Ω = T (0.5 − 1)², and its derivative by W_h, (O2), in NumPy."""
    net, params, xs = _network()
    targets, w_h = jnp.ones((3, 2), jnp.float32), np.asarray(params.cells[0].w_h, float)
    run = jax.jit(jax.value_and_grad(functools.partial(jb.omega, net, _along_targets)))
    d_w_h = np.zeros_like(w_h)
    for lam in _terms()[1]:
        length = np.linalg.norm(lam)
        ratio = np.linalg.norm(lam @ w_h.T) / length
        d_w_h += 2 * (ratio - 1) / (ratio * length**2) * (lam @ w_h.T).T @ lam
    for scale in (1, 1e30):
        value, slope = run(params, None, xs, targets * scale)
        assert abs(value - STEPS * (GAIN - 1) ** 2) < 1e-4
        np.testing.assert_allclose(slope.cells[0].w_h, d_w_h, atol=1e-4 * np.abs(d_w_h).max())


def test_the_exponents_and_bounds_of_a_matrix():
    net, params, _ = _network()
    xs = jnp.zeros((2, 3, 2), jnp.float32)
    cell, p = net.layers[0].forward, params.cells[0]
    spectrum = jax.jit(jax.value_and_grad(lambda p: jb.flossing(cell, p, None, xs, exponents=4)))
    flow = jax.jit(functools.partial(jb.gradient_flow, net, _along_targets))
    for scale in (1e-30, 1e30):
        scaled = p._replace(w_h=p.w_h * scale)
        log = np.log(GAIN * scale)
        value, slope = spectrum(scaled)
        np.testing.assert_allclose(value, 4 * log**2, rtol=1e-5)
        by_log_of_scale = (slope.w_h * scaled.w_h).sum()
        np.testing.assert_allclose(by_log_of_scale, 8 * log, rtol=1e-4)
        layer = flow(params._replace(cells=(scaled,)), None, xs, jnp.ones((3, 2), jnp.float32)).layers[0]
        for found in (layer.bound, layer.sigma_max[0], layer.spectral_radius[0]):
            np.testing.assert_allclose(found, GAIN * scale, rtol=1e-4)


@pytest.mark.parametrize(
    ("numbers", "dtype", "norm"),
    [
        ([3e-30, 4e-30], "float32", 5e-30),
        ([3e30, 4e30], "float32", 5e30),
        ([3e-37, 4e-37], "float32", 5e-37),
        ([3e-7, 4e-7], "float16", 5e-7),
        ([3e4] * 100, "float16", 3e5),
        ([1.0] * 4097, "bfloat16", 4097**0.5),
        ([np.nan, 1.0], "float32", np.nan),
        ([np.inf, 1.0], "float32", np.inf),
        ([0.0, 0.0], "float32", 0.0),
    ],
)
def test_a_norm_and_its_derivatives(numbers, dtype, norm):
    """The derivative is z/‖z‖, zero at zero; the second has the length 1/‖z‖."""
    z = jnp.asarray(numbers, dtype)
    found, slope = jax.value_and_grad(norm_of)(z)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, norm, rtol=0.1 if norm < 1e-6 and dtype == "float16" else 1e-5)
    if np.isfinite(norm):
        wanted = np.asarray(z, float) / (float(norm) or 1)
        np.testing.assert_allclose(slope.astype(float), wanted, rtol=0.1 if dtype != "float32" else 1e-5)


def test_long_rows_of_half_the_width_are_clipped():
    """Their norm is no float16."""
    found = clip(1.0, jb.Carry(jnp.full((1, 512), 6e4, jnp.float16)))
    np.testing.assert_allclose(found.h.astype(float), 512**-0.5, rtol=1e-3)
    assert found.h.dtype == jnp.float16


def test_losses_of_more_steps_than_a_float16_can_count():
    n = 70_000
    ys, classes = jnp.zeros((n, 4), jnp.float16), jnp.ones(n, int)
    error, slope = value_and_slope(jb.softmax_cross_entropy, ys, Judged(classes))
    assert (error.dtype, slope.dtype) == (jnp.float32, jnp.float16)
    np.testing.assert_allclose(error, np.log(4), rtol=1e-3)
    wanted = (0.25 - np.eye(4)[1]) / n
    np.testing.assert_allclose(slope[0].astype(float), wanted, rtol=0.02)
    squares = jb.squared_error(ys[:, :1], jnp.full((n, 1), 1e-4, jnp.float16))
    np.testing.assert_allclose(squares, n * 1e-8, rtol=0.01)
    large = jb.squared_error(ys[:, :1], jnp.full((n, 1), 3, jnp.float16))  # no float16
    np.testing.assert_allclose(large, n * 9, rtol=1e-6)


def test_a_gradient_whose_square_is_no_float64_can_be_checked():
    """dh_300/dw_h is 1e183: exact against jax.grad and forward mode. Differences see nothing there."""
    cell = jb.elman(1, 1, activation="identity")
    params = jb.Params(jnp.ones((1, 1)), jnp.full((1, 1), 4.0), jnp.ones(1))
    report = jb.check_gradient(cell, params, steps=300)
    assert all(line.ratios[0] < 1e-12 for line in report.lines)
    assert all(line.ratios[2] < 1e-12 for line in report.lines[1:])

"""Omega, flossing, clipping and skipped updates do what they promise against bad gradients."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import support.witnesses as w
from support.linear_network import linear_network
from support.optimizers import SGD

import jax_bptt as jb


def test_omega_and_its_immediate_derivative_are_the_papers():
    """Equations (9) and (10) in NumPy, for one row of an Elman net; W_h only, all else a number."""
    cell = jb.elman(2, 3)
    net = jb.network([cell], jb.readout(3, 2))
    params = net.init(jax.random.key(0))
    params = params._replace(cells=(params.cells[0]._replace(w_h=1.5 * params.cells[0].w_h),))
    xs, targets = (jax.random.normal(jax.random.key(k), (4, 1, 2)) for k in (1, 2))
    run = functools.partial(jb.omega, net, jb.squared_error)
    value, grads = jax.jit(jax.value_and_grad(run))(params, None, xs, targets)

    p, _ = params
    w_x, w_h, b = map(np.asarray, p[0])
    s, hs = np.zeros(3), []
    for x in np.asarray(xs)[:, 0]:
        s = np.tanh(x @ w_x + s @ w_h + b)
        hs.append(s)
    ys = np.array(hs) @ np.asarray(params.readout.w_y) + np.asarray(params.readout.b_y)
    d_hs = -2 * (np.asarray(targets)[:, 0] - ys) @ np.asarray(params.readout.w_y).T

    def of(w):  # λ and the slopes as they are with w_h
        lam, total = np.zeros(3), 0.0
        for t in reversed(range(4)):
            lam = lam + d_hs[t]
            d_z = lam * (1 - hs[t] ** 2)
            total += (np.linalg.norm(d_z @ w.T) / np.linalg.norm(lam) - 1) ** 2
            lam = d_z @ w_h.T
        return total

    assert abs(value - of(w_h)) < 1e-12
    numeric = np.zeros((3, 3))
    for i, j in np.ndindex(3, 3):
        e = np.zeros((3, 3))
        e[i, j] = 1e-5
        numeric[i, j] = (of(w_h + e) - of(w_h - e)) / 2e-5
    assert np.linalg.norm(grads.cells[0].w_h - numeric) < 1e-7 * np.linalg.norm(numeric)
    assert (grads.cells[0].w_x == 0).all()
    assert (grads.readout.w_y == 0).all()


def test_omega_leaves_out_cut_rows_and_does_not_hide_nan():
    """A row whose gradient is cut is no part of the step, and a NaN is not left out of the sum."""
    net, params, xs, targets = linear_network(1.0)
    run = functools.partial(jb.omega, net, jb.squared_error)
    cut = jnp.zeros((20, 3), bool).at[10, :2].set(True)
    assert abs(jax.jit(run)(params, None, xs, targets, cut=cut)) < 1e-20
    assert jnp.isnan(jax.jit(run)(params, None, xs.at[3, 0, 0].set(jnp.nan), targets))


def test_flossing_pulls_the_exponents_to_zero():
    cell = jb.elman(2, 4, recurrent=jb.orthogonal(0.5))
    params, xs = cell.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (10, 2, 2))
    loss = functools.partial(jb.flossing, cell, exponents=2)
    gradient = jax.jit(jax.grad(lambda p: loss(p, None, xs)))
    flat, unflatten = jax.flatten_util.ravel_pytree(params)
    way = jax.random.normal(jax.random.key(2), flat.shape)
    slope = jnp.vdot(jax.flatten_util.ravel_pytree(gradient(params))[0], way)
    value = jax.jit(lambda z: loss(unflatten(z), None, xs))
    assert abs((value(flat + 1e-5 * way) - value(flat - 1e-5 * way)) / 2e-5 / slope - 1) < 1e-7
    before = value(flat)
    for _ in range(30):
        params = jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient(params))
    assert value(jax.flatten_util.ravel_pytree(params)[0]) < 0.1 * before


def _by_hand_clipped(case, c):
    """λ of `clipped` for an Elman cell in NumPy: dE/dW_h, and the share of steps clipped."""
    w_x, w_h, b = map(np.asarray, case.params)
    xs, d_hs = np.asarray(case.xs), np.asarray(case.d_hs)
    s, hs = np.asarray(case.carry.h), [np.asarray(case.carry.h)]
    for x in xs:
        s = np.tanh(x @ w_x + s @ w_h + b)
        hs.append(s)
    lam, d_w, times = np.asarray(case.d_carry.h), 0, 0
    for t in reversed(range(len(xs))):
        lam = lam + d_hs[t]
        d_z = lam * (1 - hs[t + 1] ** 2)
        d_w = d_w + hs[t].T @ d_z
        lam = d_z @ w_h.T
        norm = np.linalg.norm(lam, axis=-1, keepdims=True)
        times += (norm > c).sum() if t else 0  # into the initial carry goes no step
        lam = lam * np.minimum(1, c / norm)
    return d_w, times / ((len(xs) - 1) * lam.shape[0])


def test_clipped_is_the_recursion_it_states():
    case = cases.make("elman-tanh", 7, (3,))
    for c in (0.3, 1.0, 1e9):
        d_w, share = _by_hand_clipped(case, c)
        found = w.manual(case, jb.clipped(c))[0].w_h
        assert np.linalg.norm(found - d_w) < 1e-12 * np.linalg.norm(d_w)
        assert (share > 0) == (c < 1e9)
    assert not w.wrong(w.manual(case, jb.clipped(1e9)), w.manual(case, jb.full()), 1e-15)


def test_the_share_of_steps_clipped():
    case = cases.make("elman-tanh", 7, (3,))
    case = case._replace(d_carry=jb.Carry(jnp.zeros((3, 4))))

    def loss(ys, targets):  # so that G_t is d_hs
        return (ys * targets).sum()

    net = jb.network([case.row.cell], jb.readout(4, 4))
    readout = jb.ReadoutParams(jnp.eye(4), jnp.zeros(4))
    run = jax.jit(functools.partial(jb.clipped_share, net, loss, max_norm=1.0))
    found = run(jb.NetworkParams((case.params,), readout), (case.carry,), case.xs, case.d_hs)
    assert abs(found[0] - _by_hand_clipped(case, 1.0)[1]) < 1e-15


def test_clipping_at_any_norm_of_half_the_width():
    """A norm above or below all that the dtype holds is no 0/0, and a NaN is no unclipped step."""
    net, params, xs, targets = linear_network(1.0, steps=4)
    single = jax.tree.map(lambda z: z.astype(jnp.float32), (params, xs, targets))
    run = functools.partial(jb.value_and_grad(net, jb.squared_error), single[0], None, *single[1:])
    wanted = run()[1]
    for found, leaf in zip(
        jax.tree.leaves(run(gradient=jb.clipped(1e300))[1]), jax.tree.leaves(wanted), strict=True
    ):
        assert np.allclose(found, leaf, rtol=1e-5)
    assert all(jnp.isfinite(z).all() for z in jax.tree.leaves(run(gradient=jb.clipped(1e-300))[1]))
    share = jb.clipped_share(
        net, jb.squared_error, params, None, xs.at[0].set(jnp.nan), targets, max_norm=1.0
    )
    assert jnp.isnan(share).all()


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), "a"])
def test_a_bad_norm_is_refused(bad):
    with pytest.raises(ValueError, match="max_norm: expected a positive number"):
        jb.clipped(bad)


@pytest.mark.parametrize("spoilt", [jnp.nan, jnp.inf])
def test_one_bad_batch_changes_nothing_and_is_reported(spoilt):
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9))
    net = jb.network([jb.elman(2, 4)], jb.readout(4, 2))
    state = jb.init_train_state(jax.random.key(0), net, optimizer, (3,))
    train_steps = jb.make_train_steps(net, jb.squared_error, optimizer)
    xs = jax.random.normal(jax.random.key(1), (3, 5, 3, 2))
    good, bad = jnp.delete(xs, 1, axis=0), xs.at[1, 2, 0, 0].set(spoilt)
    after, metrics = train_steps(jax.tree.map(jnp.copy, state), jb.Batch(bad, xs))
    assert metrics.finite.tolist() == [True, False, True]
    without, _ = train_steps(state, jb.Batch(good, good))
    assert (int(after.step), int(after.skipped)) == (3, 1)
    after = after._replace(skipped=without.skipped)
    for found, wanted in zip(jax.tree.leaves(after[1:]), jax.tree.leaves(without[1:]), strict=True):
        assert (found == wanted).all()


def test_a_bad_first_batch_leaves_the_carry():
    """Where a layer has none, there is one after the step; good or bad, of one structure."""
    net = jb.network([jb.elman(2, 4)], jb.readout(4, 2))
    state = jb.init_train_state(jax.random.key(0), net, SGD, (3,))
    xs = jnp.full((2, 3, 2), jnp.nan)
    after, metrics = jb.make_train_step(net, jb.squared_error, SGD)(
        state._replace(carry=(None,)), jb.Batch(xs, xs)
    )
    assert not metrics.finite
    assert (after.carry[0].h == 0).all()

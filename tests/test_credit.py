"""`credit` splits the gradient into terms by lag, by loss step and by source step, which sum to it."""

import functools

import cases
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
import support.witnesses as w

import jax_bptt as jb

T, ROWS = 5, 2


def _data(steps=T, inputs=cases.I):
    keys = jax.random.split(jax.random.key(3), 2)
    return jax.random.normal(keys[0], (steps, ROWS, inputs)), jax.random.normal(keys[1], (steps, ROWS, 2))


def _params(net):
    params = net.init(jax.random.key(1))
    flat, unflatten = jax.flatten_util.ravel_pytree(params)
    return unflatten(flat + 0.2 * jax.random.normal(jax.random.key(2), flat.shape))


def _marks(*names):
    drawn = jax.random.bernoulli(jax.random.key(4), 0.6, (3, T, ROWS))
    return {n: m for n, m in zip(("mask", "reset", "cut"), drawn, strict=True) if n in names}


def _gradient(net, params, carry, xs, targets, loss=jb.squared_error, **more):
    run = jax.jit(functools.partial(jb.value_and_grad(net, loss), **more))
    return run(params, carry, xs, targets)[1].cells


def _credit(net, params, carry, xs, targets, loss=jb.squared_error, **more):
    return jax.jit(functools.partial(jb.credit, net, loss, **more))(params, carry, xs, targets)


def _net(name):
    cell = cases.CELLS[name].cell
    return jb.network([cell], jb.readout(cell.hidden_size, 2, activation="tanh"))


# The other kinds go back by the same parts as one of these.
KINDS = [name for name in cases.KINDS if name not in ("lstm", "gru", "leaky", "mgu")]


@pytest.mark.parametrize("name", KINDS)
def test_all_terms_sum_to_the_gradient(name):
    """Of every kind of cell, with every mark, from the initial carry, a parameter where it is one."""
    net, (xs, targets), marks = _net(name), _data(), _marks("mask", "reset", "cut")
    params = _params(net)
    found = _credit(net, params, None, xs, targets, **marks)
    assert not w.wrong(found.gradient, _gradient(net, params, None, xs, targets, **marks), 1e-12)
    assert abs(found.of_all.share.sum() - 1) < 1e-12


@pytest.mark.parametrize("name", ["elman-tanh", "lstm-peephole", "gru-before-learned"])
def test_terms_are_those_of_untied_weights(name):
    """Give every step weights of its own: dE_t by those of step k is the term, whatever its size."""
    net, (xs, targets) = _net(name), _data()
    params = _params(net)
    cell, carry = net.layers[0].forward, net.initial_carry(params, (ROWS,))
    tied = params.cells[0]

    def losses(each):
        def step(s, at_t):
            p, x, d = at_t
            s, h = jb.unroll(cell, p, s, x[None], gradient=jb.autodiff())
            y = net.readout.forward(params.readout, h[0])[1]
            return s, ((d - y) ** 2).sum()

        return jax.lax.scan(step, carry[0], (each, xs, targets))[1]

    every = jax.tree.map(lambda p: jnp.broadcast_to(p, (T, *p.shape)), tied)
    terms = jax.jit(jax.jacrev(losses))(every)  # [t, k, ...]
    found = _credit(net, params, carry, xs, targets)
    whole = _gradient(net, params, carry, xs, targets)[0]
    for leaf, g, of in zip(terms, whole, found.by_parameter[0], strict=True):
        norm = jnp.linalg.norm(leaf.reshape(T, T, -1), axis=-1)
        along = jnp.einsum("tkn,n->tk", leaf.reshape(T, T, -1), g.reshape(-1))
        scale = norm.max()
        np.testing.assert_allclose(jb.by_steps(of.norm), norm, rtol=0, atol=1e-12 * scale)
        length = norm * jnp.linalg.norm(g)
        cosine = jnp.where(length > 0, along / jnp.where(length > 0, length, 1), 0.0)
        np.testing.assert_allclose(jb.by_steps(of.cosine), cosine, rtol=0, atol=1e-10)
        leaf = np.asarray(leaf).reshape(T, T, -1)
        by_lag = np.stack([sum(leaf[t, t - lag] for t in range(lag, T)) for lag in range(T)])
        np.testing.assert_allclose(of.lag_norm, jnp.linalg.norm(by_lag, axis=-1), atol=1e-12 * scale)
        if scale > 0:
            np.testing.assert_allclose(of.share, by_lag @ np.ravel(g) / (g**2).sum(), atol=1e-12)


@pytest.mark.parametrize("window", [1, 2, 4])
def test_the_first_lags_are_the_sliding_truncation(window):
    net, (xs, targets) = _net("lstm"), _data(7)
    params = _params(net)
    found = _credit(net, params, None, xs, targets, lags=window)
    wanted = _gradient(net, params, None, xs, targets, gradient=jb.truncated(window, stride=1))
    assert not w.wrong(found.gradient, wanted, 1e-12)
    assert found.of_all.norm.shape == (window, 7)


def test_layers_residuals_dropout_masks_and_the_last_output():
    """A stack goes back together, lag by lag, to the gradient of the whole."""
    cells = [jb.elman(3, 3), jb.layer(jb.gru(3, 3), residual=True, dropout=0.3)]
    cells.append(jb.layer(jb.lstm(3, 4), recurrent_dropout=0.5))
    net, (xs, targets) = jb.network(cells, jb.last(jb.readout(4, 2))), _data()
    params, mask = _params(net), jb.mask_of_lengths(jnp.array([5, 3]), T)
    more = {"mask": mask, "key": jax.random.key(5)}
    found = _credit(net, params, None, xs, targets[0], **more)
    assert not w.wrong(found.gradient, _gradient(net, params, None, xs, targets[0], **more), 1e-12)
    assert (found.of_all.norm[:, :2] == 0).all()  # only steps 3 and 5 have a loss


def test_a_loss_of_ones_own_is_read_by_its_outputs():
    def last_minus_first(ys, targets):
        return ((ys[-1] * ys[0] - targets[0]) ** 2).sum()

    net, (xs, targets) = _net("gru"), _data()
    params = _params(net)
    found = _credit(net, params, None, xs, targets, loss=last_minus_first)
    wanted = _gradient(net, params, None, xs, targets, loss=last_minus_first)
    assert not w.wrong(found.gradient, wanted, 1e-12)


def test_memory_is_linear_in_the_length():
    """λ of all losses is [T, ..., H], and the terms of a lag are made a few at a time."""
    net = jb.network([jb.elman(3, 64)], jb.readout(64, 2))
    run = jax.jit(functools.partial(jb.credit, net, jb.squared_error, lags=4))

    def temporaries(steps):
        shapes = jax.eval_shape(lambda: (net.init(jax.random.key(0)), None, *_data(steps)))
        return run.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    short, long = temporaries(4000), temporaries(8000)
    assert long < 2.2 * short
    assert long < 15 * 8 * 8000 * ROWS * 64 + 8 * 2**23  # floats of states, and of terms at once


def test_a_cut_first_step_does_not_reach_the_initial_carry():
    net, (xs, targets) = _net("gru-before-learned"), _data()
    params, cut = _params(net), jnp.zeros((T, ROWS), bool).at[0, 0].set(True)
    found = _credit(net, params, None, xs, targets, cut=cut)
    assert not w.wrong(found.gradient, _gradient(net, params, None, xs, targets, cut=cut), 1e-12)


def test_a_term_left_out_is_seen():
    """Negative control: all lags but one are not the gradient."""
    net, (xs, targets) = _net("elman-tanh"), _data()
    params = _params(net)
    found = _credit(net, params, None, xs, targets, lags=T - 1)
    assert w.wrong(found.gradient, _gradient(net, params, None, xs, targets), 1e-6)


def _naive_profile(cell, params, carry, xs, t, k):
    """‖ds_t/ds_k‖_F / √S of the first row by jax.jacobian."""
    s = jax.tree.map(lambda z: z[:1], carry)
    s, _ = jb.unroll(cell, params, s, xs[: k + 1, :1])
    if t == k:
        return 1.0
    run = jax.jit(jax.jacobian(lambda s: jb.unroll(cell, params, s, xs[k + 1 : t + 1, :1])[0]))
    squares = sum(float((z**2).sum()) for z in jax.tree.leaves(run(s)))
    return np.sqrt(squares / sum(z.size for z in jax.tree.leaves(s)))


@pytest.mark.parametrize("name", ["lstm", "own-layer-norm"])
def test_lag_profile_is_the_norm_of_the_jacobian(name):
    case = cases.make(name, T, (ROWS,))
    run = jax.jit(functools.partial(jb.lag_profile, case.row.cell))
    found = run(case.params, case.carry, case.xs)
    for t, k in ((4, 4), (4, 3), (4, 0)):
        wanted = _naive_profile(case.row.cell, case.params, case.carry, case.xs, t, k)
        assert abs(found[t - k, t, 0] - wanted) < 1e-12
    assert (found[3, :3] == 0).all()


def test_lag_profile_of_losses_is_lambda():
    """‖λᵗ_k‖ of one loss alone is what the backward pass of that loss gives to the state at k."""
    case = cases.make("lstm", T, (ROWS,))
    found = jax.jit(functools.partial(jb.lag_profile, case.row.cell))(
        case.params, case.carry, case.xs, case.d_hs
    )
    s, _ = jb.unroll(case.row.cell, case.params, case.carry, case.xs[:2])  # the state at k = 1

    def loss_of_step_4(s):
        return (jb.unroll(case.row.cell, case.params, s, case.xs[2:])[1][-1] * case.d_hs[-1]).sum()

    lam = jax.grad(loss_of_step_4)(s)
    assert np.allclose(found[3, 4], jnp.sqrt((lam.h**2).sum(-1) + (lam.c**2).sum(-1)), rtol=1e-12)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"lags": 0}, "lags: expected an integer from 1 to 5, got 0"),
        ({"lags": 6}, "lags: expected an integer from 1 to 5"),
        ({"lags": 2.0}, "lags: expected an integer from 1 to 5"),
        ({"mask": np.ones(3, bool)}, "mask: expected bool"),
    ],
)
def test_messages(more, message):
    net, (xs, targets) = _net("elman-tanh"), _data()
    run = functools.partial(jb.credit, net, jb.squared_error, **more)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(run, _params(net), None, xs, targets)


def test_a_layer_that_reads_backwards_is_refused():
    net = jb.network([jb.layer(jb.elman(3, 4), backward=jb.elman(3, 4))], jb.readout(8, 2))
    xs, targets = _data()
    with pytest.raises(ValueError, match="net: expected layers that read forward"):
        jax.eval_shape(functools.partial(jb.credit, net, jb.squared_error), _params(net), None, xs, targets)


def test_lag_profile_names_a_wrong_d_hs():
    case = cases.make("lstm", T, (ROWS,))
    run = functools.partial(jb.lag_profile, case.row.cell)
    with pytest.raises(ValueError, match=r"d_hs: expected float64\[5,2,4\], as h"):
        jax.eval_shape(run, case.params, case.carry, case.xs, case.d_hs[1:])


def test_by_steps_names_what_is_no_terms():
    with pytest.raises(
        ValueError, match=r"z: expected \[lags, T\], no more lags than steps, got float64\[3\]"
    ):
        jb.by_steps(jnp.zeros(3))

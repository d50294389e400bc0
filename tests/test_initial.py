"""Initial parameters have the scales, biases and dtypes that the docstrings state."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb

I, H = 50, 40  # noqa: E741


def _blocks(params):
    return np.split(np.asarray(params.w_h), params.w_h.shape[1] // H, axis=1)


@pytest.mark.parametrize("make", [jb.elman, jb.lstm, jb.gru, jb.leaky, jb.mgu])
def test_input_weights_keep_the_variance_and_recurrent_blocks_the_norm(make):
    params = make(I, H).init(jax.random.key(0))
    assert abs(float(params.w_x.std()) * np.sqrt(I) - 1) < 0.1
    for block in _blocks(params):
        assert np.allclose(block.T @ block, np.eye(H), atol=1e-12)
    gates = _blocks(params)
    assert all((a != b).any() for a, b in itertools.pairwise(gates))  # each drawn by itself


@pytest.mark.parametrize("make", [jb.elman, jb.gru, jb.mgu])
def test_biases_are_zero(make):
    params = make(I, H).init(jax.random.key(0))
    assert not any(np.any(p) for p in params[2:])


def test_gain_and_identity():
    params = jb.lstm(I, H, recurrent=jb.orthogonal(0.5)).init(jax.random.key(0))
    for block in _blocks(params):
        assert np.allclose(np.linalg.svd(block, compute_uv=False), 0.5, atol=1e-12)
    params = jb.elman(I, H, activation="relu", recurrent=jb.identity(0.9)).init(jax.random.key(0))
    assert (params.w_h == 0.9 * np.eye(H)).all()
    assert jb.orthogonal(0.5) is jb.orthogonal(gain=0.5)


def test_blocks_of_heads_and_a_projection_keep_the_norm():
    """Every gate of every head by itself; a projection where it has fewer columns than rows."""
    w_h = np.asarray(jb.lstm(I, H, heads=4).init(jax.random.key(0)).w_h)
    assert w_h.shape == (4, 10, 40)
    blocks = [block for head in w_h for block in np.split(head, 4, axis=1)]
    assert all(np.allclose(block.T @ block, np.eye(10), atol=1e-12) for block in blocks)
    assert all((a != b).any() for a, b in itertools.pairwise(blocks))
    params = jb.lstm(I, H, projection=10, forget_bias=2.0).init(jax.random.key(0))
    assert params.w_h.shape == (10, 4 * H)
    assert np.allclose(params.w_p.T @ params.w_p, np.eye(10), atol=1e-12)
    assert params.b.reshape(4, H)[1].tolist() == [2.0] * H


def test_an_initialiser_of_jax_itself():
    normal = jax.nn.initializers.normal(2.0)
    params = jb.gru(I, H, recurrent=normal).init(jax.random.key(0))
    assert abs(float(params.w_h.std()) - 2) < 0.1


def test_forget_bias_is_stored_in_the_bias():
    b = jb.lstm(I, H).init(jax.random.key(0)).b.reshape(4, H)
    assert b.tolist() == [[0.0] * H, [1.0] * H, [0.0] * H, [0.0] * H]
    b = jb.gru(I, H, update_bias=-2.0).init(jax.random.key(0)).b.reshape(3, H)
    assert b.tolist() == [[0.0] * H, [-2.0] * H, [0.0] * H]


OPTIONS = {jb.lstm: [{"peephole": True}, {"projection": 2}], jb.gru: [{}, {"reset_after": False}]}
EVERY = [jb.elman, jb.lstm, jb.gru, jb.leaky, jb.mgu, jb.indrnn]


@pytest.mark.parametrize(("make", "options"), [(make, o) for make in EVERY for o in OPTIONS.get(make, [{}])])
def test_without_biases_the_other_parameters_are_the_same(make, options):
    params = make(3, 4, **options).init(jax.random.key(0))._asdict()
    unbiased = make(3, 4, bias=False, **options).init(jax.random.key(0))._asdict()
    assert list(unbiased) == [name for name in params if name not in ("b", "b_h")]
    assert all((unbiased[name] == params[name]).all() for name in unbiased)


def test_chrono_biases():
    """σ(b_f) spans memories of 1 to T_max − 1 steps; the input gate opposes it."""
    wide = 200
    i, f, g, o = (
        jb.lstm(2, wide, forget_bias=jb.chrono(100), recurrent=jb.identity())
        .init(jax.random.key(0))
        .b.reshape(4, wide)
    )
    assert (i == -f).all()
    assert not np.any([g, o])
    z = (
        jb.gru(2, wide, reset_after=True, update_bias=jb.chrono(100), recurrent=jb.identity())
        .init(jax.random.key(0))
        .b.reshape(3, wide)[1]
    )
    many = jb.chrono(100)(jax.random.key(0), 4000, jnp.result_type(float))
    for scale in map(np.exp, (f, z, many)):
        assert scale.min() >= 1
        assert scale.max() <= 99
        assert abs(scale.mean() - 50) < 4 * 28.3 / len(scale) ** 0.5  # four standard errors; 1.8 of many


def test_leak_and_peepholes_and_learned_carries():
    assert np.allclose(jax.nn.sigmoid(jb.leaky(I, H, rate=0.25).init(jax.random.key(0)).rho), 0.25)
    params = jb.learn_carry(jb.lstm(I, H, peephole=True)).init(jax.random.key(0))
    assert not any(np.any(p) for p in params[3:])
    assert params._fields == ("w_x", "w_h", "b", "p_i", "p_f", "p_o", "h_0", "c_0")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_default_dtype_is_that_of_jax(dtype):
    with jax.enable_x64(dtype == "float64"):
        for cell in (
            jb.lstm(3, 4, forget_bias=jb.chrono(9), peephole=True),
            jb.gru(3, 4, reset_after=False),
            jb.leaky(3, 4),
            jb.indrnn(3, 4),
        ):
            params = jb.learn_carry(cell).init(jax.random.key(0))
            assert {p.dtype.name for p in params} == {dtype}
            carry, hs = jb.unroll(jb.learn_carry(cell), params, None, jnp.ones((2, 3)))
            assert {z.dtype.name for z in (*carry, hs)} == {dtype}


def test_every_factory_is_cached():
    assert jb.lstm(3, 5) is jb.lstm(3, hidden_size=5, forget_bias=1.0)
    assert jb.gru(3, 5, update_bias=jb.chrono(9)) is jb.gru(3, 5, reset_after=True, update_bias=jb.chrono(9))
    assert jb.learn_carry(jb.mgu(3, 5)) is jb.learn_carry(jb.mgu(3, 5))
    assert jb.indrnn(3, 5, activation=jnp.sin) is jb.indrnn(3, 5, activation=jnp.sin)
    assert jb.leaky(3, 5) is jb.leaky(3, 5, activation="tanh", rate=0.1)

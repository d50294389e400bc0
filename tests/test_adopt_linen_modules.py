"""ScannedRNN, adopted cells, gradient methods, dtypes and what is refused, for flax.linen."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.flax_ways import LENGTHS, B, H, I, T
from support.live import compared, random_like

import jax_bptt as jb

nn = pytest.importorskip("flax.linen")

from support.linen_cells import OURS, THEIRS, inputs_of, random_of  # noqa: E402

from jax_bptt.adapters import flax_linen  # noqa: E402


def _copy(parent):
    """ScannedRNN of purejaxrl; for its initial carry some of its copies make a GRUCell in the module."""

    class ScannedRNN(nn.Module):
        @functools.partial(
            nn.scan, variable_broadcast="params", in_axes=0, out_axes=0, split_rngs={"params": False}
        )
        @nn.compact
        def __call__(self, carry, x):
            ins, resets = x
            begin = self.initialize_carry(ins.shape[0], ins.shape[1])
            carry = jnp.where(resets[:, None], begin, carry)
            return nn.GRUCell(features=ins.shape[1])(carry, ins)

        @staticmethod
        def initialize_carry(batch_size, hidden_size):
            cell = nn.GRUCell(features=hidden_size, **parent)
            return cell.initialize_carry(jax.random.key(0), (batch_size, hidden_size))

    return ScannedRNN


class Agent(nn.Module):
    rnn: nn.Module

    @nn.compact
    def __call__(self, carry, x):
        carry, ys = self.rnn(carry, (nn.Dense(H)(x[0]), x[1]))
        return carry, nn.Dense(2)(ys)


@pytest.mark.parametrize(("parent", "cell_name"), [({"parent": None}, "GRUCell_0"), ({}, "GRUCell_1")])
def test_scanned_rnn_is_a_copy_of_it(parent, cell_name):
    theirs = _copy(parent)
    ours = flax_linen.ScannedRNN(cell_name=cell_name)
    carry = theirs.initialize_carry(B, H)
    np.testing.assert_array_equal(ours.initialize_carry(B, H), carry, strict=True)
    resets = jnp.asarray(np.random.default_rng(0).random((T, B)) < 0.3, jnp.float32)  # as some pass them
    ins = random_like(0, jnp.zeros((T, B, I), jnp.float32))
    variables = Agent(theirs()).init(jax.random.key(0), carry, (ins, resets))
    jax.tree.map(
        np.testing.assert_array_equal, variables, Agent(ours).init(jax.random.key(0), carry, (ins, resets))
    )

    def run(rnn):
        def f(variables, carry, ins):
            last, ys = Agent(rnn).apply(variables, carry, (ins, resets))
            return {"last": last, "ys": ys}

        return f

    wide = jax.tree.map(lambda z: z.astype(jnp.float64), (variables, carry + 1, ins))
    with jax.numpy_dtype_promotion("standard"):
        found = compared(run(theirs()), run(flax_linen.ScannedRNN()), *wide)  # under either name
    assert max(found.values()) < 1e-12, found


def test_adopted_cells_stand_inside_a_jitted_loss_and_compile_once():
    cell, traces = OURS["GRUCell"], []
    params, _, xs = random_of(cell, B)

    @jax.jit
    def loss(params):
        traces.append(1)
        ours, weights = jb.adopt(cell, params["params"]["cell"])
        return (jb.unroll(ours, weights, None, jnp.moveaxis(xs, 1, 0))[1] ** 2).sum()

    def wanted(params):
        return (nn.RNN(cell).apply(params, xs) ** 2).sum()

    for seed in (1, 2):
        params = random_like(seed, params)
        found, there = jax.grad(loss)(params), jax.grad(wanted)(params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-11, 1e-12), found, there)
    assert len(traces) == 1


def test_what_adopt_makes_of_a_cell():
    for name, made in [
        ("GRUCell", jb.gru(I, H)),
        ("OptimizedLSTMCell", jb.lstm(I, H)),
        ("LSTMCell", jb.lstm(I, H)),
    ]:
        variables, _, _ = random_of(OURS[name], B)
        assert jb.adopt(OURS[name], variables["params"]["cell"])[0] == made
        assert jb.adopt(nn.RNN(OURS[name]), variables)[0] == made
        assert jb.adopt(nn.RNN(OURS[name]).bind(variables))[0] == made
    variables, _, xs = random_of(THEIRS["MGUCell"], B)
    cell, params = jb.adopt(THEIRS["MGUCell"], variables["params"]["cell"], input_size=I)
    assert cell is jb.adopt(THEIRS["MGUCell"], variables["params"]["cell"], input_size=I)[0]
    hs = jb.unroll(cell, params, None, jnp.moveaxis(xs, 1, 0), gradient=jb.checkpointed())[1]
    np.testing.assert_allclose(jnp.moveaxis(hs, 0, 1), nn.RNN(THEIRS["MGUCell"]).apply(variables, xs), 1e-12)


@pytest.mark.parametrize("method", [jb.checkpointed(), jb.rtrl(), jb.truncated(T), jb.autodiff()], ids=str)
def test_gradient_methods(method):
    params, _, xs = random_of(OURS["GRUCell"], B)

    def grad(rnn):
        return jax.grad(lambda p: (rnn.apply(p, xs, seq_lengths=LENGTHS, return_carry=True)[0] ** 2).sum())(
            params
        )

    found = grad(flax_linen.RNN(OURS["GRUCell"], gradient=method)), grad(nn.RNN(OURS["GRUCell"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-11, 1e-12), *found)


def test_a_truncated_gradient_holds_carries_constant():
    cell = OURS["GRUCell"]
    params, carry, xs = random_of(cell, B)

    def in_pieces(params):
        c, total = carry, 0.0
        for t in range(0, T, 1):
            c, ys = nn.RNN(cell, return_carry=True).apply(
                params, xs[:, t : t + 1], initial_carry=jax.lax.stop_gradient(c)
            )
            total += (ys**2).sum()
        return total

    ours = flax_linen.RNN(cell, gradient=jb.truncated(1))
    found = jax.grad(lambda p: (ours.apply(p, xs, initial_carry=carry) ** 2).sum())(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-11, 1e-12), found, jax.grad(in_pieces)(params)
    )


@pytest.mark.parametrize("kind", [nn.GRUCell, nn.LSTMCell])
@pytest.mark.parametrize(
    ("own", "computed", "inputs"),
    [
        ("bfloat16", None, "bfloat16"),
        ("float32", "bfloat16", "float32"),
        ("float32", None, "int32"),
        ("float32", "float32", "float64"),
        ("bfloat16", "bfloat16", "float32"),
    ],
)
def test_dtypes_are_promoted_as_flax_does(kind, own, computed, inputs):
    options = {"recurrent_kernel_init": nn.initializers.lecun_normal(), "param_dtype": own, "dtype": computed}
    cell = kind(H, **options)
    xs = (3 * inputs_of(cell, B)).astype(inputs)
    with jax.numpy_dtype_promotion("standard"):
        theirs, ours = nn.RNN(cell, return_carry=True), flax_linen.RNN(cell, return_carry=True)
        variables = ours.init(jax.random.key(0), xs)
        found, wanted = ours.apply(variables, xs), theirs.apply(variables, xs)
    exact = own == "float32" and computed != "bfloat16"
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a.astype("float64"), b.astype("float64"), atol=1e-6 if exact else 3e-2)


def test_sharded_params_and_ensembles():
    cell = nn.GRUCell(8)
    xs = random_like(0, jnp.zeros((8, T, I), jnp.float32))
    params = nn.RNN(cell).init(jax.random.key(0), xs)
    mesh = jax.make_mesh((2, 4), ("rows", "units"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def put(z, *spec):
        return jax.device_put(z, jax.NamedSharding(mesh, jax.P(*spec)))

    placed = jax.tree.map(lambda z: put(z, *[None] * (z.ndim - 1), "units"), params)

    def grad(rnn, params, xs):
        return jax.jit(jax.grad(lambda p: (rnn.apply(p, xs) ** 2).sum()))(params)

    found = grad(flax_linen.RNN(cell), placed, put(xs, "rows")), grad(nn.RNN(cell), params, xs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), *found)
    many = jax.tree.map(lambda z: jnp.stack([z, 2 * z]), params)
    made = [jax.vmap(lambda p, rnn=rnn: rnn(cell).apply(p, xs))(many) for rnn in (nn.RNN, flax_linen.RNN)]
    np.testing.assert_allclose(*made, 1e-4, 1e-5)


def test_a_few_steps_of_optax_are_theirs():
    params, _, xs = random_of(OURS["OptimizedLSTMCell"], B)
    tx = optax.adam(0.1)

    def curve(rnn):
        @jax.jit
        def step(p, state):
            loss, grads = jax.value_and_grad(lambda p: (rnn.apply(p, xs) ** 2).sum())(p)
            updates, state = tx.update(grads, state)
            return optax.apply_updates(p, updates), state, loss

        p, state, losses = params, tx.init(params), []
        for _ in range(5):
            p, state, loss = step(p, state)
            losses.append(float(loss))
        return losses

    cell = OURS["OptimizedLSTMCell"]
    with jax.numpy_dtype_promotion("standard"):
        np.testing.assert_allclose(curve(flax_linen.RNN(cell)), curve(nn.RNN(cell)), 1e-10)


GRU = nn.GRUCell(H)
REFUSED = {
    "unroll": lambda: flax_linen.RNN(GRU, unroll=2),
    "variable_axes": lambda: flax_linen.RNN(GRU, variable_axes={"params": 0}),
    "variable_carry": lambda: flax_linen.RNN(GRU, variable_carry="batch_stats"),
    "split_rngs": lambda: flax_linen.RNN(GRU, split_rngs={"params": False, "dropout": True}),
    "gradient": lambda: flax_linen.RNN(GRU, gradient=jb.full),
    "seq_lengths": lambda: flax_linen.RNN(GRU).init(
        jax.random.key(0), jnp.zeros((B, T, I), jnp.float32), seq_lengths=jnp.ones(B + 1, int)
    ),
    "params": lambda: jb.adopt(GRU),
    "input_size": lambda: jb.adopt(nn.MGUCell(H), {}),
    "cell.reverse": lambda: jb.adopt(nn.RNN(GRU, reverse=True), {}),
    "cell.keep_order": lambda: jb.adopt(nn.RNN(GRU, keep_order=True), {}),
    "cell.carry_init": lambda: jb.adopt(
        nn.GRUCell(H, carry_init=nn.initializers.normal()), random_of(OURS["GRUCell"], B)[0]["params"]["cell"]
    ),
    "cell": lambda: jb.adopt(nn.Bidirectional(nn.RNN(GRU), nn.RNN(GRU)), {}),
}


@pytest.mark.parametrize("argument", REFUSED)
def test_what_is_refused_says_what_to_do(argument):
    with pytest.raises(ValueError, match=rf"^(flax_linen.RNN|adopt): {argument}: expected .*; .*"):
        REFUSED[argument]()


def test_what_linen_refuses_and_what_ours_cannot_hold():
    xs = random_like(0, jnp.zeros((B, T, I), jnp.float32))
    variables = nn.RNN(GRU).init(jax.random.key(0), xs)
    without_bias = jax.tree.map(lambda p: p, variables)
    del without_bias["params"]["cell"]["in"]["bias"]
    with pytest.raises(ValueError, match='Could not find parameter named "bias"'):
        flax_linen.RNN(GRU).apply(without_bias, xs)
    with pytest.raises(ValueError, match="ScopeParamShapeError"):
        flax_linen.RNN(nn.GRUCell(H + 1)).apply(variables, xs)
    with pytest.raises(ValueError, match="inputs: expected real numbers"):
        flax_linen.RNN(GRU).apply(variables, xs.astype(complex))
    lstm, one_array = flax_linen.RNN(nn.LSTMCell(H)), jnp.zeros((B, H))
    of_lstm = lstm.init(jax.random.key(0), xs)
    with pytest.raises(ValueError, match="carry: expected the two arrays of an LSTM"):
        lstm.apply(of_lstm, xs, initial_carry=one_array)
    with pytest.raises(ValueError, match="adopt: cell: expected a cell, got the class GRUCell"):
        jb.adopt(nn.GRUCell)
    with pytest.raises(ValueError, match=f"adopt: input_size: expected {I}, the size"):
        jb.adopt(GRU, variables["params"]["cell"], input_size=I + 1)

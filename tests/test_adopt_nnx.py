"""Cells and modules of flax.nnx give the same numbers and gradients under ours as by themselves.

`python tests/test_adopt_nnx.py` prints the largest ratio of norms of every cell.
"""

from __future__ import annotations

import functools

import conftest  # noqa: F401  (x64 and strict numerics, also when this file is run as a script)
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.flax_ways import LENGTHS, B, H, I, T, in_all_ways
from support.live import compared, largest, random_like

import jax_bptt as jb

nnx = pytest.importorskip("flax.nnx")

from jax_bptt.adapters import flax_nnx  # noqa: E402

F64 = {"dtype": jnp.float64, "param_dtype": jnp.float64}


def _made(kind, **options):
    return kind(I, H, rngs=nnx.Rngs(0), **F64, **options)


def _with(cell, **parts):
    """A cell some of whose parts are others."""
    for name, part in parts.items():
        setattr(cell, name, part)
    return cell


def _linear(**options):
    return nnx.Linear(H, 3 * H, rngs=nnx.Rngs(1), **F64, **options)


class Doubled(nnx.GRUCell):
    """A cell of a user, derived from one that is recognised."""

    def __call__(self, carry, x):
        carry, y = super().__call__(carry, x)
        return carry, {"twice": 2 * y, "first": y[..., :1]}


class Scale(nnx.Module):
    """An activation with a weight."""

    def __init__(self):
        self.scale = nnx.Param(jnp.full((1, 1), 0.7))

    def __call__(self, z):
        return jnp.tanh(self.scale[...] * z)


def scaled(args, /, *, dtype=None, inexact=True):
    """Another function than nnx's in place of promote_dtype."""
    return tuple(None if a is None else 1.5 * a for a in args)


class Twice(nnx.Param):
    """A variable that is changed as it is read."""

    def get_value(self, **options):
        return 2 * super().get_value(**options)


def _with_twice():
    cell = _made(nnx.GRUCell)
    cell.dense_h.kernel = Twice(cell.dense_h.kernel[...])
    return cell


OURS = {  # cells that become cells of this library
    "SimpleCell": lambda: _made(nnx.SimpleCell),
    "SimpleCell, residual, relu": lambda: _made(nnx.SimpleCell, residual=True, activation_fn=nnx.relu),
    "GRUCell": lambda: _made(nnx.GRUCell),
    "GRUCell, other functions": lambda: _made(nnx.GRUCell, gate_fn=nnx.hard_sigmoid, activation_fn=nnx.gelu),
    "GRUCell with b_hn": lambda: _with(_made(nnx.GRUCell), dense_h=_linear()),
    "GRUCell, a kernel that changes as it is read": _with_twice,
    "LSTMCell": lambda: _made(nnx.LSTMCell),
    "OptimizedLSTMCell": lambda: _made(nnx.OptimizedLSTMCell),
    "OptimizedLSTMCell, softplus": lambda: _made(nnx.OptimizedLSTMCell, gate_fn=nnx.softplus),
}
THEIRS = {  # cells that are called as they are
    "GRUCell, softmax": lambda: _made(nnx.GRUCell, gate_fn=nnx.softmax),
    "GRUCell, promote_dtype": lambda: _made(nnx.GRUCell, promote_dtype=scaled),
    "GRUCell, activation with a weight": lambda: _made(nnx.GRUCell, activation_fn=Scale()),
    "GRUCell, LoRA": lambda: _with(
        _made(nnx.GRUCell),
        dense_h=nnx.LoRA(H, 2, 3 * H, base_module=_linear(use_bias=False), **F64, rngs=nnx.Rngs(2)),
    ),
    "GRUCell, dot_general": lambda: _with(
        _made(nnx.GRUCell), dense_h=_linear(dot_general=lambda *a, **k: 2 * jax.lax.dot_general(*a, **k))
    ),
    "GRUCell, subclass": lambda: _made(Doubled),
}
CELLS = OURS | THEIRS


def _random(cell, *rows, seed=1):
    """(weights of its RNN, carry, inputs), and the function that runs an RNN of these weights."""
    weights = random_like(seed, nnx.to_pure_dict(nnx.state(cell, nnx.Param)))
    carry = cell.initialize_carry((*rows, I), nnx.Rngs(0))
    return weights, random_like(2, carry), random_like(0, jnp.zeros((*rows, T, I)))


def _running(rnn):
    graph, state, rest = nnx.split(rnn, nnx.Param, ...)

    def run(weights):
        own = nnx.clone(nnx.merge(graph, state, rest))
        inner = nnx.state(own.cell, nnx.Param)
        nnx.replace_by_pure_dict(inner, weights)
        nnx.update(own.cell, inner)
        return own

    return run


def _compared(make):
    def run(kind):
        running = _running(kind(make()))
        return lambda weights, carry, xs: in_all_ways(running(weights), carry, xs)

    return compared(run(nnx.RNN), run(flax_nnx.RNN), *_random(make(), B))


@pytest.mark.parametrize("name", CELLS)
def test_outputs_and_gradients_are_theirs_in_all_ways(name):
    assert (flax_nnx.recognised(CELLS[name]()) is not None) == (name in OURS)
    found = _compared(CELLS[name])
    assert max(found.values()) < 1e-12, found


@pytest.mark.parametrize("rows", [(), (2, B)])
@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell, softmax"])
def test_any_number_of_batch_axes(name, rows):
    def run(kind):
        running = _running(kind(CELLS[name](), reverse=True))
        return lambda w, c, x: {"ys": running(w)(x, initial_carry=c)}

    found = compared(run(nnx.RNN), run(flax_nnx.RNN), *_random(CELLS[name](), *rows))
    assert max(found.values()) < 1e-12, found


@pytest.mark.parametrize("name", ["GRUCell", "GRUCell, softmax"])
def test_padding_affects_nothing_and_length_0_keeps_the_carry(name):
    lengths = jnp.array([[T, 0, 3], [1, 2, 0]])
    behind = jnp.arange(T)[None, None] >= lengths[..., None]
    weights, carry, xs = _random(CELLS[name](), 2, B)
    xs = jnp.where(behind[..., None], jnp.nan, xs)
    running = _running(flax_nnx.RNN(CELLS[name](), return_carry=True, reverse=True))

    def total(weights, carry, xs):
        last, ys = running(weights)(xs, initial_carry=carry, seq_lengths=lengths)
        return (ys**2).sum() + (last**2).sum(), (last, ys)

    grads, (last, ys) = jax.grad(total, (0, 1, 2), has_aux=True)(weights, carry, xs)
    assert (ys[behind] == 0).all()
    assert (grads[2][behind] == 0).all()
    assert (last[lengths == 0] == carry[lengths == 0]).all()
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


class Noisy(nnx.GRUCell):
    """A cell with statistics and random numbers, which change from step to step."""

    def __init__(self, *sizes, rngs):
        super().__init__(*sizes, rngs=rngs)
        self.seen = nnx.BatchStat(jnp.zeros((1, H), jnp.float32))
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.fixed = nnx.Variable(jnp.full((1, 1), 0.5, jnp.float32))  # a weight that is no nnx.Param

    def __call__(self, carry, x):
        carry, y = super().__call__(self.fixed[...] * carry, x)
        self.seen[...] = 0.9 * self.seen[...] + 0.1 * y.mean(0, keepdims=True)
        return self.drop(carry), y - self.seen[...]


def test_what_a_cell_changes_in_itself_goes_on_and_is_theirs_after_two_calls():
    xs = random_like(0, jnp.zeros((B, T, I), jnp.float32))
    weights = nnx.DiffState(0, nnx.Any(nnx.Param, _is_fixed))

    def made(kind):
        rnn = kind(Noisy(I, H, rngs=nnx.Rngs(0)))
        grads = [nnx.grad(lambda rnn: (rnn(xs) ** 3).sum(), argnums=weights)(rnn) for _ in range(2)]
        return nnx.to_pure_dict(nnx.state(rnn)), [nnx.to_pure_dict(g) for g in grads]

    with jax.numpy_dtype_promotion("standard"):
        theirs, ours = made(nnx.RNN), made(flax_nnx.RNN)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(_numbers(a), _numbers(b), 1e-4, 1e-4), ours, theirs)


def _is_fixed(path, _):
    return "fixed" in path


def _numbers(a):
    return jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a


def test_states_checkpoints_and_optimizers_are_theirs():
    xs = random_like(0, jnp.zeros((B, T, I), jnp.float32))

    def curve(kind, **options):
        rnn = kind(nnx.GRUCell(I, H, rngs=nnx.Rngs(0)), **options)
        optimizer = nnx.Optimizer(rnn, optax.adam(0.1), wrt=nnx.Param)

        @nnx.jit
        def step(rnn, optimizer):
            traces.append(1)
            loss, grads = nnx.value_and_grad(lambda rnn: (rnn(xs) ** 2).sum())(rnn)
            optimizer.update(rnn, grads)
            return loss

        traces = []
        losses = [float(step(rnn, optimizer)) for _ in range(5)]
        assert len(traces) == 1
        return losses, rnn

    with jax.numpy_dtype_promotion("standard"):
        (wanted, theirs), (found, ours) = curve(nnx.RNN), curve(flax_nnx.RNN, gradient=jb.checkpointed())
    np.testing.assert_allclose(found, wanted, 1e-4)
    assert jax.tree.structure(nnx.to_pure_dict(nnx.state(theirs))) == jax.tree.structure(
        nnx.to_pure_dict(nnx.state(ours))
    )
    nnx.update(ours, nnx.state(theirs))
    np.testing.assert_allclose(ours(xs), theirs(xs), 1e-5, 1e-6)
    nnx.update(theirs, nnx.state(ours))
    same = flax_nnx.RNN(nnx.GRUCell(I, H, rngs=nnx.Rngs(3)), gradient=jb.checkpointed())
    assert hash(nnx.graphdef(same)) == hash(nnx.graphdef(ours))
    assert nnx.graphdef(same) == nnx.graphdef(ours)


@pytest.mark.parametrize(
    ("own", "computed"), [("bfloat16", None), ("float32", "bfloat16"), ("float32", "float32")]
)
@pytest.mark.parametrize("kind", [nnx.GRUCell, nnx.OptimizedLSTMCell])
def test_dtypes_are_promoted_as_flax_does(kind, own, computed):
    init = nnx.initializers.lecun_normal()
    cell = kind(
        I, H, rngs=nnx.Rngs(0), recurrent_kernel_init=init, param_dtype=jnp.dtype(own), dtype=computed
    )
    for inputs in (own, *(["float64"] if computed == own else [])):
        xs = random_like(0, jnp.zeros((B, T, I), inputs))
        with jax.numpy_dtype_promotion("standard"):
            found, wanted = (rnn(cell, return_carry=True)(xs) for rnn in (flax_nnx.RNN, nnx.RNN))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            assert a.dtype == b.dtype
            tolerance = 1e-6 if own == computed else 3e-2
            np.testing.assert_allclose(a.astype("float64"), b.astype("float64"), atol=tolerance)


def test_sharded_weights_and_ensembles():
    mesh = jax.make_mesh((2, 4), ("rows", "units"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    xs = random_like(0, jnp.zeros((8, T, I), jnp.float32))
    rnns = [kind(nnx.GRUCell(I, 8, rngs=nnx.Rngs(0))) for kind in (nnx.RNN, flax_nnx.RNN)]
    placed = jax.tree.map(
        lambda z: jax.device_put(z, jax.NamedSharding(mesh, jax.P(*[None] * (z.ndim - 1), "units"))),
        nnx.state(rnns[1], nnx.Param),
    )
    nnx.update(rnns[1], placed)
    grads = [nnx.jit(nnx.grad(lambda rnn: (rnn(xs) ** 2).sum()))(rnn) for rnn in rnns]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), *map(nnx.to_pure_dict, grads))

    def many(kind):
        @nnx.vmap(in_axes=0, out_axes=0)
        def make(key):
            return kind(nnx.GRUCell(I, H, rngs=nnx.Rngs(key)), rngs=False)

        rnn = make(jax.random.split(jax.random.key(0), 3))
        return nnx.vmap(lambda rnn: rnn(xs, initial_carry=jnp.zeros((8, H), jnp.float32)))(rnn)

    np.testing.assert_allclose(many(flax_nnx.RNN), many(nnx.RNN), 1e-4, 1e-5)


def test_adopted_cells_stand_inside_a_jitted_loss_and_compile_once():
    xs, traces = random_like(0, jnp.zeros((T, B, I))), []

    @nnx.jit
    @nnx.grad
    def grad(rnn):
        traces.append(1)
        ours, weights = jb.adopt(rnn.cell)
        return (jb.unroll(ours, weights, None, xs)[1] ** 2).sum()

    for name in ("GRUCell", "GRUCell, promote_dtype"):
        rnn = nnx.RNN(CELLS[name](), time_major=True)
        found = grad(rnn), nnx.grad(lambda rnn: (rnn(xs) ** 2).sum())(rnn)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, 1e-11, 1e-12), *map(nnx.to_pure_dict, found)
        )
        grad(nnx.RNN(CELLS[name](), time_major=True))
        assert jb.adopt(rnn)[0] is jb.adopt(CELLS[name]())[0]
    assert len(traces) == 2
    other = nnx.state(nnx.GRUCell(I, H, rngs=nnx.Rngs(5), **F64))
    np.testing.assert_array_equal(jb.adopt(OURS["GRUCell"](), other)[1].w_x, other["dense_i"]["kernel"][...])


class Own(nnx.RNNCellBase):
    """A cell that says nothing about its sizes."""

    def __init__(self):
        self.w = nnx.Param(jnp.ones((I, H)))


RNN = functools.partial(flax_nnx.RNN, OURS["GRUCell"]())
REFUSED = {
    "unroll": lambda: RNN(unroll=2),
    "state_axes": lambda: RNN(state_axes={"params": 0}),
    "broadcast_rngs": lambda: RNN(broadcast_rngs="dropout"),
    "gradient": lambda: RNN(gradient=jb.full),
    "seq_lengths": lambda: RNN()(jnp.zeros((B, T, I)), seq_lengths=jnp.ones(B + 1, int)),
    "cell": lambda: jb.adopt(Noisy(I, H, rngs=nnx.Rngs(0))),
    "input_size": lambda: jb.adopt(Own()),
    "cell.reverse": lambda: jb.adopt(RNN(reverse=True)),
    "cell.keep_order": lambda: jb.adopt(RNN(keep_order=True)),
    "cell.carry_init": lambda: jb.adopt(_with(OURS["GRUCell"](), carry_init=nnx.initializers.normal())),
}


@pytest.mark.parametrize("argument", REFUSED)
def test_what_is_refused_says_what_to_do(argument):
    with pytest.raises(ValueError, match=rf"^(flax_nnx.RNN|adopt): {argument}: expected .*; .*"):
        REFUSED[argument]()


def test_lengths_of_a_cell_that_changes_itself_are_refused():
    rnn = flax_nnx.RNN(Noisy(I, H, rngs=nnx.Rngs(0)))
    with jax.numpy_dtype_promotion("standard"), pytest.raises(ValueError, match="seq_lengths: expected None"):
        rnn(jnp.zeros((B, T, I), jnp.float32), seq_lengths=LENGTHS)


if __name__ == "__main__":
    for cell_name, one in CELLS.items():
        ratios = _compared(one)
        kinds = "outputs", "gradients"
        print(f"{cell_name:45}", *(f"{kind} {largest(ratios, kind):.1e}" for kind in kinds))

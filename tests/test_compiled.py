"""The compiled programs stay fast and small; wherever possible this is tested without a clock."""

import functools
import re
import time

import chex
import jax
import jax.numpy as jnp
import pytest
from support.compile_options import OPTIMISED
from support.compiled_loops import computations, innermost, loops
from support.optimizers import ADAM, SGD

import jax_bptt as jb
from jax_bptt.engine.chunks import chunk_of_run
from jax_bptt.engine.run import Run
from jax_bptt.engine.sequence import Sequence
from jax_bptt.gradients import kept_slopes

T, B, INPUT, HIDDEN = 64, 8, 16, 32


def _compiled(cell, method, wrt=(0, 1, 2), steps=T, **options):
    params = cell.init(jax.random.key(0))
    xs = jnp.ones((steps, B, cell.input_size))

    def loss(params, carry, xs):
        return jnp.sum(jb.unroll(cell, params, carry, xs, gradient=method, **options)[1] ** 2)

    return (
        jax.jit(jax.value_and_grad(loss, wrt))
        .lower(params, cell.initial_carry(params, (B,)), xs)
        .compile(OPTIMISED)
    )


def _loop_dots(compiled) -> list[int]:
    """Matrix products in the body of each while loop, called computations included."""
    bodies = computations(compiled)

    def dots(name: str) -> int:
        called = re.findall(r"(?:calls|to_apply|body)=%([\w.\-]+)", bodies[name])
        products = re.findall(r"= \S+ dot\(|custom_call_target=\"[^\"]*(?:matmul|dot)[^\"]*\"", bodies[name])
        return len(products) + sum(map(dots, called))

    return sorted(map(dots, loops(compiled)))


def _four_gates(units, s, u, v):
    i, f, g, o = (jnp.tanh(a + b) for a, b in zip(u, v, strict=True))
    return jb.Carry(i * f + g * o * s.h)


def _layer_norm(p, s, x):
    z = x + s.h @ p
    return jb.Carry(jnp.tanh((z - z.mean()) / jnp.sqrt(z.var() + 0.1)))


CELLS = {
    "elman": jb.elman(INPUT, HIDDEN),
    "lstm": jb.lstm(INPUT, HIDDEN),
    "lstm-peephole": jb.lstm(INPUT, HIDDEN, peephole=True),
    "gru": jb.gru(INPUT, HIDDEN),
    "gru-heads": jb.gru(INPUT, HIDDEN, heads=4),
    "mgu": jb.mgu(INPUT, HIDDEN),
    "own, four gates": jb.make_cell(INPUT, HIDDEN, _four_gates, gates=4),
    "own, layer norm": jb.step_cell(
        HIDDEN, HIDDEN, _layer_norm, lambda key: jax.random.normal(key, (HIDDEN, HIDDEN))
    ),
}


@pytest.mark.parametrize("name", [name for name in CELLS if name != "lstm"])  # which is below, with marks
def test_full_has_one_dot_in_each_loop(name):
    assert _loop_dots(_compiled(CELLS[name], jb.full())) == [1, 1]


def test_full_has_no_dot_in_the_loops_of_independent_units():
    assert _loop_dots(_compiled(jb.indrnn(INPUT, HIDDEN), jb.full())) == [0, 0]


@pytest.mark.parametrize(
    "cell", [jb.gru(INPUT, HIDDEN, reset_after=False), jb.lstm(INPUT, HIDDEN, projection=8)], ids=repr
)
def test_a_gru_with_the_reset_before_and_a_projected_lstm_need_two(cell):
    """One product waits for the other, forward and backward."""
    assert _loop_dots(_compiled(cell, jb.full())) == [2, 2]


def test_marks_add_no_product():
    pattern = jnp.arange(T * B).reshape(T, B) % 7
    marks = {"mask": pattern != 1, "reset": pattern == 2, "cut": pattern == 3}
    assert _loop_dots(_compiled(jb.lstm(INPUT, HIDDEN), jb.full(), **marks)) == [1, 1]


def test_the_count_sees_the_products_of_autodiff():
    """Negative control: JAX's transpose of the plain scan has x W_x and h W_h forward and three dots back."""
    assert _loop_dots(_compiled(jb.elman(INPUT, HIDDEN), jb.autodiff(), wrt=0)) == [2, 3]


def test_training_has_one_dot_in_each_loop_of_each_layer():
    net = jb.network([jb.elman(INPUT, HIDDEN), jb.elman(HIDDEN, HIDDEN)], jb.readout(HIDDEN, 5))
    state = jb.init_train_state(jax.random.key(0), net, SGD, (B,))
    step = jb.make_train_step(net, jb.softmax_cross_entropy, SGD)
    batch = jb.Batch(jnp.ones((T, B, INPUT)), jnp.zeros((T, B), int))
    assert _loop_dots(step.lower(state, batch).compile(OPTIMISED)) == [1, 1, 1, 1]


def test_temporaries_grow_with_the_states_only():
    """At most 7 arrays [T, B, H] for an Elman cell: states, slopes, G, λ, δz and what feeds them."""
    cell = jb.elman(INPUT, HIDDEN)
    small, large = (_compiled(cell, jb.full(), steps=n * T).memory_analysis() for n in (1, 2))
    per_step = (large.temp_size_in_bytes - small.temp_size_in_bytes) / T
    assert per_step <= 7 * B * HIDDEN * jnp.result_type(float).itemsize


GRU = (4, 5) if jax.__version_info__ < (0, 11) else (4, 7)  # later XLA fuses less of its way back


@pytest.mark.parametrize(("name", "most"), [("elman", (4, 4)), ("lstm", (6, 9)), ("gru", GRU)])
def test_a_step_is_few_kernels_and_copies_no_stack(name, most):
    """Fusions in the loops over steps, the product among them; each costs a microsecond and more.

    Copied is at most λ of each field, [B, H], on the way back.
    """
    bodies = innermost(_compiled(CELLS[name], jb.full(chunk=16, recompute=True)))
    fusions = [body.count(" fusion(") for body in bodies]
    assert all(n <= m for n, m in zip(fusions, most, strict=True)), fusions
    forward, back = (re.findall(r"= \w+(\[\d\S*\])\S* copy\(", body) for body in bodies)
    fields = 2 if name == "lstm" else 1
    assert not forward
    assert back in [[f"[{B},{HIDDEN}]"] * n for n in range(fields + 1)]


def test_weights_are_rounded_in_front_of_the_loop():
    """Not at every step; and the products of the loops are on bfloat16."""
    cell = jb.lstm(INPUT, HIDDEN)
    params = jax.tree.map(lambda p: p.astype("float32"), cell.init(jax.random.key(0)))
    xs = jnp.ones((T, B, INPUT), "float32")
    run = jax.jit(jax.grad(lambda p: jnp.sum(jb.unroll(cell, p, None, xs, dtype=jnp.bfloat16)[1])))
    compiled = run.lower(params).compile(OPTIMISED)
    shapes = f"{HIDDEN},{4 * HIDDEN}|{4 * HIDDEN},{HIDDEN}|{HIDDEN},{HIDDEN}"
    wide = rf"= bf16\[(?:{shapes})\]\S* (?:fusion|convert)\("
    assert not [line for body in innermost(compiled) for line in re.findall(wide + ".*", body)]
    assert f"bf16[{HIDDEN},{4 * HIDDEN}]" in "".join(innermost(compiled))


def test_the_time_of_tiny_outputs_is_linear_in_the_length():
    """Where XLA writes the whole stack at every step (jax#40101), twice the steps take 4 times as long."""
    cell = jb.elman(2, 4)
    params = cell.init(jax.random.key(0))

    gradient = jax.grad(lambda p, xs: jnp.sum(jb.unroll(cell, p, None, xs)[1] ** 2))
    run = jax.jit(gradient, compiler_options=OPTIMISED)
    best = dict.fromkeys((100_000, 200_000), float("inf"))
    for turn in range(40):  # in turns, until other work on the machine has left both a quiet moment
        for steps in best:
            began = time.perf_counter()
            jax.block_until_ready(run(params, jnp.ones((steps, 1, 2))))
            best[steps] = min(best[steps], time.perf_counter() - began)
        if turn >= 2 and best[200_000] / best[100_000] < 3:
            return
    raise AssertionError(best)


@pytest.mark.parametrize(("name", "part"), [("lstm", 0.36), ("gru", 0.36), ("elman", 0.62)])
def test_temporaries_are_a_part_of_those_of_autodiff(name, part):
    """Of value and gradient of a network, at the default settings; an Elman net has h and G, of four."""
    cell = getattr(jb, name)(64, 64)
    net = jb.network([cell], jb.readout(64, 8))
    params = jax.eval_shape(lambda: net.init(jax.random.key(0)))
    carry = jax.eval_shape(lambda: net.initial_carry(net.init(jax.random.key(0)), (32,)))
    xs, targets = (jax.ShapeDtypeStruct((512, 32, n), "float64") for n in (64, 8))

    def temporaries(method):
        run = functools.partial(jb.value_and_grad(net, jb.squared_error), gradient=method)
        return (
            jax.jit(run)
            .lower(params, carry, xs, targets)
            .compile(OPTIMISED)
            .memory_analysis()
            .temp_size_in_bytes
        )

    assert temporaries(jb.full()) <= part * temporaries(jb.autodiff())


@pytest.mark.parametrize(
    ("method", "loops"), [(jb.checkpointed(), 4), (jb.truncated(32), 3), (jb.truncated(50), 7)], ids=repr
)
def test_chunks_of_one_length_are_one_program(method, loops):
    """The loop over chunks, those over their steps, and one more to advance; a shorter chunk is a copy."""
    net = jb.network([jb.elman(3, 4)], jb.readout(4, 2))
    args = net.init(jax.random.key(0)), None, jnp.ones((128, 32, 3)), jnp.ones((128, 32, 2))
    run = functools.partial(jb.value_and_grad(net, jb.squared_error), gradient=method)
    assert jax.jit(run).lower(*args).as_text().count("stablehlo.while") == loops


CHOSEN = {
    "lstm 128x32x32x64": (128, 0),  # in the caches, as one chunk
    "lstm 128x32x64x128": (32, 0),  # in the caches
    "lstm 256x64x128x256": (16, 0),  # many products for each slope
    "gru 256x64x128x256": (16, 0),
    "lstm 768x128x1x128": (8, 1),
    "lstm 4096x8x64x64": (128, 1),
    "elman 256x64x128x256": (16, 1),
    "lstm 1024x1x32x64": (1024, 1),  # small writes
}


@pytest.mark.parametrize("on_gpu", [False, True], ids=["cpu", "gpu"])
def test_slopes_are_kept_where_that_is_faster(on_gpu, monkeypatch):
    """As it was measured on two machines, one with fast products; on a GPU none is kept."""
    monkeypatch.setattr(kept_slopes, "probably_on_a_gpu", lambda: on_gpu)
    for name, (chunk, share) in CHOSEN.items():
        kind, size = name.split()
        steps, rows, inputs, hidden = map(int, size.split("x"))
        cell = getattr(jb, kind)(inputs, hidden)
        params, carry = jax.eval_shape(lambda cell=cell, rows=rows: _params_and_carry(cell, rows))
        xs = jax.ShapeDtypeStruct((steps, rows, inputs), "float32")
        run = Run(params, carry, None, Sequence(xs, None, None, None))
        found = kept_slopes.chunk_of(cell, run)
        wanted = (chunk_of_run(run), 1) if on_gpu else (chunk, share)
        assert (found, kept_slopes.share_recomputed(cell, run, found)) == wanted, name


def _params_and_carry(cell, rows):
    params = jax.tree.map(lambda p: p.astype("float32"), cell.init(jax.random.key(0)))
    return params, cell.initial_carry(params, (rows,))


@pytest.mark.parametrize(("rows", "most"), [(16, 1.5), (64, 2.1)], ids=["one chunk", "chunks"])
def test_the_program_of_full_is_short_beside_that_of_the_scan(rows, most):
    """Its operations before XLA optimises them: compiling takes longer with more. 322 and some 450 of 221."""
    net = jb.network([jb.lstm(32, 64)], jb.readout(64, 2))
    args = net.init(jax.random.key(0)), None, jnp.ones((128, rows, 32)), jnp.ones((128, rows, 2))
    run = jb.value_and_grad(net, jb.squared_error)

    def operations(method):
        text = jax.jit(functools.partial(run, gradient=method)).lower(*args).as_text()
        return text.count(" = stablehlo.")

    of_full, of_scan = operations(jb.full()), operations(jb.autodiff())
    assert of_full <= most * of_scan, (of_full, of_scan)


def test_no_product_is_made_for_gradients_nobody_asked_for():
    """Without xs among the arguments of jax.grad, dx_t = du_t W_xᵀ is not computed."""
    cell = jb.elman(INPUT, HIDDEN)
    count = [_compiled(cell, jb.full(), wrt=wrt).as_text().count(" dot(") for wrt in (0, (0, 2))]
    assert count[1] - count[0] == 1


def test_named_scopes_reach_the_profile():
    text = _compiled(jb.elman(INPUT, HIDDEN), jb.full(recompute=True)).as_text()
    for scope in ("bptt/forward", "bptt/linearise", "bptt/sweep", "bptt/contract"):
        assert scope in text


def test_factories_are_cached():
    assert jb.elman(3, 5) is jb.elman(input_size=3, hidden_size=5, activation="tanh")
    assert jb.elman(3, 5, activation=jnp.sin) is jb.elman(3, 5, activation=jnp.sin)
    assert jb.make_cell(3, 5, _four_gates, gates=4) is jb.make_cell(3, 5, _four_gates, gates=4)
    assert jb.full() == jb.full()
    assert jb.network([jb.elman(3, 5)], jb.readout(5, 2)) == jb.network([jb.elman(3, 5)], jb.readout(5, 2))


def test_a_network_made_anew_is_not_traced_anew():
    """As a static argument it is the same value, so that nothing recompiles."""

    @functools.partial(jax.jit, static_argnums=0)
    @chex.assert_max_traces(n=1)
    def gradient(net, params, carry, xs):
        return jb.value_and_grad(net, lambda ys, _: jnp.sum(ys**2))(params, carry, xs, None)

    for _ in range(3):
        net = jb.network([jb.elman(3, 5), jb.make_cell(5, 5, _four_gates, gates=4)], jb.readout(5, 2))
        params = net.init(jax.random.key(0))
        gradient(net, params, net.initial_carry(params, ()), jnp.ones((7, 3)))


def test_training_compiles_once():
    net = jb.network([jb.elman(3, 5)], jb.readout(5, 2))
    state = jb.init_train_state(jax.random.key(0), net, ADAM, (2,))
    step = jb.make_train_step(net, jb.squared_error, ADAM)
    for i in range(4):
        state, _ = step(state, jb.Batch(jnp.full((7, 2, 3), float(i)), jnp.zeros((7, 2, 2))))
    assert step._cache_size() == 1

"""Encoders, dense layers, heads and tied readouts: gradients against loops over time, and their use."""

import copy
import functools
from multiprocessing.reduction import ForkingPickler

import jax
import jax.numpy as jnp
import optax
import pytest
import support.witnesses as w
from support.device_meshes import ALL, ROWS, STEPS, collectives_of, spread_over_devices
from support.optimizers import ADAM
from support.roads import ONCE, PLAIN, PROGRAMS
from support.whole_models import (
    MARKS,
    MASK,
    MODELS,
    NET,
    WEIGHT,
    WORDS,
    XS,
    B,
    E,
    T,
    V,
    by_loops,
    error_by_loops,
    params_of,
)

import jax_bptt as jb
from jax_bptt.networks import encoder, readout_and_loss

SOME = ("full", "full in chunks", "checkpointed, few slots", "truncated to 3", "autodiff")


def _by_hand(model, params, method):
    run = jb.value_and_grad(model.net, model.loss)
    (error, _), grads = run(params, None, model.xs, model.targets, gradient=method, weight=WEIGHT, **MARKS)
    return error, grads


def _methods(name):
    if name == "an agent":
        return {n: PROGRAMS[n] for n in SOME}
    others = {n: PROGRAMS[n] for n in (*SOME, "artbp", "clipped", "rtrl", "parallel")}
    return others | {n: (method, PLAIN) for n, method in ONCE.items()}


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_loops(name, monkeypatch):
    """Every gradient method, with marks, padding and weights; encoder and head read two steps at a time."""
    model, params = MODELS[name], params_of(MODELS[name])
    monkeypatch.setattr(readout_and_loss, "AT_ONCE", 2 * B * V)
    monkeypatch.setattr(encoder, "AT_ONCE", 2 * B * E)
    methods = _methods(name)
    found = jax.jit(lambda p: {n: _by_hand(model, p, method) for n, (method, _) in methods.items()})(params)
    programs = {n: program for n, (_, program) in methods.items()}
    once = {program: n for n, program in programs.items()}
    of_loops = functools.partial(error_by_loops, model)
    wanted = jax.jit(
        lambda p: {n: jax.value_and_grad(functools.partial(of_loops, program=g))(p) for g, n in once.items()}
    )(params)
    for n, program in programs.items():
        assert not w.wrong(found[n], wanted[once[program]], 1e-12), n


@pytest.mark.parametrize("name", MODELS)
def test_second_derivatives_are_those_of_loops(name):
    model, params = MODELS[name], params_of(MODELS[name])
    direction = jax.tree.map(jnp.cos, params)

    def second(grad):
        return jax.jvp(grad, (params,), (direction,))[1]

    def applied(p):  # jax.grad of apply, with a loss of one's own
        ys = model.net.apply(p, None, model.xs, **MARKS)[1]
        errors = jnp.where(MASK, model.each(ys, model.targets), 0.0)
        total = (jnp.where(MASK, WEIGHT, 0.0) * errors).sum()
        return total / jnp.where(MASK, WEIGHT, 0.0).sum() if name == "words" else total

    def all_of_them():
        chunks = jb.checkpointed(slots=2, chunk=2)
        by_hand = [second(lambda p, m=m: _by_hand(model, p, m)[1]) for m in (jb.full(), chunks)]
        return second(jax.grad(lambda p: error_by_loops(model, p))), [*by_hand, second(jax.grad(applied))]

    wanted, found = jax.jit(all_of_them)()
    for one in found:
        assert not w.wrong(one, wanted, 1e-11)


@pytest.mark.parametrize("name", MODELS)
def test_a_step_is_that_of_the_sequence(name):
    model, params = MODELS[name], params_of(MODELS[name])
    wanted = by_loops(model, params)
    carry = model.net.initial_carry(params, (B,))
    for t in range(T):
        x, marks = jax.tree.map(lambda z, t=t: z[t], (model.xs, {n: MARKS[n] for n in ("mask", "reset")}))
        carry, y = model.net.step(params, carry, x, **marks)
        found, right = jax.tree.map(lambda z, t=t: z[MASK[t]], (y, jax.tree.map(lambda z, t=t: z[t], wanted)))
        assert not w.wrong([found], [right], 1e-12)


def test_check_gradient_draws_words_and_reads_trees():
    assert jb.check_gradient(WORDS, steps=2, batch_shape=()).ok
    with pytest.raises(ValueError, match="check_gradient: xs: expected the inputs of the network's encoder"):
        jb.check_gradient(NET)
    found = jb.check_gradient(NET, xs=jax.tree.map(lambda z: z[:2, 0], XS))
    assert found.ok
    assert {"xs['light']", "params.encoder['w']"} <= {line.leaf for line in found.lines}
    assert "xs['count']" not in {line.leaf for line in found.lines}  # integers have no derivative


def test_the_diagnostics_see_the_same_gradient():
    """Through a dense layer that comes after the one with a state."""
    model, params = MODELS["words"], params_of(MODELS["words"])
    given = (model.net, model.loss, params, None, model.xs, model.targets)
    of_cells = _by_hand(model, params, jb.full())[1].cells
    found = jb.credit(*given, weight=WEIGHT, **MARKS)
    recurrent = [g for g, layer in zip(of_cells, model.net.layers, strict=True) if layer.is_recurrent]
    assert not w.wrong(found.gradient, tuple(recurrent), 1e-12)
    flow = jb.gradient_flow(*given, weight=WEIGHT, **MARKS)
    assert not w.wrong([flow.grad_norm], [optax.tree.norm(recurrent)], 1e-12)
    assert len(flow.layers) == 1


@pytest.mark.parametrize(("name", "rows"), [("words", (B,)), ("an agent", None)])
def test_training_reads_trees(name, rows):
    """Sequences that go on and independent ones: two batches at once, and in bfloat16 one after the other."""
    model = MODELS[name]
    batch = jb.Batch(model.xs, model.targets, weight=WEIGHT, **MARKS)
    state = jb.init_train_state(jax.random.key(0), model.net, ADAM, rows)
    many = jb.make_train_steps(model.net, model.loss, ADAM, donate=False)
    once = jb.make_train_step(model.net, model.loss, ADAM, dtype=jnp.bfloat16, donate=False)
    _, exact = many(state, jax.tree.map(lambda z: jnp.stack([z, z]), batch))
    for loss in exact.loss:
        state, metrics = once(*jax.tree.map(_to_float32, (state, batch)))
        assert 0 < abs(float(metrics.loss) - loss) < 0.02 * abs(loss)
    assert exact.finite.all()


def _to_float32(z):
    return z.astype("float32") if z.dtype == float else z


@pytest.mark.parametrize(
    ("name", "mode", "method"),
    [
        ("words", "auto", jb.checkpointed(slots=2, chunk=2)),
        ("words", "shard_map", jb.full()),
        ("an agent", "explicit", jb.full()),
    ],
)
def test_rows_that_are_spread_over_devices_have_the_gradient_of_one(name, mode, method):
    """Four times the rows on four devices; the sums over devices are those of any network."""
    model, params = MODELS[name], params_of(MODELS[name])

    def run(params, data):
        xs, targets, weight, marks = data
        given = {"gradient": method, "weight": weight, **marks}
        return jb.value_and_grad(model.net, model.loss)(params, None, xs, targets, **given)

    data = jax.tree.map(lambda z: jnp.concatenate([z] * 4, 1), (model.xs, model.targets, WEIGHT, MARKS))
    carry = jax.tree.map(lambda z: ROWS, model.net.initial_carry(params, (B,)))
    spread, placed = spread_over_devices(mode, run, (ALL, STEPS), ((ALL, carry), ALL), (params, data))
    sums = ["all-reduce"] * (2 if name == "words" else 1)  # a mean counts what it is over before
    assert collectives_of(spread.lower(*placed).compile()) == (sums, [])
    assert not w.wrong(jax.device_get(spread(*placed)), jax.jit(run)(params, data), 1e-12)


def test_dropout_between_encoder_and_head_is_the_same_in_chunks():
    """A dense layer has dropout, too."""
    layers = [jb.layer(jb.dense(E, E), dropout=0.5), jb.layer(jb.elman(E, E), dropout=0.3)]
    net = jb.network(layers, jb.tied_readout(V, bias=False), jb.embedding(V, E))
    params, model, key = net.init(jax.random.key(0)), MODELS["words"], jax.random.key(1)
    run = jb.value_and_grad(net, jb.softmax_cross_entropy)
    xs, d = model.xs % V, model.targets
    whole = run(params, None, xs, d, key=key)
    assert not w.wrong(
        run(params, None, xs, d, key=key, gradient=jb.checkpointed(slots=2, chunk=2)), whole, 1e-12
    )
    assert w.wrong(run(params, None, xs, d), whole, 1e-3)


def test_of_the_last_step():
    """A head of the last valid step of each row, of a layer that reads both ways."""
    head = jb.last(jb.head(lambda p, h: {"sum": h.sum(), "h": h}, lambda key: {}))
    net = jb.network([jb.layer(jb.elman(E, 2), backward=jb.elman(E, 2))], head, jb.embedding(V, E))
    params = net.init(jax.random.key(0))
    xs = MODELS["words"].xs % V
    mask = jb.mask_of_lengths(jnp.array([2, 6, 3]), T)
    (_, ys) = net.apply(params, None, xs, mask=mask)
    alone = [net.apply(params, None, xs[:n, b])[1] for b, n in enumerate((2, 6, 3))]
    assert not w.wrong(ys, jax.tree.map(lambda *z: jnp.stack(z), *alone), 1e-12)
    loss = jb.mean_over_steps(lambda y, d: jnp.square(y["sum"] - d).sum())
    (error, _), grads = jb.value_and_grad(net, loss)(params, None, xs, jnp.ones(B), mask=mask)

    def written_out(params):
        return jnp.mean((net.apply(params, None, xs, mask=mask, gradient=jb.autodiff())[1]["sum"] - 1) ** 2)

    assert not w.wrong((error, grads), jax.value_and_grad(written_out)(params), 1e-12)


def test_what_is_no_class_gives_nan():
    net = jb.network([jb.elman(E, E)], jb.tied_readout(V), jb.embedding(V, E))
    params = net.init(jax.random.key(0))
    for wrong in (V, -1, 300):
        assert jnp.isnan(net.apply(params, None, jnp.array([0, wrong]))[1][1]).all()
    small = jnp.array([250], jnp.uint8)  # 8 bits hold it
    wide = jb.network([jb.elman(E, E)], jb.readout(E, 2), jb.embedding(300, E))
    assert jnp.isfinite(wide.apply(wide.init(jax.random.key(0)), None, small)[1]).all()


def test_neither_one_hot_rows_nor_all_outputs_exist():
    """V = 20,000 and T·B = 4096: the temporaries of a gradient, in parts of [T, B, V]."""
    net = jb.network([jb.elman(8, 8)], jb.tied_readout(20_000), jb.embedding(20_000, 8))
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    ids, numbers = (jax.ShapeDtypeStruct((128, 32), dtype) for dtype in ("int32", "float64"))
    whole = 128 * 32 * 20_000 * 8

    def own(y, d):
        return optax.softmax_cross_entropy_with_integer_labels(y, d)

    def temporaries(loss, method):
        def run(p, xs, d, weight):
            return jb.value_and_grad(net, loss)(p, None, xs, d, gradient=method, weight=weight)

        compiled = jax.jit(run).lower(shapes, ids, ids, numbers).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(jb.mean_over_steps(own), jb.full()) < 0.1 * whole
    assert temporaries(jb.softmax_cross_entropy, jb.truncated(32)) < 0.1 * whole


def test_a_model_is_printed_pickled_and_copied_as_its_call():
    for model in MODELS.values():
        again = ForkingPickler.loads(ForkingPickler.dumps(model.net))
        assert again == model.net == copy.deepcopy(model.net)
        params = jax.device_get(model.net.init(jax.random.key(0)))
        again = ForkingPickler.loads(ForkingPickler.dumps(params))
        assert jax.tree.structure(again) == jax.tree.structure(params)
    text = repr(MODELS["words"].net)
    assert text == (
        "network([gru(4, 5), layer(dense(5, 4, activation='tanh'))], tied_readout(7), "
        "encoder=embedding(7, 4))  # 224 parameters"
    )


def test_a_network_without_a_state_is_a_function_of_each_step():
    net = jb.network([jb.dense(E, 5, activation="tanh")], jb.readout(5, V), jb.embedding(V, E))
    params, model = net.init(jax.random.key(0)), MODELS["words"]
    for method in (jb.full(), jb.checkpointed()):
        run = jb.value_and_grad(net, jb.softmax_cross_entropy)
        (_, carry), grads = run(params, None, model.xs % V, model.targets, gradient=method)

        def written_out(p):
            x = jnp.tanh(p.encoder.w_e[model.xs % V] @ p.cells[0].w)
            return jb.softmax_cross_entropy(x @ p.readout.w_y, model.targets)

        wanted = jax.grad(written_out)(params)
        assert carry == ((),)
        assert not w.wrong((grads.cells[0].w, grads.encoder), (wanted.cells[0].w, wanted.encoder), 1e-12)
    step = jb.make_train_step(net, jb.softmax_cross_entropy, optax.sgd(0.1))
    state = jb.init_train_state(jax.random.key(0), net, optax.sgd(0.1), (B,))
    assert step(state, jb.Batch(model.xs % V, model.targets))[1].finite

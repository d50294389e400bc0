"""Rows over devices: the gradient of one device, whatever the mesh, and one sum over all of them."""

import functools
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
import support.witnesses as w
from cases import EXACT, KINDS, make
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support.optimizers import ADAM, SGD, lenient

import jax_bptt as jb
from experiments.collectives import collectives

T, B, I, H, O = 7, 8, 3, 8, 2  # noqa: E741
MODES = ["auto", "explicit", "shard_map"]  # the last one is the caller's own
ALL, ROWS, STEPS = P(), P("data"), P(None, "data")


def _mesh(mode: str, shape: tuple[int, ...] = (4,), names: tuple[str, ...] = ("data",)) -> Any:
    kind = AxisType.Auto if mode == "auto" else AxisType.Explicit
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(names))


def _put(mesh: Any, tree: Any, spec: P) -> Any:
    return jax.tree.map(lambda z: jax.device_put(z, NamedSharding(mesh, spec)), tree)


def _spread(mode: str, f: Any, inputs: tuple, outputs: Any, args: tuple) -> tuple[Any, tuple]:
    """f jitted for a mesh of 4 devices, and its arguments placed there."""
    mesh = _mesh(mode)
    placed = tuple(_put(mesh, arg, spec) for arg, spec in zip(args, inputs, strict=True))
    run = jax.shard_map(f, mesh=mesh, in_specs=inputs, out_specs=outputs) if mode == "shard_map" else f
    return jax.jit(run), placed


def _gradient(case: Any, method: Any) -> Any:
    """dE/dparams, dE/ds_0 and dE/dx, all arrays as arguments."""

    def run(params: Any, carry: Any, d_carry: Any, xs: Any, d_hs: Any, marks: Any) -> Any:
        here = case._replace(marks=marks)
        return jax.vjp(w.unrolled(here, method), params, carry, xs)[1]((d_carry, d_hs))

    return run


@functools.cache
def _of_one_device(name: str) -> tuple[Any, tuple, Any]:
    """A case, what its gradient takes, and the gradient."""
    case = make(name, T, (B,), marks=("mask", "reset", "cut"))
    args = case.params, case.carry, case.d_carry, case.xs, case.d_hs, case.marks
    return case, args, jax.jit(_gradient(case, jb.full()))(*args)


CASES = [("lstm", method, MODES[i % 3]) for i, method in enumerate(EXACT)]
CASES += [(kind, "full in chunks", MODES[i % 3]) for i, kind in enumerate(KINDS) if kind != "lstm"]


@pytest.mark.parametrize(("name", "method", "mode"), CASES)
def test_unroll_has_the_gradient_of_one_device(name, method, mode):
    case, args, wanted = _of_one_device(name)
    lie = ALL, ROWS, ROWS, STEPS, STEPS, STEPS
    spread, placed = _spread(mode, _gradient(case, EXACT[method]), lie, (ALL, ROWS, STEPS), args)
    assert not w.wrong(jax.device_get(spread(*placed)), wanted, 1e-12)


LEARNED = jb.learn_carry(jb.lstm(I, H))
NETS = {
    "begun": jb.network([jb.elman(I, H)], jb.readout(H, O)),
    "one layer": jb.network([LEARNED], jb.readout(H, O)),
    "plain": jb.network([LEARNED, jb.gru(H, H)], jb.readout(H, O)),
    "dropout": jb.network([LEARNED, jb.layer(jb.gru(H, H), residual=True, dropout=0.3)], jb.readout(H, O)),
    "both ways": jb.network([jb.layer(LEARNED, backward=LEARNED)], jb.readout(2 * H, O)),
    "last": jb.network([LEARNED, jb.gru(H, H)], jb.last(jb.readout(H, O))),
}


def _own_loss(ys, targets, mask=None):
    """A loss of all rows together: no sum over rows."""
    return jnp.sqrt(jnp.square(ys - targets).sum())


class _Problem(NamedTuple):
    run: Any  # value_and_grad of arrays alone
    args: tuple
    lie: tuple


def _problem(name: str, loss: Any, method: Any, marked: bool = False) -> _Problem:
    net, k = NETS[name], jax.random.split(jax.random.key(1), 6)
    params, of_outputs = net.init(k[0]), (B,) if name == "last" else (T, B)
    carry = (
        None
        if name in ("begun", "both ways")
        else jax.tree.map(lambda s: s + 0.3, net.initial_carry(params, (B,)))
    )
    xs = jax.random.normal(k[1], (T, B, I))
    targets = jax.random.normal(k[2], (*of_outputs, O))
    if loss is jb.softmax_cross_entropy:
        targets = (targets[..., 0] > 0).astype(int)
    marks = {"mask": jax.random.bernoulli(k[3], 0.7, (T, B)).at[:, :2].set(False)} if marked else {}
    key = k[4] if name == "dropout" else None

    def run(params, carry, xs, targets, marks):
        return jb.value_and_grad(net, loss)(params, carry, xs, targets, gradient=method, key=key, **marks)

    args, of_targets = (params, carry, xs, targets, marks), ROWS if name == "last" else STEPS
    return _Problem(run, args, (ALL, ROWS, STEPS, of_targets, STEPS))


PROBLEMS = [
    ("begun", jb.squared_error, "checkpointed", False, "auto"),
    ("begun", jb.squared_error, "truncated, chunked", True, "shard_map"),
    ("plain", jb.softmax_cross_entropy, "checkpointed", True, "explicit"),
    ("plain", jb.softmax_cross_entropy, "full", True, "shard_map"),  # devices with no valid row
    ("plain", _own_loss, "full", False, "explicit"),
    ("dropout", jb.squared_error, "full", True, "explicit"),
    ("both ways", jb.squared_error, "full in chunks", True, "shard_map"),
    ("both ways", _own_loss, "full", False, "auto"),
    ("last", jb.softmax_cross_entropy, "full", True, "auto"),
]


@pytest.mark.parametrize(("name", "loss", "method", "marked", "mode"), PROBLEMS)
def test_value_and_grad_are_those_of_one_device(name, loss, method, marked, mode):
    run, args, lie = _problem(name, loss, EXACT[method], marked)
    spread, placed = _spread(mode, run, lie, ((ALL, ROWS), ALL), args)
    assert not w.wrong(jax.device_get(spread(*placed)), jax.jit(run)(*args), 1e-12)


def test_a_sum_over_devices_that_is_a_mean_is_found(monkeypatch):
    """The negative control."""
    monkeypatch.setattr(sys.modules["jax_bptt.networks.value_and_grad"], "total", jax.lax.pmean)
    run, args, lie = _problem("one layer", jb.squared_error, jb.full())
    spread, placed = _spread("auto", run, lie, None, args)
    assert w.wrong(jax.device_get(spread(*placed)), jax.jit(run)(*args), 1e-12)


def _collectives(compiled: Any) -> tuple[list[str], list[str]]:
    """The collectives outside of loops, and those in them."""
    found = collectives(compiled)
    return [c.kind for c in found if not c.in_loop], [c.kind for c in found if c.in_loop]


@functools.cache
def _one_layer_on_one_device() -> Any:
    run, args, _ = _problem("one layer", jb.squared_error, jb.full())
    return jax.device_get(jax.jit(run)(*args))


@pytest.mark.parametrize("method", EXACT)
def test_one_collective_and_none_in_a_loop(method):
    """Loss and gradient of all rows are one all-reduce of a tuple, after the loops."""
    run, args, lie = _problem("one layer", jb.squared_error, EXACT[method])
    spread, placed = _spread("auto", run, lie, None, args)
    compiled = spread.lower(*placed).compile()
    assert _collectives(compiled) == (["all-reduce"], [])
    assert not w.wrong(jax.device_get(compiled(*placed)), _one_layer_on_one_device(), 1e-12)


def test_the_gradient_of_a_plain_scan_has_a_collective_in_every_step():
    case = make("lstm", T, (B,))

    def gradient(params, carry, xs, d_hs):
        def error(params):
            return (w.plain(case)(params, carry, xs)[1] * d_hs).sum()

        return jax.grad(error)(params)

    args = case.params, case.carry, case.xs, case.d_hs
    spread, placed = _spread("auto", gradient, (ALL, ROWS, STEPS, STEPS), None, args)
    found = collectives(spread.lower(*placed).compile())
    assert sum(c.times for c in found if c.in_loop) >= T


# Training.

NET = NETS["plain"]
CLIPPED_ADAM = lenient(optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-2)))


def _batches(steps: int) -> list[jb.Batch]:
    keys = jax.random.split(jax.random.key(2), (steps, 2))
    return [
        jb.Batch(jax.random.normal(a, (T, B, I)), jax.random.normal(b, (T, B, O)) / (1 + i))
        for i, (a, b) in enumerate(keys)
    ]


def _state() -> jb.TrainState:
    return jb.init_train_state(jax.random.key(0), NET, CLIPPED_ADAM, (B,))


@functools.cache
def _trained_on_one_device() -> Any:
    state, step = _state(), jb.make_train_step(NET, jb.squared_error, CLIPPED_ADAM)
    for batch in _batches(3):
        state, metrics = step(state, batch)
    return jax.device_get((state, metrics[:2]))


@pytest.mark.parametrize("lie", [jb.data_parallel, jb.fully_sharded])
@pytest.mark.parametrize("mode", ["auto", "explicit"])
def test_training_is_that_of_one_device(mode, lie):
    """What is in pieces stays in pieces; one sum over devices in a step."""
    mesh, state = _mesh(mode), _state()
    placement = lie(mesh, state)
    state = jax.device_put(state, placement)
    step = jb.make_train_step(NET, jb.squared_error, CLIPPED_ADAM)
    for batch in _batches(3):
        batch = jax.device_put(batch, jb.by_rows(mesh, batch))
        state, metrics = step(state, batch)
    entry, inside = _collectives(step.lower(state, batch).compile())
    assert (entry.count("all-reduce"), inside) == (1, [])
    assert set(entry) - {"all-reduce"} <= ({"all-gather"} if lie is jb.fully_sharded else set())
    assert not w.wrong(jax.device_get((state, metrics[:2])), _trained_on_one_device(), 1e-12)
    kept = jax.tree.map(lambda z, s: z.sharding.is_equivalent_to(s, z.ndim), state, placement)
    assert all(jax.tree.leaves(kept))


def test_on_explicit_axes_any_placement_will_do():
    """Pieces of the parameters, a batch that is not placed, marks and targets that lie differently."""
    mesh, state = _mesh("explicit"), _state()
    state = jax.device_put(state, jb.fully_sharded(mesh, state))
    batch = _batches(1)[0]._replace(mask=jnp.ones((T, B), bool))
    wanted = jax.jit(NET.apply)(_state().params, None, batch.xs)
    found = jax.jit(NET.apply)(state.params, None, _put(mesh, batch.xs, STEPS))
    assert not w.wrong(jax.device_get(found), wanted, 1e-12)
    step, lie = jb.make_train_step(NET, jb.squared_error, CLIPPED_ADAM), jb.by_rows(mesh, batch)
    alone, _ = step(_state(), batch)
    mixed = jax.device_put(batch, lie._replace(mask=NamedSharding(mesh, ALL)))
    for given in (batch, mixed):
        trained, _ = step(jax.tree.map(jnp.copy, state), given)
        assert not w.wrong(jax.device_get(trained), alone, 1e-12)
    classes = _put(mesh, jnp.zeros((T, B), int), STEPS)
    run = jb.value_and_grad(NET, jb.softmax_cross_entropy)
    (error, _), _ = jax.jit(run)(state.params, None, mixed.xs, classes, mask=mixed.mask)
    assert jnp.isfinite(error)


def test_where_a_state_of_several_batch_axes_and_a_mere_shape_lie():
    mesh = _mesh("auto", (2, 2), ("a", "b"))
    shapes = jax.eval_shape(lambda: jb.init_train_state(jax.random.key(0), NET, SGD, (2, 6)))
    lie = jb.fully_sharded(mesh, shapes)
    assert lie.carry[0].h.spec == P("a", "b")
    assert lie.params.cells[0].w_h.spec == P(None, ("a", "b"))


def test_fully_sharded_holds_a_share_of_the_numbers():
    mesh, state = _mesh("auto"), _state()
    state = jax.device_put(state, jb.fully_sharded(mesh, state))
    here = [z.addressable_shards[0].data.size for z in jax.tree.leaves((state.params, state.opt_state))]
    whole = [z.size for z in jax.tree.leaves((state.params, state.opt_state))]
    assert sum(here) < 0.26 * sum(whole)


@pytest.mark.parametrize("mode", ["auto", "explicit"])
def test_many_steps_in_one_dispatch(mode):
    mesh, state = _mesh(mode), _state()
    batches = jax.tree.map(lambda *z: jnp.stack(z), *_batches(3))
    state = jax.device_put(state, jb.fully_sharded(mesh, state))
    batches = jax.device_put(batches, jb.by_rows(mesh, batches, axis=2))
    state, _ = jb.make_train_steps(NET, jb.squared_error, CLIPPED_ADAM)(state, batches)
    assert not w.wrong(jax.device_get(state), _trained_on_one_device()[0], 1e-12)


def test_training_in_a_shard_map_of_ones_own():
    """A NaN on one device alone stops the update on all."""
    mesh, state = _mesh("explicit"), _state()
    lie = jax.tree.map(lambda _: ALL, state)._replace(carry=jax.tree.map(lambda _: ROWS, state.carry))
    step = jb.make_train_step(NET, jb.squared_error, CLIPPED_ADAM)
    spread = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(lie, STEPS), out_specs=(lie, ALL)))
    state = jax.device_put(state, jb.data_parallel(mesh, state))
    first, *others = _batches(3)
    broken = first._replace(xs=first.xs.at[2, 5, 1].set(jnp.nan))
    broken, first, *others = (jax.device_put(b, jb.by_rows(mesh, b)) for b in (broken, first, *others))
    state, metrics = spread(state, broken)
    assert not bool(metrics.finite)
    state = state._replace(step=state.step - 1)
    for batch in (first, *others):
        state, metrics = spread(state, batch)
    wanted, of_last = _trained_on_one_device()
    assert int(state.skipped) == 1
    state = state._replace(skipped=state.skipped - 1)
    assert not w.wrong(jax.device_get((state, metrics[:2])), (wanted, of_last), 1e-12)


# Meshes and shapes of other kinds.


@pytest.mark.parametrize("mode", ["auto", "explicit"])
@pytest.mark.parametrize(("shape", "rows"), [((2, 2), (8,)), ((2, 2), (2, 2)), ((4,), (6,))])
def test_other_meshes(mode, shape, rows):
    """Two axes for one of rows, two for two, and rows that no axis divides."""
    names = ("a", "b")[: len(shape)]
    mesh, case = _mesh(mode, shape, names), make("gru", 3, rows)
    run = _gradient(case, jb.full(chunk=2))
    args = case.params, case.carry, case.d_carry, case.xs, case.d_hs, case.marks
    axes = (names,) if len(rows) == 1 else names
    axes = () if rows == (6,) else axes
    lie = (P(), P(*axes), P(*axes), P(None, *axes), P(None, *axes), P(None, *axes))
    placed = (_put(mesh, arg, spec) for arg, spec in zip(args, lie, strict=True))
    assert not w.wrong(jax.device_get(jax.jit(run)(*placed)), jax.jit(run)(*args), 1e-12)


@pytest.mark.parametrize("mode", ["auto", "explicit"])
def test_vmap_and_second_derivatives(mode):
    mesh, case = _mesh(mode), make("elman-tanh", 3, (4,))

    def twice(params, xs):
        def error(params, scale):
            _, hs = jb.unroll(case.row.cell, params, None, xs * scale)
            return (hs**2).sum()

        once = jax.grad(error)
        return jax.vmap(jax.grad(lambda p, s: (once(p, s).w_h ** 2).sum()), (None, 0))(params, scales)

    scales = jnp.array([0.5, 1.0, 2.0])
    found = jax.jit(twice)(_put(mesh, case.params, ALL), _put(mesh, case.xs, STEPS))
    assert not w.wrong(jax.device_get(found), jax.jit(twice)(case.params, case.xs), 1e-12)


@pytest.mark.parametrize("mode", ["auto", "explicit"])
def test_what_is_not_split_by_rows_is_right_all_the_same(mode):
    """What looks into the gradient, Newton's method, streams."""
    net, cell = NETS["one layer"], LEARNED
    _, (params, carry, xs, targets, _), _ = _problem("one layer", jb.squared_error, jb.full())

    def run(params, carry, xs, targets):
        terms = jb.credit(net, jb.squared_error, params, carry, xs, targets).of_all
        states = jb.unroll_by_newton(cell, params.cells[0], carry[0], xs)
        begun = jb.rtrl_init(cell, params.cells[0], (B,))
        return terms, states[:2], jb.rtrl_step(cell, params.cells[0], begun, xs[0])

    args = params, carry, xs, targets
    spread, placed = _spread(mode, run, (ALL, ROWS, STEPS, STEPS), None, args)
    assert not w.wrong(jax.device_get(spread(*placed)), jax.jit(run)(*args), 1e-12)


def test_what_cannot_be_placed():
    mesh, state = _mesh("auto"), jb.init_train_state(jax.random.key(0), NET, SGD, (6,))
    with pytest.raises(ValueError, match=r"tree: expected rows, axis 1, that 4 devices divide, got float64"):
        jb.by_rows(mesh, jnp.ones((T, 6, I)))
    with pytest.raises(ValueError, match=r"state\.carry: expected rows that 4 devices divide, got \(6,\)"):
        jb.data_parallel(mesh, state)
    with pytest.raises(ValueError, match=r"mesh: expected a Mesh, got 4; make one by jax.make_mesh"):
        jb.by_rows(4, state)
    with pytest.raises(ValueError, match=r"state: expected a TrainState"):
        jb.fully_sharded(mesh, state.params)
    with pytest.raises(ValueError, match="axis: expected an integer from 0 to 31, got -1"):
        jb.by_rows(mesh, state, axis=-1)


def test_a_state_without_rows_is_on_every_device():
    mesh, state = _mesh("auto"), jb.init_train_state(jax.random.key(0), NET, ADAM, ())
    assert all(s.spec == P() for s in jax.tree.leaves(jb.data_parallel(mesh, state).carry))

"""Training over several devices ends where training on one does, and arrays stay where they lie."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
import support.witnesses as w
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from support.device_meshes import ALL, NETS, ROWS, STEPS, B, I, O, T, mesh_of, put
from support.optimizers import ADAM, SGD, lenient

import jax_bptt as jb
from experiments.support.collectives import collectives

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
    """What is in pieces stays in pieces; a step sums each parameter over devices once, in no loop."""
    mesh, state = mesh_of(mode), _state()
    placement = lie(mesh, state)
    state = jax.device_put(state, placement)
    step = jb.make_train_step(NET, jb.squared_error, CLIPPED_ADAM)
    for batch in _batches(3):
        batch = jax.device_put(batch, jb.by_rows(mesh, batch))
        state, metrics = step(state, batch)
    sent = collectives(step.lower(state, batch).compile())
    assert not any(c.in_loop for c in sent)
    kinds, summed = {c.kind for c in sent}, [c.numbers for c in sent if c.kind == "all-reduce"]
    if lie is jb.data_parallel:
        assert (kinds, len(summed)) == ({"all-reduce"}, 1)
    elif mode == "auto":
        assert (kinds, len(summed)) == ({"all-reduce", "all-gather"}, 1)
    else:  # a bias that the devices do not divide, E, and norms
        assert kinds == {"all-reduce", "all-gather", "reduce-scatter"}
        assert sum(summed) < 8 * 40
    assert not w.wrong(jax.device_get((state, metrics[:2])), _trained_on_one_device(), 1e-12)
    kept = jax.tree.map(lambda z, s: z.sharding.is_equivalent_to(s, z.ndim), state, placement)
    assert all(jax.tree.leaves(kept))


def test_on_explicit_axes_any_placement_will_do():
    """Pieces of the parameters, a batch that is not placed, marks and targets that lie differently."""
    mesh, state = mesh_of("explicit"), _state()
    state = jax.device_put(state, jb.fully_sharded(mesh, state))
    batch = _batches(1)[0]._replace(mask=jnp.ones((T, B), bool))
    wanted = jax.jit(NET.apply)(_state().params, None, batch.xs)
    found = jax.jit(NET.apply)(state.params, None, put(mesh, batch.xs, STEPS))
    assert not w.wrong(jax.device_get(found), wanted, 1e-12)
    step, lie = jb.make_train_step(NET, jb.squared_error, CLIPPED_ADAM), jb.by_rows(mesh, batch)
    alone, _ = step(_state(), batch)
    mixed = jax.device_put(batch, lie._replace(mask=NamedSharding(mesh, ALL)))
    for given in (batch, mixed):
        trained, _ = step(jax.tree.map(jnp.copy, state), given)
        assert not w.wrong(jax.device_get(trained), alone, 1e-12)
    classes = put(mesh, jnp.zeros((T, B), int), STEPS)
    run = jb.value_and_grad(NET, jb.softmax_cross_entropy)
    (error, _), _ = jax.jit(run)(state.params, None, mixed.xs, classes, mask=mixed.mask)
    assert jnp.isfinite(error)


def test_where_a_state_of_several_batch_axes_and_a_mere_shape_lie():
    mesh = mesh_of("auto", (2, 2), ("a", "b"))
    shapes = jax.eval_shape(lambda: jb.init_train_state(jax.random.key(0), NET, SGD, (2, 6)))
    lie = jb.fully_sharded(mesh, shapes)
    assert lie.carry[0].h.spec == P("a", "b")
    assert lie.params.cells[0].w_h.spec == P(None, ("a", "b"))


def test_fully_sharded_holds_a_share_of_the_numbers():
    mesh, state = mesh_of("auto"), _state()
    state = jax.device_put(state, jb.fully_sharded(mesh, state))
    here = [z.addressable_shards[0].data.size for z in jax.tree.leaves((state.params, state.opt_state))]
    whole = [z.size for z in jax.tree.leaves((state.params, state.opt_state))]
    assert sum(here) < 0.26 * sum(whole)


@pytest.mark.parametrize("mode", ["auto", "explicit"])
def test_many_steps_in_one_dispatch(mode):
    mesh, state = mesh_of(mode), _state()
    batches = jax.tree.map(lambda *z: jnp.stack(z), *_batches(3))
    state = jax.device_put(state, jb.fully_sharded(mesh, state))
    batches = jax.device_put(batches, jb.by_rows(mesh, batches, axis=2))
    state, _ = jb.make_train_steps(NET, jb.squared_error, CLIPPED_ADAM)(state, batches)
    assert not w.wrong(jax.device_get(state), _trained_on_one_device()[0], 1e-12)


def test_training_in_a_shard_map_of_ones_own():
    """A NaN on one device alone stops the update on all."""
    mesh, state = mesh_of("explicit"), _state()
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


def test_bad_placements_are_refused():
    mesh, state = mesh_of("auto"), jb.init_train_state(jax.random.key(0), NET, SGD, (6,))
    with pytest.raises(ValueError, match=r"tree: expected a multiple of 4 rows on axis 1, got float64"):
        jb.by_rows(mesh, jnp.ones((T, 6, I)))
    with pytest.raises(ValueError, match=r"rows divisible by 4 \(the devices\), got \(6,\)"):
        jb.data_parallel(mesh, state)
    with pytest.raises(ValueError, match=r"mesh: expected a Mesh, got 4; make one by jax.make_mesh"):
        jb.by_rows(4, state)
    with pytest.raises(ValueError, match=r"state: expected a TrainState"):
        jb.fully_sharded(mesh, state.params)
    with pytest.raises(ValueError, match="axis: expected an integer from 0 to 31, got -1"):
        jb.by_rows(mesh, state, axis=-1)


def test_a_state_without_rows_is_on_every_device():
    mesh, state = mesh_of("auto"), jb.init_train_state(jax.random.key(0), NET, ADAM, ())
    assert all(s.spec == P() for s in jax.tree.leaves(jb.data_parallel(mesh, state).carry))

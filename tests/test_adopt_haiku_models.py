"""haiku.dynamic_unroll inside models: keys, states, lifts, hooks, dtypes and devices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.live import compared

hk: Any = pytest.importorskip("haiku")

from support.haiku_cores import BOTH, CORES, KEY, XS, B, H, I, Noisy, model_of, primals  # noqa: E402

import jax_bptt as jb  # noqa: E402
from jax_bptt.adapters import haiku as ours  # noqa: E402


class Agent(hk.Module):
    """A model with a core in its middle, noise from Haiku's keys, and a state of Haiku."""

    def __init__(self, unroll, core):
        super().__init__()
        self.unroll, self.core = unroll, core

    def __call__(self, xs):
        xs = hk.dropout(hk.next_rng_key(), 0.2, hk.Linear(I)(xs))
        core = self.core()
        outputs, state = self.unroll(core, xs, core.initial_state(B))
        return hk.Linear(2)(hk.dropout(hk.next_rng_key(), 0.2, outputs)), state


@jax.numpy_dtype_promotion("standard")  # as hk.dropout wants it
@pytest.mark.parametrize("core", [lambda: hk.LSTM(H), Noisy, lambda: hk.DeepRNN([Noisy(), hk.GRU(H)])])
def test_a_model_has_the_same_parameters_keys_states_and_gradients(core):
    def outcome(unroll):
        model = hk.transform_with_state(lambda xs: Agent(unroll, core)(xs))
        params, state = jax.jit(model.init)(KEY, XS)

        def loss(params, xs):
            (y, last), new = model.apply(params, state, jax.random.key(7), xs)
            return (y**2).sum() + jax.tree.leaves(last)[0].sum(), (y, new)

        return params, state, jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, XS)

    wanted, found = outcome(hk.dynamic_unroll), outcome(ours.dynamic_unroll)
    jax.tree.map(np.testing.assert_array_equal, found[:2], wanted[:2])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-12, 1e-12), found[2], wanted[2])


def test_lift_vmap_remat_and_name_scopes():
    def model(unroll):
        def inner(xs):
            core = hk.LSTM(H, name="of_lift")
            return hk.remat(lambda xs: unroll(core, xs, core.initial_state(B)))(xs)[0]

        def whole(xs):
            lifted = hk.transform(inner)
            params = hk.lift(lifted.init, name="outer")(hk.maybe_next_rng_key(), xs)
            with hk.name_scope("scope"):
                core = hk.GRU(H)
            of_rows = hk.vmap(lambda x: unroll(core, x, core.initial_state(None))[0], 1, 1, split_rng=False)
            return lifted.apply(params, None, xs) + of_rows(xs)

        return hk.transform(whole)

    params = model(hk.dynamic_unroll).init(KEY, XS)
    jax.tree.map(np.testing.assert_array_equal, model(ours.dynamic_unroll).init(KEY, XS), params)
    found = compared(*(lambda p, xs, u=u: [model(u).apply(p, None, xs)] for u in BOTH), params, XS)
    assert max(found.values()) < 1e-12, found


def doubled(next_getter, value, context):
    return next_getter(2.0 * value)


def shifted(next_f, args, kwargs, context):
    return jax.tree.map(lambda z: z + 0.1, next_f(*args, **kwargs))


def cast(tree, dtype):
    return jax.tree.map(lambda z: z.astype(dtype) if isinstance(z, jax.Array) else z, tree)


class ToFloat32:
    """What a policy of the package jmp does."""

    param_dtype = jnp.float64
    cast_to_compute = staticmethod(lambda tree: cast(tree, jnp.float32))
    cast_to_output = staticmethod(lambda tree: cast(tree, jnp.float64))


HOOKS = {
    "getter": lambda: hk.custom_getter(doubled),
    "interceptor": lambda: hk.intercept_methods(shifted),
    "policy of the core": lambda: hk.mixed_precision.push_policy(hk.LSTM, ToFloat32),
    "policy of a part": lambda: hk.mixed_precision.push_policy(hk.Linear, ToFloat32),
}


@jax.numpy_dtype_promotion("standard")  # as policies want it
@pytest.mark.parametrize("hook", HOOKS)
def test_a_core_under_hooks_runs_as_it_is_and_adopt_refuses_it(hook):
    def model(unroll):
        def under(xs):
            core = hk.LSTM(H)
            with HOOKS[hook]():
                return unroll(core, xs, core.initial_state(B))

        return hk.transform(under)

    params = model(hk.dynamic_unroll).init(KEY, XS)
    found = compared(*(lambda p, xs, u=u: [model(u).apply(p, None, xs)] for u in BOTH), params, XS)
    assert max(found.values()) < 1e-6, found
    with pytest.raises(ValueError, match="run it by haiku"):
        model(lambda core, xs, state: jb.adopt(core)).apply(params, None, XS)
    cell, _ = hk.transform(lambda: jb.adopt(hk.LSTM(H))).apply(params, None)  # a policy that is gone
    assert cell is jb.lstm(I, H)


def test_a_second_call_is_not_traced_again():
    traces = []

    @jax.jit
    def loss(params, xs):
        traces.append(1)
        return model.apply(params, None, xs)

    def model(xs):
        core = hk.LSTM(H)
        y, _ = ours.dynamic_unroll(core, xs, core.initial_state(B))
        cells = [jb.adopt(core)[0] for _ in range(2)]
        assert cells[0] is cells[1] is jb.lstm(I, H)
        return (y**2).sum()

    model = hk.transform(model)
    with jax.ensure_compile_time_eval():
        params = hk.transform(lambda xs: hk.LSTM(H)(xs[0], hk.LSTM(H).initial_state(B))).init(KEY, XS)
    step = jax.value_and_grad(loss)
    optimizer = optax.sgd(1e-2)
    state = optimizer.init(params)
    values = []
    for _ in range(5):
        value, gradient = step(params, XS)
        updates, state = optimizer.update(gradient, state)
        params = optax.apply_updates(params, updates)
        values.append(float(value))
    assert len(traces) == 1
    assert values[-1] < values[0]


def test_a_core_in_bfloat16_stays_in_bfloat16():
    def run(unroll, xs):
        core = hk.LSTM(H)
        return unroll(core, xs, jax.tree.map(lambda z: z.astype(xs.dtype), core.initial_state(B)))

    xs = XS.astype(jnp.bfloat16)
    params = hk.transform(run).init(KEY, hk.dynamic_unroll, xs)
    wanted, found = (hk.transform(run).apply(params, None, unroll, xs) for unroll in BOTH)
    assert params["lstm/linear"]["w"].dtype == jnp.bfloat16
    assert jax.tree.map(jnp.result_type, found) == jax.tree.map(jnp.result_type, wanted)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a.astype(float), b.astype(float), 0, 0.02), found, wanted
    )


def test_models_side_by_side_and_over_devices():
    row = CORES["LSTM"]
    theirs, mine = (model_of(row, unroll) for unroll in BOTH)
    params, state, xs = primals(row)
    stacked = jax.tree.map(lambda p: jnp.stack([p, 2.0 * p]), params)
    found = compared(*(jax.vmap(m.apply, (0, None, None)) for m in (theirs, mine)), stacked, state, xs)
    assert max(found.values()) < 1e-12, found
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))

    def at(*axes):
        return jax.NamedSharding(mesh, jax.P(*axes))

    def loss(model):
        return jax.jit(jax.value_and_grad(lambda *p: (model.apply(*p)[0] ** 2).sum(), (0, 1, 2)))

    placed = (
        jax.device_put(params, {"lstm/linear": {"w": at(None, "rows"), "b": at("rows")}}),
        jax.device_put(state, at("rows")),
        jax.device_put(xs, at(None, "rows")),
    )
    wanted, found = loss(theirs)(params, state, xs), loss(mine)(*placed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-12, 1e-12), found, wanted)

"""haiku.dynamic_unroll gives the outputs, states and gradients of hk.dynamic_unroll, for every core of Haiku.

`python tests/test_adopt_haiku.py` prints the largest ratio of norms of every row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import conftest  # noqa: F401  (x64 and strict numerics, also when this file is run as a script)
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.live import compared, largest, random_like

hk: Any = pytest.importorskip("haiku")

import jax_bptt as jb  # noqa: E402
from jax_bptt.adapters import haiku as ours  # noqa: E402

T, B, I, H = 6, 4, 3, 5  # noqa: E741
KEY = jax.random.key(0)


class Core(NamedTuple):
    """A core and what it reads.

    Attributes:
      make: () -> core, inside an hk.transform.
      xs: leaves [T, B, ...].
      is_ours: whether one of our cells runs it.
    """

    make: Callable[[], Any]
    xs: Any = jnp.zeros((T, B, I))
    is_ours: bool = False


class Nested(hk.RNNCore):
    """A core with dicts in, dicts out, a dict for its state, and a trained initial state."""

    def __call__(self, inputs, state):
        h = jnp.tanh(hk.Linear(H)(inputs["x"]) * inputs["scale"] + hk.Linear(H)(state["h"]))
        return {"h": h, "twice": 2.0 * h}, {"h": h, "count": state["count"] + 1}

    def initial_state(self, batch_size):
        h = hk.get_parameter("h_0", [H], jnp.float64, init=hk.initializers.RandomNormal())
        return {"h": jnp.tile(h, (batch_size, 1)), "count": jnp.zeros((batch_size,), jnp.int32)}


BOTH = hk.dynamic_unroll, ours.dynamic_unroll
RESET = jnp.asarray(np.random.default_rng(2).random((T, B)) < 0.4)
UNITS = hk.LSTMState(jnp.asarray(np.random.default_rng(3).random((T, B, H)) < 0.4), RESET)
CORES = {
    "VanillaRNN": Core(lambda: hk.VanillaRNN(H), is_ours=True),
    "VanillaRNN one bias": Core(lambda: hk.VanillaRNN(H, double_bias=False), is_ours=True),
    "LSTM": Core(lambda: hk.LSTM(H), is_ours=True),
    "GRU": Core(lambda: hk.GRU(H), is_ours=True),
    "ResetCore VanillaRNN": Core(lambda: hk.ResetCore(hk.VanillaRNN(H)), (jnp.zeros((T, B, I)), RESET), True),
    "ResetCore LSTM": Core(lambda: hk.ResetCore(hk.LSTM(H)), (jnp.zeros((T, B, I)), RESET), True),
    "ResetCore GRU": Core(lambda: hk.ResetCore(hk.GRU(H)), (jnp.zeros((T, B, I)), RESET), True),
    "ResetCore of units": Core(lambda: hk.ResetCore(hk.LSTM(H)), (jnp.zeros((T, B, I)), UNITS)),
    "DeepRNN": Core(lambda: hk.DeepRNN([hk.LSTM(H), jax.nn.relu, hk.Linear(4), hk.GRU(H)])),
    "skip connections": Core(lambda: hk.deep_rnn_with_skip_connections([hk.LSTM(H), hk.VanillaRNN(H)])),
    "ResetCore DeepRNN": Core(
        lambda: hk.ResetCore(hk.DeepRNN([hk.GRU(H), hk.LSTM(H)])), (jnp.zeros((T, B, I)), RESET)
    ),
    "IdentityCore": Core(hk.IdentityCore),
    "Conv1DLSTM": Core(lambda: hk.Conv1DLSTM((I,), 2, 3), jnp.zeros((T, B, I, 2))),
    "Conv2DLSTM": Core(lambda: hk.Conv2DLSTM((2, 2), 2, 3), jnp.zeros((T, B, 2, 2, 1))),
    "nested": Core(Nested, {"x": jnp.zeros((T, B, I)), "scale": jnp.zeros((T, B, 1))}),
}


def numbers(tree: Any) -> Any:
    """A tree with None for what is no number, such as a mark or a counter: it has no derivative."""
    return jax.tree.map(lambda z: z if jnp.issubdtype(z.dtype, jnp.floating) else None, tree)


def joined(tree: Any, found: Any) -> Any:
    """A tree with other numbers."""
    return jax.tree.map(lambda z, n: z if n is None else z + n, tree, found)


def model_of(row: Core, unroll: Callable[..., Any], **options: Any) -> Any:
    """(params, state, xs) -> outputs and states, where state and xs are added to those of the row."""

    def model(state, xs):
        core = row.make()
        state, xs = joined(core.initial_state(B), state), joined(row.xs, xs)
        if not options.get("time_major", True):
            xs = jax.tree.map(lambda z: z.swapaxes(0, 1), xs)
        return unroll(core, xs, state, **options)

    return hk.without_apply_rng(hk.transform(model))


def primals(row: Core) -> tuple[Any, Any, Any]:
    """Random params, initial state and inputs."""
    initial = hk.transform(lambda: row.make().initial_state(B))
    state, xs = (
        random_like(3, numbers(initial.apply(initial.init(KEY), None))),
        random_like(4, numbers(row.xs)),
    )
    return random_like(5, model_of(row, hk.dynamic_unroll).init(KEY, state, xs)), state, xs


def ratios_of(row: Core, gradient: Any = jb.full(), **options: Any) -> dict[str, float]:
    theirs = model_of(row, hk.dynamic_unroll, **options)
    mine = model_of(row, ours.dynamic_unroll, gradient=gradient, **options)
    return compared(lambda *p: numbers(theirs.apply(*p)), lambda *p: numbers(mine.apply(*p)), *primals(row))


OPTIONS = [
    {"time_major": time_major, "reverse": reverse, "return_all_states": every}
    for time_major, reverse, every in ((True, False, False), (False, True, True), (True, True, False))
]


@pytest.mark.parametrize("options", OPTIONS, ids=["", "batch major, reverse, all states", "reverse"])
@pytest.mark.parametrize("name", CORES)
def test_a_core_is_unrolled_as_by_haiku(name, options):
    found = ratios_of(CORES[name], **options)
    assert max(found.values(), default=0.0) < 1e-12, found


@pytest.mark.parametrize("name", CORES)
def test_our_cells_run_the_cores_that_are_ours(name, monkeypatch):
    scans = []
    monkeypatch.setattr(ours, "scan", lambda *args, **kwargs: scans.append(1) or jb.scan(*args, **kwargs))
    given = primals(CORES[name])
    model_of(CORES[name], ours.dynamic_unroll).apply(*given)
    assert bool(scans) != CORES[name].is_ours


XS = random_like(0, jnp.zeros((T, B, I)))


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


class Noisy(hk.RNNCore):
    """A core with a key and a count of its steps from Haiku."""

    def __call__(self, x, h):
        steps = hk.get_state("steps", [], jnp.int32, init=jnp.zeros)
        slow = hk.get_state("slow", [B, H], x.dtype, init=jnp.zeros)
        hk.set_state("steps", steps + 1)
        h = hk.GRU(H)(x + jax.random.normal(hk.next_rng_key(), x.shape, x.dtype), h)[0]
        hk.set_state("slow", 0.5 * slow + h)
        return h + slow, h

    def initial_state(self, batch_size):
        return jnp.zeros((batch_size, H))


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


def test_a_core_outside_of_hk_transform_is_a_function():
    w = random_like(1, jnp.zeros((H, I)))

    def core(x, h):
        return 2.0 * h, jnp.tanh(w @ x + h)

    found = compared(
        *(lambda xs, h, u=u: u(core, xs, h, reverse=True) for u in BOTH),
        XS[:, 0],
        jnp.ones(H),
    )
    assert max(found.values()) < 1e-12, found


@pytest.mark.parametrize("core", [lambda: hk.LSTM(H), lambda: hk.DeepRNN([hk.LSTM(H)])])
@pytest.mark.parametrize("every", [True, False])
def test_no_step_and_one_step(core, every):
    def model(unroll, steps):
        def run(xs):
            made = core()
            return unroll(made, xs[:steps], made.initial_state(B), return_all_states=every)

        return hk.transform(run)

    params = model(hk.dynamic_unroll, T).init(KEY, XS)
    for steps in (0, 1):
        wanted, found = (model(unroll, steps).apply(params, None, XS) for unroll in BOTH)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-12), found, wanted)
        assert jax.tree.structure(found) == jax.tree.structure(wanted)


@pytest.mark.parametrize("name", ["VanillaRNN", "LSTM", "GRU", "DeepRNN", "nested"])
def test_every_gradient_method(name):
    for gradient in (jb.checkpointed(), jb.rtrl(), jb.parallel(), jb.autodiff()):
        assert max(ratios_of(CORES[name], gradient).values()) < 1e-12, gradient
    model = model_of(CORES[name], ours.dynamic_unroll, gradient=jb.truncated(1))
    params, state, xs = primals(CORES[name])
    towards = jax.grad(
        lambda s: sum(z.sum() for z in jax.tree.leaves(numbers(model.apply(params, s, xs)[1])))
    )(state)
    assert not any(z.any() for z in jax.tree.leaves(towards))


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


def adopted_model(row: Core, input_size: int | None = None) -> Any:
    """The model of a row by jb.adopt and jb.unroll."""

    def unroll(core, xs, state):
        if hk.running_init():
            return hk.dynamic_unroll(core, xs, state)
        xs, reset = xs if isinstance(xs, tuple) else (xs, None)
        core = core.core if isinstance(core, hk.ResetCore) else core
        cell, params = jb.adopt(core, input_size=input_size)
        carry = cell.initial_carry(params, (B,))
        if row.is_ours:
            carry = jb.LSTMCarry(*state) if len(carry) == 2 else jb.Carry(state)
            last, hs = jb.unroll(cell, params, carry, xs, reset=reset)
            return hs, hk.LSTMState(*last) if len(last) == 2 else last.h
        last, hs = jb.unroll(cell, params, carry._replace(state=state), xs)
        return hs, last.state

    return model_of(row, unroll)


@pytest.mark.parametrize(
    "name",
    ["VanillaRNN", "VanillaRNN one bias", "LSTM", "GRU", "ResetCore LSTM", "DeepRNN", "skip connections"],
)
def test_an_adopted_core_is_differentiable_by_the_parameters_of_haiku(name):
    row = CORES[name]
    mine, theirs = adopted_model(row, None if row.is_ours else I), model_of(row, hk.dynamic_unroll)
    found = compared(theirs.apply, mine.apply, *primals(row))
    assert max(found.values()) < 1e-12, found


def test_adopt_takes_params_with_and_without_the_name_of_the_module():
    lstm, gru = (primals(CORES[name])[0] for name in ("LSTM", "GRU"))
    net = {"other/linear": {"w": jnp.ones(2)}, **lstm}
    for make, *given in ((hk.LSTM, net, {"linear": lstm["lstm/linear"]}), (hk.GRU, gru, gru["gru"])):
        (cell, params), again = (
            hk.transform(lambda p=p, make=make: jb.adopt(make(H), p)).apply({}, None) for p in given
        )
        assert cell is again[0]
        jax.tree.map(np.testing.assert_array_equal, params, again[1])
    cell, _ = hk.transform(lambda: jb.adopt(hk.DeepRNN([hk.GRU(H)]), gru, input_size=I)).apply({}, None)
    assert isinstance(cell, jb.StepCell)


def test_an_adopted_core_at_init_reads_the_parameters_that_one_call_has_made():
    def model(xs):
        core = hk.GRU(H)
        core(xs[0], core.initial_state(B))
        cell, params = jb.adopt(core)
        return jb.unroll(cell, params, None, xs)[1]

    model = hk.transform(model)
    params = model.init(KEY, XS)
    wanted = hk.transform(lambda: hk.dynamic_unroll(core := hk.GRU(H), XS, core.initial_state(B))[0]).apply(
        params, None
    )
    np.testing.assert_allclose(model.apply(params, None, XS), wanted, 1e-12)


def test_forms_of_should_reset():
    def run(unroll, reset):
        core = hk.ResetCore(hk.LSTM(H))
        return unroll(core, (XS, reset), core.initial_state(B))

    model = hk.transform(run)
    params = model.init(KEY, hk.dynamic_unroll, RESET)
    for reset in (RESET[:, 0], RESET.astype(float), np.asarray(RESET), RESET.astype(jnp.int32)):
        wanted, found = (model.apply(params, None, unroll, reset) for unroll in BOTH)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-12, 1e-12), found, wanted)


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


def unroll_lstm(**options: Any) -> Any:
    core = hk.LSTM(H)
    return ours.dynamic_unroll(core, XS, core.initial_state(B), **options)


PARAMS = {"lstm/linear": {"w": jnp.ones((I + H, 4 * H)), "b": jnp.ones(4 * H)}}
REFUSED = {
    "unroll: expected 1, got 2; leave it out": lambda: unroll_lstm(unroll=2),
    "time_major: expected True or False, got 1": lambda: unroll_lstm(time_major=1),
    "gradient: expected a gradient method": lambda: unroll_lstm(gradient="full"),
    "core: expected an hk.RNNCore": lambda: ours.dynamic_unroll(None, XS, None),
    "'LSTM' object|'tuple' object": lambda: ours.dynamic_unroll(hk.LSTM(H), XS, (jnp.zeros((B, H)),) * 2),
    "dynamic_unroll: initial_state: expected shape .2., got float64.5.; make it by": lambda: (
        ours.dynamic_unroll(lambda x, h: (h, h[:2]), XS, jnp.zeros(H))
    ),
    "All parameters must be created": lambda: ours.dynamic_unroll(hk.GRU(H), XS, jnp.zeros((B, H))),
    "adopt: cell: expected a core that reads one array": lambda: jb.adopt(hk.ResetCore(hk.LSTM(H))),
    "adopt: params: expected the parameters of the core gru.*call the core once before": lambda: jb.adopt(
        hk.GRU(H)
    ),
    "adopt: input_size: expected a size": lambda: jb.adopt(hk.DeepRNN([hk.LSTM(H)])),
    "adopt: cell: .*without random numbers": lambda: jb.adopt(Noisy(), input_size=I),
    "adopt: cell: expected a cell with weights": lambda: jb.adopt(hk.IdentityCore(), input_size=I),
    "adopt: params: expected those of an hk.transform": lambda: jb.adopt(hk.LSTM(H), jnp.ones(3)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused(message):
    with pytest.raises(ValueError, match=message) as error:
        hk.transform(REFUSED[message]).apply(PARAMS, None)
    print(error.value)


def main() -> None:
    for name, row in CORES.items():
        found = [ratios_of(row, **options) for options in OPTIONS]
        worst = {kind: max(largest(f, kind) for f in found) for kind in ("outputs", "gradients")}
        print(f"{name:24} outputs {worst['outputs']:.1e}   gradients {worst['gradients']:.1e}")


if __name__ == "__main__":
    main()

"""haiku.dynamic_unroll gives the outputs, states and gradients of hk.dynamic_unroll, for every core of Haiku.

`python tests/test_adopt_haiku.py` prints the largest ratio of norms of every row.
"""

from __future__ import annotations

from typing import Any

import conftest  # noqa: F401  (x64 and strict numerics, also when this file is run as a script)
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.live import compared, largest, random_like

hk: Any = pytest.importorskip("haiku")

from support.haiku_cores import (  # noqa: E402
    BOTH,
    CORES,
    KEY,
    RESET,
    XS,
    B,
    Core,
    H,
    I,
    Noisy,
    T,
    model_of,
    numbers,
    primals,
)

import jax_bptt as jb  # noqa: E402
from jax_bptt.adapters import haiku as ours  # noqa: E402


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


@pytest.mark.parametrize("name", ["VanillaRNN", "LSTM", "GRU", "DeepRNN", "DeepRNN of ours", "nested"])
def test_every_gradient_method(name):
    for gradient in (jb.checkpointed(), jb.rtrl(), jb.parallel(), jb.autodiff()):
        assert max(ratios_of(CORES[name], gradient).values()) < 1e-12, gradient
    model = model_of(CORES[name], ours.dynamic_unroll, gradient=jb.truncated(1))
    params, state, xs = primals(CORES[name])
    towards = jax.grad(
        lambda s: sum(z.sum() for z in jax.tree.leaves(numbers(model.apply(params, s, xs)[1])))
    )(state)
    assert not any(z.any() for z in jax.tree.leaves(towards))


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
    "adopt: cell: expected a cell with weights, got IdentityCore": lambda: jb.adopt(
        hk.IdentityCore(), input_size=I
    ),
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

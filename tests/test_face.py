"""What is printed of a value, and that a copy or a pickled one is the same cached object."""

import copy
import inspect
import pydoc
from multiprocessing.reduction import ForkingPickler

import jax
import jax.numpy as jnp
import optax
import pytest

import jax_bptt as jb


def _step(units, s, u, v):
    return jb.Carry(jnp.tanh(u[0] + v[0]))


def _soft(z):
    return z / (1 + abs(z))


def _absolute(y, target):
    return abs(y - target).sum()


def _mlp(params, s, x):
    return jb.Carry(jnp.tanh(x @ params + s.h))


def _weights(key):
    return jnp.ones((3, 5))


LSTM = jb.lstm(3, 5)
NET = jb.network([jb.layer(LSTM, backward=LSTM, dropout=0.1), jb.gru(10, 4)], jb.last(jb.readout(4, 2)))
PRINTED = {
    "lstm(3, 5)": LSTM,
    "lstm(3, 5, forget_bias=chrono(20), peephole=True)": jb.lstm(
        3, 5, forget_bias=jb.chrono(20), peephole=True
    ),
    "elman(3, 5, activation='relu', recurrent=identity(0.5))": jb.elman(
        3, 5, activation="relu", recurrent=jb.identity(0.5)
    ),
    "elman(3, 5, recurrent=identity())": jb.elman(3, 5, recurrent=jb.identity()),
    "elman(3, 5, activation=_soft)": jb.elman(3, 5, activation=_soft),
    "lstm(3, 8, heads=2)": jb.lstm(3, 8, heads=2),
    "lstm(3, 8, projection=4)": jb.lstm(3, 8, projection=4),
    "gru(3, 5, reset_after=False)": jb.gru(3, 5, reset_after=False),
    "elman(3, 5, bias=False)": jb.elman(3, 5, bias=False),
    "leaky(3, 5, rate=0.2)": jb.leaky(3, 5, rate=0.2),
    "learn_carry(lstm(3, 5))": jb.learn_carry(LSTM),
    "make_cell(3, 5, _step)": jb.make_cell(3, 5, _step),
    "step_cell(3, 5, _mlp, _weights)": jb.step_cell(3, 5, _mlp, _weights),
    "lstm(3, 5)._replace(dtype=dtype(bfloat16))": LSTM._replace(dtype=jnp.dtype("bfloat16")),
    "layer(lstm(3, 5), backward=lstm(3, 5), dropout=0.1)": NET.layers[0],
    "layer(gru(3, 5), backward=gru(3, 5), merge='sum', recurrent_dropout=0.2)": jb.layer(
        jb.gru(3, 5), backward=jb.gru(3, 5), recurrent_dropout=0.2, merge="sum"
    ),
    "last(readout(4, 2))": NET.readout,
    "full()": jb.full(),
    "full(recompute=False)": jb.full(recompute=False),
    "truncated(20)": jb.truncated(20, stride=20),
    "truncated(20, stride=1)": jb.truncated(20, 1),
    "checkpointed(slots=4)": jb.checkpointed(slots=4),
    "artbp(0.1)": jb.artbp(0.1),
    "fused(gradient=truncated(20))": jb.fused(jb.truncated(20)),
    "rtrl()": jb.rtrl(),
    "mean_over_steps(_absolute)": jb.mean_over_steps(error=_absolute),
    "quantile_error([0.1, 0.9])": jb.quantile_error([0.1, 0.9]),
    "huber_error(delta=0.3)": jb.huber_error(0.3),
    "autodiff()": jb.autodiff(),
    "network([layer(lstm(3, 5), backward=lstm(3, 5), dropout=0.1), gru(10, 4)], last(readout(4, 2)))"
    "  # 562 parameters": NET,
}


@pytest.mark.parametrize("text", PRINTED)
def test_a_value_is_printed_and_pickled_and_copied_as_the_call_that_made_it(text):
    value = PRINTED[text]
    assert repr(value) == text
    pickled = ForkingPickler.loads(ForkingPickler.dumps(value))
    if "_replace" in text:
        assert pickled == value
    else:
        assert pickled is value
    assert copy.copy(value) is copy.deepcopy(value) is value
    assert jax.tree.leaves(value) == []


def test_two_initialisers_of_one_gain_are_two_cells():
    assert jb.elman(3, 5, recurrent=jb.identity()) != jb.elman(3, 5, recurrent=jb.orthogonal())


def test_the_parameters_of_a_network_are_counted():
    params = NET.init(jax.random.key(0))
    assert sum(p.size for p in jax.tree.leaves(params)) == 562


def test_parameters_and_states_are_printed_by_shape_and_can_be_pickled():
    net = jb.network(
        [jb.learn_carry(jb.gru(1, 2)), jb.layer(jb.lstm(2, 3), backward=jb.lstm(2, 3))], jb.readout(6, 1)
    )
    state = jb.init_train_state(jax.random.key(0), net, optax.adam(0.1), (4,))
    assert repr(state.params.cells[0]) == (
        "GRUParamsWithCarry(w_x=float32[1,6], w_h=float32[2,6], b=float32[6], b_h=float32[6], h_0=float32[2])"
    ).replace("float32", str(jnp.result_type(float)))
    assert "Array(" not in repr(state)
    again = ForkingPickler.loads(ForkingPickler.dumps(state))
    assert jax.tree.structure(again) == jax.tree.structure(state)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: (a == b).all(), state, again)))
    assert copy.deepcopy(state.params).cells[0]._fields == state.params.cells[0]._fields


def test_help_and_completion_show_the_public_names():
    assert set(dir(jb)) == {*jb.__all__, "__version__"}
    shown = pydoc.plain(pydoc.render_doc(jb))
    functions = [name for name in jb.__all__ if inspect.isfunction(getattr(jb, name))]
    assert len(functions) > 40
    assert all(f"    {name}(" in shown for name in functions)
    assert jb.__version__ in shown


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (LSTM, r"lstm\(3, 5\) is not a function; run it by jb\.unroll\(cell, params, carry, xs\)"),
        (NET, r"network\(.*\) is not a function; run it by net\.apply\(params, carry, xs\)"),
    ],
)
def test_a_call_of_a_cell_or_network_says_what_to_call(value, message):
    with pytest.raises(TypeError, match=message):
        value(jnp.ones((7, 3)))

"""What somebody meets who uses the library for the first time: the mistakes, and the words that lead on."""

import jax
import jax.numpy as jnp
import optax
import pytest
import support.witnesses as w

import jax_bptt as jb
from jax_bptt.base.compiling import PROGRAMS, compiled

CELL = jb.lstm(3, 5)
NET = jb.network([CELL], jb.readout(5, 2))
PARAMS, NET_PARAMS = CELL.init(jax.random.key(0)), NET.init(jax.random.key(0))
CARRY = CELL.initial_carry(PARAMS, (4,))
XS, TARGETS = jnp.ones((7, 4, 3)), jnp.zeros((7, 4, 2))
BATCH_FIRST = XS.swapaxes(0, 1)
SGD = optax.sgd(1e-2)
RUN = jb.value_and_grad(NET, jb.squared_error)


def _train(batch_shape=None, xs=XS, targets=TARGETS):
    state = jb.init_train_state(jax.random.key(0), NET, SGD, *[s for s in [batch_shape] if s])
    return jb.make_train_step(NET, jb.squared_error, SGD)(state, jb.Batch(xs, targets))


def _step_of_one_row(units, s, u, v):
    return jb.Carry(u[0] * jnp.ones(3))


def _matrix_loss(ys, targets):
    return jnp.dot(ys, targets).sum()


def _raising_loss(ys, targets):
    raise RuntimeError("no such class")


def _own_step():
    cell = jb.make_cell(3, 5, _step_of_one_row)
    return jb.unroll(cell, cell.init(jax.random.key(0)), None, XS)


MISTAKES = {
    "batch first": (
        lambda: jb.unroll(CELL, PARAMS, CARRY, BATCH_FIRST),
        ValueError,
        r"^unroll: carry\.h: .*; xs is \[T, \*batch, 3\], time first: it is read as T = 4 steps of batch "
        r"\(7,\)\. If your batch comes first, pass xs\.swapaxes\(0, 1\); else .*carry\(params, \(7,\)\)",
    ),
    "batch first in training": (
        lambda: _train((4,), BATCH_FIRST),
        ValueError,
        r"^train_step: batch\.xs: .* batch axes \(4,\) .*time comes first: this is read as T = 4 steps of "
        r"batch \(7,\)",
    ),
    "a smaller last batch of carried rows": (
        lambda: _train((4,), XS[:, :3], TARGETS[:, :3]),
        ValueError,
        r"independent, make the state without batch_shape: .*leave out a smaller last batch, or fill it up "
        r"with rows whose mask is False",
    ),
    "a forgotten carry": (
        lambda: jb.unroll(CELL, PARAMS, XS),
        TypeError,
        r"^unroll\(\) missing a required argument: 'xs'; carry is None where a sequence begins at the "
        r"initial carry; write unroll\(cell, params, carry, xs, \*, gradient=full\(\)",
    ),
    "starts without a reset": (
        lambda: jb.unroll(CELL, PARAMS, None, XS, starts=CELL.initial_carry(PARAMS, (7, 4))),
        ValueError,
        r"^unroll: starts: expected resets, which go back to them, got no reset; pass reset, bool \[T",
    ),
    "a carry for starts in training": (
        lambda: RUN(NET_PARAMS, None, XS, TARGETS, reset=XS[..., 0] > 0, starts=(CARRY,)),
        ValueError,
        r"^value_and_grad\(net, loss\): starts\[0\]\.h: expected shape \[7,4,5\], .*; pass a carry for",
    ),
    "a forgotten carry of a network": (
        lambda: NET.apply(NET_PARAMS, XS),
        TypeError,
        r"^net\.apply\(\) missing a required argument: 'xs'; carry is None .*write net\.apply\(params",
    ),
    "a forgotten carry in the loss": (
        lambda: RUN(NET_PARAMS, XS, TARGETS),
        TypeError,
        r"^value_and_grad\(net, loss\)\(\) missing a required argument: 'targets'; carry is None",
    ),
    "a step for one row": (
        _own_step,
        ValueError,
        r"^ValueError: .*\(4, 5\) \(3,\).*, raised by step at test_beginners\.py, line \d+: .*jnp\.ones\(3\)",
    ),
    "a loss that is no sum": (
        lambda: jb.value_and_grad(NET, _matrix_loss)(NET_PARAMS, None, XS, TARGETS),
        ValueError,
        r"^TypeError: dot_general .*, raised by loss at test_beginners\.py, line \d+: return jnp\.dot",
    ),
    "a loss that raises": (
        lambda: jb.value_and_grad(NET, _raising_loss)(NET_PARAMS, None, XS, TARGETS),
        ValueError,
        r"^RuntimeError: no such class, raised by loss at test_beginners\.py, line \d+: raise RuntimeError",
    ),
    "layers by number": (
        lambda: jb.lstm(3, 5, 2),
        TypeError,
        r"^lstm\(\) too many positional arguments; give options by their names; write lstm\(",
    ),
    "num_layers": (
        lambda: jb.gru(3, 5, num_layers=2),
        TypeError,
        r"^gru\(\) got .*; stack layers by jb\.network",
    ),
    "bidirectional": (
        lambda: jb.lstm(3, 5, bidirectional=True),
        TypeError,
        r"^lstm\(\) .*; read both ways by jb\.layer",
    ),
    "sample_weight": (
        lambda: RUN(NET_PARAMS, None, XS, TARGETS, sample_weight=TARGETS[..., 0]),
        TypeError,
        r"^value_and_grad\(net, loss\)\(\) got .*; how much a step and row counts .* is called weight;",
    ),
    "batch_first": (
        lambda: jb.lstm(3, 5, batch_first=True),
        TypeError,
        r"time is always the first axis: xs is \[T, ",
    ),
    "one size": (
        lambda: jb.lstm(3),
        TypeError,
        r"^lstm\(\) missing a required argument: 'hidden_size'; write lstm\(",
    ),
    "a network given to unroll": (
        lambda: jb.unroll(NET, NET_PARAMS, None, XS),
        ValueError,
        r"^unroll: cell: expected a Cell, got network\(\[lstm\(3, 5\)\], readout\(5, 2\)\); ",
    ),
    "the params of a network": (
        lambda: jb.unroll(CELL, NET_PARAMS, None, XS),
        ValueError,
        r"^unroll: params: expected Params\(w_x=.*, got NetworkParams\(.*; make them by cell\.init\(key\)",
    ),
    "an activation that is misspelt": (
        lambda: jb.elman(3, 5, activation="tahn"),
        ValueError,
        r"^elman: activation: expected one of tanh, .*, got 'tahn'; check the spelling",
    ),
    "a method that is not called": (
        lambda: jb.unroll(CELL, PARAMS, None, XS, gradient=jb.full),
        ValueError,
        r"^unroll: gradient: expected a gradient method, got .*; pass jb\.full\(\)",
    ),
    "a network as a function": (
        lambda: NET(NET_PARAMS, XS),
        TypeError,
        r"run it by net\.apply\(params, carry, xs\)",
    ),
    "a cell as a function": (lambda: CELL(XS), TypeError, r"run it by jb\.unroll\(cell, params, carry, xs\)"),
    "a batch shape that is a number": (
        lambda: _train(4),
        ValueError,
        r"^init_train_state: batch_shape: .*tuple",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_message_leads_right(name):
    call, kind, message = MISTAKES[name]
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize("steps", [1, 3])
def test_independent_sequences_begin_anew_and_carried_ones_go_on(steps):
    """The pitfall: the same batches, trained both ways, against updates by hand."""
    k = jax.random.split(jax.random.key(1))
    xs, targets = jax.random.normal(k[0], (3, 7, 4, 3)), jax.random.normal(k[1], (3, 7, 4, 2))
    for batch_shape in (None, (4,)):
        state = jb.init_train_state(jax.random.key(0), NET, SGD, batch_shape)
        params, carry = jax.tree.map(jnp.copy, state.params), None
        if steps == 1:
            train_step = jb.make_train_step(NET, jb.squared_error, SGD)
            for x, y in zip(xs, targets, strict=True):
                state, _ = train_step(state, jb.Batch(x, y))
        else:
            state, _ = jb.make_train_steps(NET, jb.squared_error, SGD)(state, jb.Batch(xs, targets))
        for x, y in zip(xs, targets, strict=True):
            (_, last), grads = RUN(params, carry, x, y)
            params = jax.tree.map(lambda p, g: p - 1e-2 * g, params, grads)
            carry = None if batch_shape is None else last
        assert not w.wrong(state.params, params, 1e-12)
        assert (state.carry is None) == (batch_shape is None)


def test_a_smaller_batch_of_independent_sequences_is_fine():
    train_step = jb.make_train_step(NET, jb.squared_error, SGD)
    state = jb.init_train_state(jax.random.key(0), NET, SGD)
    for rows in (4, 2):
        state, metrics = train_step(state, jb.Batch(XS[:, :rows], TARGETS[:, :rows]))
        assert bool(metrics.finite)


def test_a_state_that_is_not_donated_can_be_read_and_differentiated():
    train_step = jb.make_train_step(NET, jb.squared_error, SGD, donate=False)
    state = jb.init_train_state(jax.random.key(0), NET, SGD, (4,))

    def error_after(scale):
        params = jax.tree.map(lambda p: scale * p, state.params)
        after, _ = train_step(state._replace(params=params), jb.Batch(XS, TARGETS))
        return train_step(after, jb.Batch(XS, TARGETS))[1].loss

    slope = jax.grad(error_after)(1.0)
    difference = (error_after(1 + 1e-5) - error_after(1 - 1e-5)) / 2e-5
    assert abs(slope - difference) < 1e-7 * abs(slope)
    with pytest.raises(ValueError, match=r"make_train_step: donate: expected True or False, got no"):
        jb.make_train_step(NET, jb.squared_error, SGD, donate="no")


def test_an_initial_carry_is_never_the_parameter_itself():
    cell = jb.learn_carry(CELL)
    net = jb.network([cell], jb.readout(5, 2))
    state = jb.init_train_state(jax.random.key(0), net, SGD, ())
    carry = net.initial_carry(state.params, ())
    assert carry[0].h is not state.params.cells[0].h_0
    state = state._replace(carry=carry)
    state, metrics = jb.make_train_step(net, jb.squared_error, SGD)(state, jb.Batch(XS[:, 0], TARGETS[:, 0]))
    assert bool(metrics.finite)


def test_what_jax_says_of_an_old_state_is_what_the_page_on_saving_says():
    state = jb.init_train_state(jax.random.key(0), NET, SGD)
    train_step = jb.make_train_step(NET, jb.squared_error, SGD)
    train_step(state, jb.Batch(XS, TARGETS))
    with pytest.raises(RuntimeError, match="Array has been deleted"):
        _ = state.params.readout.w_y + 1
    with pytest.raises((RuntimeError, ValueError), match="deleted"):
        train_step(state, jb.Batch(XS, TARGETS))


def test_targets_that_do_not_fit_say_how_xs_is_read():
    with pytest.raises(ValueError, match=r"targets: .*; xs is read time first, as T = 4 steps"):
        _train(xs=BATCH_FIRST)


def test_few_programs_are_kept_for_fresh_losses():
    """Each keeps what its loss closes over, so that their number is bounded."""

    @compiled("loss")
    def error(x, loss):
        return loss(x)

    alive = len(jax.live_arrays())
    for n in range(3 * PROGRAMS):
        weights = jnp.full(7, float(n))
        error(XS, lambda x, weights=weights: weights.mean() * x.sum())
    assert len(jax.live_arrays()) - alive < 3 * PROGRAMS

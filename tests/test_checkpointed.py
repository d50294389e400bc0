"""`checkpointed` recomputes as little as its slots allow, takes any length, and needs little memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support.witnesses as w
from cases import make
from support.refusals import refused
from support.roads import OF_STEPS

import jax_bptt as jb
from jax_bptt.engine.run import Run
from jax_bptt.engine.sequence import Sequence
from jax_bptt.gradients.autodiff import plain_scan
from jax_bptt.gradients.schedule import advances, schedule

# From the closed form t(n, m) = r n − C(m + r, r − 1), worked out by hand: r = 2, 3, 5, 2.
OPTIMA = {(10, 3): 15, (100, 10): 222, (1000, 10): 3636, (1000, 50): 1948}


@functools.cache
def _best(n, m):
    """The fewest advances by trying every place for the next kept state."""
    if n == 1:
        return 0
    if m == 1:
        return n * (n - 1) // 2
    return min(k + _best(n - k, m - 1) + _best(k, m) for k in range(1, n))


@pytest.mark.parametrize(("n", "m"), OPTIMA)
def test_recomputation_is_the_binomial_optimum(n, m):
    assert advances(n, m) == OPTIMA[n, m]
    assert sum(not action.reverse for action in schedule(n, m)) == OPTIMA[n, m]


def test_no_schedule_is_better():
    for m in range(1, 9):
        for n in range(1, 50):
            made = sum(not action.reverse for action in schedule(n, m))
            assert advances(n, m) == made == _best(n, m), (n, m)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 1), (13, 2), (20, 3), (66, 10), (50, 50), (3000, 3000)])
def test_a_schedule_can_be_carried_out(n, m):
    """Every action finds the state it needs, m slots suffice, every step is reversed once, in order."""
    slots, current, left = {}, 0, n
    for load, keep, step, reverse in schedule(n, m):
        current = slots[load] if load >= 0 else current
        if keep >= 0:
            slots[keep] = current
        assert step == current
        current = None if reverse else current + 1
        if reverse:
            left -= 1
            assert step == left
    assert left == 0
    assert set(slots) <= set(range(m))


def _counting(calls):
    """An Elman cell that counts the steps it takes; its derivative by hand takes none."""
    elman = jb.elman(2, 3)

    def step(units, s, u, v):
        jax.debug.callback(lambda: calls.append(1))
        return elman.step(units, s, u, v)

    return jb.make_cell(2, 3, step, linearise=elman.linearise, adjoint=elman.adjoint)


@pytest.mark.parametrize("steps", [10, 23])
def test_cell_evaluations_are_counted_by_the_host(steps):
    calls = []
    net = jb.network([_counting(calls)], jb.readout(3, 1))
    params, xs = net.init(jax.random.key(0)), jnp.ones((steps, 2))
    run = jax.jit(functools.partial(jb.value_and_grad(net, jb.squared_error), gradient=jb.checkpointed(3, 1)))
    jax.block_until_ready(run(params, None, xs, jnp.zeros((steps, 1))))
    jax.effects_barrier()
    assert len(calls) == advances(steps, 3) + steps


def test_cell_evaluations_of_unroll():
    """The forward pass makes the outputs of all steps and keeps states on its way."""
    calls, steps = [], 10
    cell = _counting(calls)
    params, xs = cell.init(jax.random.key(0)), jnp.ones((steps, 2))

    def loss(params):
        return jb.unroll(cell, params, None, xs, gradient=jb.checkpointed(3, 1))[1].sum()

    jax.block_until_ready(jax.jit(jax.grad(loss))(params))
    jax.effects_barrier()
    assert len(calls) == advances(steps, 3) + 1 + steps


SLOTS_AND_CHUNKS = [(1, 1), (2, 3), (3, 5), (50, 4), (None, None), (None, 4), (4, 99)]


@pytest.mark.parametrize(
    ("steps", "given"),
    [
        (1, [(1, 1), (2, 3), (None, None)]),
        (2, [(1, 1), (2, 3), (None, 4)]),
        (11, SLOTS_AND_CHUNKS),
        (17, [(2, 3), (3, 5), (50, 4), (None, None)]),
    ],
)
def test_ragged_lengths_drop_no_step(steps, given):
    case = make("elman-tanh", steps, (2,), marks=("reset",))
    wanted = w.by_autodiff(case)
    for found, of in zip(w.by_hand(case, [jb.checkpointed(*m) for m in given]), given, strict=True):
        assert not w.wrong(found, wanted, 1e-12), of


def test_what_is_compiled_does_not_grow_with_the_sequence():
    def equations(steps):
        case = make("lstm", steps, (2,))
        jaxpr = jax.make_jaxpr(lambda *p: jax.vjp(w.unrolled(case, jb.checkpointed(3, 2)), *p)[1])(
            *case.primals()
        )
        return str(jaxpr).count("=")

    assert equations(20) == equations(200)


def _temporaries(method, cell, sizes, loss=jb.squared_error, targets=None, outputs=8):
    """Bytes of temporaries of value and gradient of layer, readout and loss; None: of the plain scan."""
    steps, rows = sizes
    net = jb.network([cell], jb.readout(cell.hidden_size, outputs))
    params = jax.eval_shape(lambda: net.init(jax.random.key(0)))
    carry = jax.eval_shape(lambda: net.initial_carry(net.init(jax.random.key(0)), (rows,)))
    xs = jax.ShapeDtypeStruct((steps, rows, cell.input_size), "float64")
    targets = targets or jax.ShapeDtypeStruct((steps, rows, outputs), "float64")

    def plain(params, carry, xs, targets):
        def error(params):
            _, hs = plain_scan(cell, Run(params.cells[0], carry[0], None, Sequence(xs)))
            return loss(net.readout.forward(params.readout, hs)[1], targets)

        return jax.value_and_grad(error)(params)

    run = plain if method is None else functools.partial(jb.value_and_grad(net, loss), gradient=method)
    return jax.jit(run).lower(params, carry, xs, targets).compile().memory_analysis().temp_size_in_bytes


def test_temporaries_of_a_long_lstm():
    """full at most 1/3 and checkpointed(slots=16) at most 1/15 of jax.grad of the plain scan."""
    cell, sizes = jb.lstm(64, 128), (1000, 32)
    plain = _temporaries(None, cell, sizes)
    assert _temporaries(jb.full(), cell, sizes) <= plain / 3
    assert _temporaries(jb.checkpointed(slots=16), cell, sizes) <= plain / 15
    assert _temporaries(jb.checkpointed(), cell, sizes) <= plain / 12
    assert _temporaries(jb.truncated(50), cell, sizes) <= plain / 15


def test_temporaries_grow_as_the_root_of_the_length_or_not_at_all():
    cell = jb.gru(4, 16)
    for method, growth in (
        (jb.checkpointed(), 4.5),
        (jb.checkpointed(slots=4, chunk=16), 1.3),
        (jb.truncated(32), 1.3),
    ):
        short, long = (_temporaries(method, cell, (steps, 8)) for steps in (256, 4096))
        assert long < growth * short + 40_000, method  # the actions are numbers, and one error a chunk


@pytest.mark.parametrize(
    ("method", "loss"),
    [
        (jb.full(), jb.softmax_cross_entropy),
        (jb.full(), OF_STEPS),
        (jb.checkpointed(4), jb.softmax_cross_entropy),
        (jb.truncated(20), OF_STEPS),
        (jb.autodiff(), jb.softmax_cross_entropy),
    ],
    ids=lambda value: getattr(value, "__name__", repr(value)),
)
def test_outputs_of_all_steps_never_exist(method, loss):
    """A large vocabulary: Y of all steps would be 400 times the states."""
    steps, rows, words = 1200, 4, 6000
    classes = jax.ShapeDtypeStruct((steps, rows), "int32")
    used = _temporaries(method, jb.elman(8, 15), (steps, rows), loss, classes, words)
    assert used < steps * rows * words * 8 / 4


def test_states_can_be_kept_in_host_memory():
    case = make("lstm", 11, (2,), marks=("mask", "reset"))
    assert not w.wrong(w.manual(case, jb.checkpointed(3, 2, host=True)), w.by_autodiff(case), 1e-12)
    run = jax.jit(lambda *p: jax.vjp(w.unrolled(case, jb.checkpointed(3, 2, host=True)), *p)[1])
    text = run.trace(*case.primals()).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("pinned_host") >= 4  # two leaves of the carry, room and writes


def test_states_in_host_memory_can_be_mapped_but_not_differentiated_again():
    case = make("lstm", 5, (2,), marks=("reset",))

    def error(params, xs, method):
        return jnp.sum(w.unrolled(case, method)(params, None, xs)[1] ** 2)

    def mapped(method):
        slopes = jax.vmap(jax.vmap(jax.grad(error), (0, None, None)), (None, 0, None))
        return jax.jit(slopes, static_argnums=2)(several, jnp.stack([case.xs, 2 * case.xs]), method)

    several = jax.tree.map(lambda p: jnp.stack([p, 0.5 * p, -p]), case.params)
    method = jb.checkpointed(2, 2, host=True)
    assert not w.wrong({"params": mapped(method)}, {"params": mapped(jb.full())}, 1e-12)
    with pytest.raises(ValueError, match=r"gradient: expected first derivatives in reverse mode, got"):
        jax.hessian(lambda x: error(case.params, x * case.xs, method))(1.0)


BAD = {
    "no slot": (lambda: jb.checkpointed(0), r"slots: expected an integer >= 1, got 0"),
    "slots as float": (lambda: jb.checkpointed(2.0), r"slots: expected an integer >= 1, got 2.0"),
    "empty chunk": (lambda: jb.checkpointed(chunk=0), r"chunk: expected an integer >= 1, got 0"),
    "host by name": (lambda: jb.checkpointed(host="cpu"), r"host: expected True or False, got cpu"),
    "empty chunk of full": (lambda: jb.full(0), r"chunk: expected an integer >= 1, got 0"),
    "recompute no share": (
        lambda: jb.full(recompute=2),
        r"recompute: expected True, False, None or a share from 0 to 1, got 2",
    ),
    "recompute as text": (lambda: jb.full(recompute="all"), r"recompute: expected True, False, None or"),
}

test_messages = refused(BAD)


def test_methods_are_values():
    assert jb.checkpointed(16) is jb.checkpointed(slots=16) is jb.checkpointed(np.int64(16))
    assert repr(jb.checkpointed(slots=4, host=True)) == "checkpointed(slots=4, host=True)"
    assert repr(jb.full(chunk=8, recompute=False)) == "full(chunk=8, recompute=False)"
    assert jb.full(recompute=False) != jb.full()
    assert jb.full(recompute=0.0) is jb.full(recompute=False)
    assert jb.full(recompute=1) is jb.full(recompute=True)
    assert repr(jb.full(recompute=0.5)) == "full(recompute=0.5)"


def test_an_automatic_chunk_divides_the_sequence_if_it_can():
    from jax_bptt.engine.chunks import chunk_of

    def chosen(steps, rows, weights):
        return chunk_of(steps, rows, np.broadcast_to(0.0, weights))

    assert chosen(1000, 32, 10_000) == 25
    assert chosen(997, 32, 10_000) == 32
    assert chosen(96, 64, 500_000) == 16
    assert chosen(96, 64, 2_000_000) == 8
    assert chosen(64, 32, 10_000) == 16  # a short sequence: 512 rows
    assert chosen(32, 32, 10_000) == 32  # no more rows than a chunk of a long sequence has
    assert chosen(64, 32, 8_000_000) == 64
    assert chosen(7, 5000, 8) == 1

"""`fastest` names what does not fit and what is wrong, and takes the best of the others by their ratios."""

import collections
import itertools

import jax
import jax.numpy as jnp
import mutations
import pytest

import jax_bptt as jb
from jax_bptt.training import fastest as module

T, B, I, H = 40, 32, 3, 4  # noqa: E741
CELL = jb.gru(I, H)
NET = jb.network([CELL], jb.readout(H, 2))
BATCH = jb.Batch(*(jax.random.normal(jax.random.key(n), (T, B, n)) for n in (I, 2)))


@pytest.fixture
def _each_faster_than_the_last(monkeypatch):
    """The first program takes 9 ms, the next 8 ms, and so on."""
    taken = {}

    def seconds(call, calls):
        jax.block_until_ready(call())
        return 1e-3 * (9 - taken.setdefault(id(call.func), len(taken)))

    monkeypatch.setattr(module, "seconds", seconds)


def _rows(found):
    return {repr(one.gradient): (one.ratio and round(one.ratio, 2), one.remark) for one in found.tried}


@pytest.mark.usefixtures("_each_faster_than_the_last")
def test_every_exact_method_is_tried_and_equal_programs_once():
    """In float32, with all that a batch can have; T B ≤ 1024 is one chunk, whose slopes are all kept."""
    pattern = jnp.arange(T * 8).reshape(T, 8) % 7
    data = (z[:, :8].astype("float32") for z in BATCH[:2])
    weight = (pattern % 3).astype("float32")
    batch = jb.Batch(*data, pattern != 1, pattern == 2, pattern == 3, jax.random.key(3), weight)
    net = jb.network([jb.layer(jb.gru(I, H), dropout=0.5)], jb.readout(H, 2))
    found = jb.fastest(net, jb.squared_error, batch)
    assert found.gradient is jb.checkpointed()
    assert _rows(found) == {
        "checkpointed()": (1.0, ""),
        "full(recompute=True)": (1.17, ""),
        "full()": (1.33, ""),
        "autodiff()": (1.5, ""),
        "full(recompute=False)": (None, "the same program as full()"),
    }


MISTAKES = ("off by one in a million", "NaN in one entry")
MUTATED = [mutations.method(mutations.MUTATIONS[name])._replace(name=name) for name in MISTAKES]


@pytest.mark.usefixtures("_each_faster_than_the_last")
def test_a_wrong_gradient_is_left_out_and_named_however_fast_it_is(monkeypatch):
    """Negative control."""
    methods = jb.autodiff(), jb.full(recompute=True), jb.truncated(2), *MUTATED
    monkeypatch.setattr(module, "exact_methods", lambda: methods)
    found = jb.fastest(NET, jb.squared_error, BATCH)
    assert found.gradient is jb.full(recompute=True)
    assert [one.gradient for one in found.tried] == [jb.full(recompute=True), jb.autodiff(), *methods[2:]]
    remarks = [one.remark for one in found.tried[2:]]
    assert all(r.startswith("its gradient differs from that of autodiff() by ") for r in remarks)
    assert [r[-5:] for r in remarks[1:]] == ["1e-06", "y nan"]
    head, first, _, cut, *_ = str(found).splitlines()
    assert head.split() == ["gradient", "temporaries,", "MiB", "ms", "ratio"]
    assert first.split()[0] == "full(recompute=True)"
    assert first.endswith(" 8     1.00")
    assert cut.startswith("truncated(2) ")
    assert cut.endswith(remarks[0])
    with pytest.raises(ValueError, match=r"gradient: .* got Fastest; pass its field: gradient=found\.grad"):
        jb.unroll(CELL, NET.init(jax.random.key(0)).cells[0], None, BATCH.xs, gradient=found)


@pytest.mark.usefixtures("_each_faster_than_the_last")
def test_what_needs_more_memory_is_left_out_before_it_runs(monkeypatch):
    """With the method that the others are compared with; and where nothing fits, it is said what would."""
    monkeypatch.setattr(module, "exact_methods", lambda: (jb.autodiff(), jb.checkpointed()))
    found = jb.fastest(NET, jb.squared_error, BATCH)
    least, most = (one.temporaries for one in found.tried)
    assert least < most
    found = jb.fastest(NET, jb.squared_error, BATCH, memory=most - 1)
    assert _rows(found) == {
        "checkpointed()": (1.0, ""),
        "autodiff()": (None, "needs more memory than it may"),
    }
    with pytest.raises(
        ValueError, match=rf"fastest: memory: expected at least {least} bytes, got {least - 1}"
    ):
        jb.fastest(NET, jb.squared_error, BATCH, least - 1)


def _timed(monkeypatch, **taken):
    """What is said of programs that take these seconds, call by call; and how often each was asked."""
    methods = [getattr(jb, name) for name in taken]
    programs = [module._Program(f(), f, len(taken) - number) for number, f in enumerate(methods)]
    times = dict(zip([program.run for program in programs], map(iter, taken.values()), strict=True))
    asked = collections.Counter()

    def seconds(call, calls):
        asked[call.func.__name__] += 1
        return next(times[call.func])

    monkeypatch.setattr(module, "seconds", seconds)
    return module._timed(programs, None), asked


def test_a_machine_that_is_busy_for_a_while_is_so_for_all(monkeypatch):
    """Each is the faster one in its best round; in most rounds full() takes four fifths of the time."""
    busy = [1, 1, 1, 1, 9, 9, 1, 9]
    full = [0.8e-2 * b for b in busy]
    full[2] = 0.05
    (first, second), asked = _timed(monkeypatch, autodiff=[1e-2 * b for b in busy], full=full)
    assert (first.gradient, first.ratio, second.ratio) == (jb.full(), 1.0, pytest.approx(1.25))
    assert first.milliseconds == pytest.approx(50.0)
    assert asked == {"autodiff": 8, "full": 8}


def test_of_a_tie_the_leanest_is_taken(monkeypatch):
    """The last one needs the fewest temporaries, and then the second."""
    taken = {"autodiff": 1.0, "full": 1.04, "checkpointed": 1.06}
    found, _ = _timed(monkeypatch, **{name: itertools.repeat(t) for name, t in taken.items()})
    assert [one.gradient for one in found] == [jb.full(), jb.autodiff(), jb.checkpointed()]
    assert [round(one.ratio, 2) for one in found] == [1.04, 1.0, 1.06]


def test_the_rounds_end_after_some_seconds(monkeypatch):
    _, asked = _timed(monkeypatch, autodiff=itertools.repeat(2.0), full=itertools.repeat(1.0))
    assert asked == {"autodiff": 1 + module.LEAST_ROUNDS, "full": 1 + module.LEAST_ROUNDS}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net": CELL}, "fastest: net: expected a Network"),
        ({"batch": BATCH.xs}, r"fastest: batch: expected a Batch, got .*; pass jb\.Batch\(xs, targets\)"),
        ({"batch": BATCH._replace(xs=BATCH.xs[..., :2])}, "fastest: xs: expected one array"),
        (
            {"batch": BATCH._replace(xs=BATCH.xs * jnp.nan)},
            "fastest: batch: .* gradient is finite, got .* nan",
        ),
        ({"memory": 0}, "fastest: memory: expected a positive number of bytes, or None, got 0"),
        ({"memory": "2 GB"}, "fastest: memory: expected a positive number of bytes, or None, got '2 GB'"),
    ],
)
def test_a_wrong_argument_is_named(change, message):
    right = {"net": NET, "loss": jb.squared_error, "batch": BATCH}
    with pytest.raises(ValueError, match=message):
        jb.fastest(**right | change)


def test_it_cannot_be_timed_inside_jit():
    with pytest.raises(ValueError, match=r"call jb\.fastest outside of jax\.jit and jax\.grad"):
        jax.jit(lambda batch: jb.fastest(NET, jb.squared_error, batch).tried[0].ratio)(BATCH)

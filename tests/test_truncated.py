"""Truncated gradients are those of programs with stop_gradient; ARTBP is unbiased over all patterns."""

import itertools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
import support.witnesses as w
from cases import KINDS, make
from support.refusals import refused

import jax_bptt as jb

T = 7
WINDOWS = [(1, 1), (3, 3), (5, 5), (3, 1), (4, 2), (5, 3)]


def _blocks(window, stride):
    """(first step seen, first loss, end) of every block of losses, in Python's counting."""
    for first_loss in range(0, T, stride):
        end = min(first_loss + stride, T)
        yield (first_loss if stride == window else max(0, end - window)), first_loss, end


def _by_stop_gradient(case, window, stride, frozen=None):
    """E as a sum over blocks, each a plain scan from a carry that is a number, of (params, carry, xs).

    The carries are those of `frozen`, primals at which they were made, or stop_gradient of the same run.
    Blocks of one length, with losses at the same of their steps, are one scan under vmap.
    """
    alike = {}
    for first, first_loss, end in _blocks(window, stride):
        alike.setdefault((first == 0, end - first, first_loss - first), []).append(first)

    def run(*primals):
        params, carry, xs = primals
        states = _states(case, *(frozen or primals))
        total = 0.0
        for (from_carry, length, first_loss), firsts in alike.items():

            def block(first, s, from_carry=from_carry, length=length, first_loss=first_loss):
                x, d_hs, marks = _steps((xs, case.d_hs, case.marks), first, length)
                last, hs = w.plain(case._replace(marks=marks))(params, carry if from_carry else s, x)
                of_last = sum(map(jnp.vdot, jax.tree.leaves(case.d_carry), jax.tree.leaves(last)))
                of_last = jnp.where(first + length == T, of_last, 0.0)
                return jnp.sum(d_hs[first_loss:] * hs[first_loss:]) + of_last

            firsts = np.array(firsts)
            before = jax.tree.map(lambda z, firsts=firsts: jax.lax.stop_gradient(z[firsts]), states)
            total += jax.vmap(block)(firsts, before).sum()
        return total

    return run


def _states(case, params, carry, xs):
    """The carry in front of every step, by a plain scan."""

    def step(s, at_t):
        x, marks = at_t
        return type(s)(**w.one_step(case, jnp, w.as_dict(params), s._asdict(), x, marks)), s

    return jax.lax.scan(step, carry, (xs, case.marks))[1]


def _steps(tree, first, length):
    return jax.tree.map(lambda z: jax.lax.dynamic_slice_in_dim(z, first, length), tree)


def _wanted(case, programs):
    gradients = jax.jit(lambda p: [jax.grad(f, (0, 1, 2))(*p) for f in programs])
    return gradients(case.primals())


@pytest.mark.parametrize(
    ("name", "marks", "pairs"),
    [
        ("elman-tanh", (), WINDOWS),
        ("lstm-learned-carry", ("mask", "reset", "cut"), [(1, 1), (3, 3), (3, 1), (5, 3)]),
        ("own-attention", ("mask", "reset"), [(3, 3), (4, 2)]),
    ],
)
def test_every_window_and_stride_is_a_program_with_stop_gradient(name, marks, pairs):
    case = make(name, T, (3,), marks=marks)
    if "mask" in marks:
        case = case._replace(xs=jnp.nan_to_num(case.xs))
    programs = [_by_stop_gradient(case, *pair) for pair in pairs]
    wanted = _wanted(case, programs)
    found = w.by_hand(case, [jb.truncated(*pair) for pair in pairs])
    for pair, ours, theirs in zip(pairs, found, wanted, strict=True):
        assert not w.wrong(ours, theirs, 1e-12), pair


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("elman-tanh", "own-attention")])
def test_every_cell_is_truncated(name):
    """By a sliding window; chunks are full() with cuts, which is shown below."""
    case = make(name, T, ())
    (wanted,) = _wanted(case, [_by_stop_gradient(case, 5, 3)])
    assert not w.wrong(w.manual(case, jb.truncated(5, 3)), wanted, 1e-12)


def test_differences_of_the_frozen_carry_function():
    """Truncated gradients can be checked by differences: of the function whose carries are held."""
    case, pairs = make("lstm", T, (2,)), [(3, 3), (3, 1), (5, 3)]
    flat, unflatten = jax.flatten_util.ravel_pytree(case.primals())
    programs = [_by_stop_gradient(case, *pair, frozen=case.primals()) for pair in pairs]
    f = jax.jit(jax.vmap(lambda z: jnp.stack([program(*unflatten(z)) for program in programs])))
    steps = 1e-5 * jnp.eye(len(flat))
    differences = (f(flat[None] + steps) - f(flat[None] - steps)) / 2e-5
    found = w.by_hand(case, [jb.truncated(*pair) for pair in pairs])
    for pair, ours, theirs in zip(pairs, found, differences.T, strict=True):
        assert not w.wrong(ours, unflatten(theirs), 1e-7), pair


def test_another_window_is_another_gradient():
    """Negative control: off by one in window or stride is seen in every leaf."""
    case = make("elman-tanh", T, (2,))
    (wanted,) = _wanted(case, [_by_stop_gradient(case, 3, 1)])
    for found in w.by_hand(case, [jb.truncated(3, 2), jb.truncated(4, 1), jb.truncated(2, 1)]):
        assert {"params.w_x", "params.w_h", "params.b", "xs"} <= set(w.wrong(found, wanted, 1e-3))


def test_chunked_is_cuts_and_sliding_is_a_sum_over_losses():
    case = make("gru", T, (2,))
    cut = jnp.zeros((T, 2), bool).at[jnp.array([3, 6])].set(True)
    by_cuts = w.manual(case._replace(marks={"cut": cut}), jb.full())
    chunked, sliding = w.by_hand(case, [jb.truncated(3), jb.truncated(3, stride=1)])
    assert not w.wrong(chunked, by_cuts, 1e-13)

    def of_one_loss(t):  # cut where its window begins
        cut = jnp.zeros((T, 2), bool).at[jnp.maximum(t - 2, 0)].set(t >= 3)
        alone = case._replace(marks={"cut": cut})
        d_hs = jnp.where((jnp.arange(T) == t)[:, None, None], case.d_hs, 0.0)
        d_carry = jax.tree.map(lambda z: jnp.where(t == T - 1, z, 0.0), case.d_carry)
        return jax.vjp(w.unrolled(alone, jb.full()), *case.primals())[1]((d_carry, d_hs))

    total = jax.tree.map(lambda z: z.sum(0), jax.jit(jax.vmap(of_one_loss))(jnp.arange(T)))
    assert not w.wrong(sliding, total, 1e-12)


def test_a_reversed_sequence_counts_from_its_last_step():
    case = make("elman-tanh", T, (2,), reverse=True)
    forwards = case._replace(xs=case.xs[::-1], d_hs=case.d_hs[::-1], reverse=False)
    methods = [jb.truncated(3), jb.truncated(4, stride=2)]
    for found, wanted in zip(w.by_hand(case, methods), w.by_hand(forwards, methods), strict=True):
        assert not w.wrong(found, (*wanted[:2], wanted[2][::-1]), 1e-13)


def test_in_a_stack_sliding_windows_add_up_and_chunks_do_not():
    """Each layer goes back from the gradient it is given: L (h − 1) + 1 steps; all share the chunks."""
    net = jb.network([jb.elman(1, 3), jb.elman(3, 3)], jb.readout(3, 1))
    params, xs = net.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (8, 1))

    def seen(method):
        return [
            bool(z) for z in jax.grad(lambda xs: net.apply(params, None, xs, gradient=method)[1][-1, 0])(xs)
        ]

    assert seen(jb.truncated(3, stride=1)) == [False] * 3 + [True] * 5
    assert seen(jb.truncated(3)) == [False] * 6 + [True] * 2


# ARTBP: the expectation over every pattern of cuts.


@pytest.mark.parametrize(
    ("name", "marks"),
    [
        ("elman-tanh", ()),
        ("lstm-learned-carry", ("mask", "reset")),
        ("own-layer-norm", ()),
        ("own-attention", ("mask", "reset")),
    ],
)
def test_the_expectation_of_artbp_is_the_full_gradient(name, marks):
    rate, steps = 0.3, 5
    case = make(name, steps, (), marks=marks)
    patterns = jnp.array(list(itertools.product([False, True], repeat=steps)))
    weights = jnp.prod(jnp.where(patterns, rate, 1 - rate), axis=1)

    def of(cut):
        marked = case._replace(marks={**case.marks, "cut": cut})
        return jax.vjp(w.unrolled(marked, jb.artbp(rate)), *case.primals())[1]((case.d_carry, case.d_hs))

    each = jax.jit(jax.vmap(of))(patterns)
    mean = jax.tree.map(lambda z: jnp.tensordot(weights, z, 1), each)
    wanted = w.by_autodiff(case)
    assert not w.wrong(mean, wanted, 1e-12)
    biased = jax.tree.map(lambda z: z[0] * (1 - rate) ** steps, each)  # one pattern says nothing of it
    assert w.wrong(biased, wanted, 1e-2)


def test_artbp_in_a_network_of_two_layers():
    """All layers share the cuts, and a term meets each link once."""
    rate, steps = 0.4, 4
    net = jb.network([jb.lstm(3, 4), jb.elman(4, 4)], jb.readout(4, 2))
    params = net.init(jax.random.key(0))
    xs, targets = jnp.sin(jnp.arange(12.0)).reshape(4, 3), jnp.ones((4, 2))
    patterns = jnp.array(list(itertools.product([False, True], repeat=steps)))
    weights = jnp.prod(jnp.where(patterns, rate, 1 - rate), axis=1)
    run = jb.value_and_grad(net, jb.squared_error)
    each = jax.jit(jax.vmap(lambda cut: run(params, None, xs, targets, gradient=jb.artbp(rate), cut=cut)[1]))(
        patterns
    )
    mean = jax.tree.map(lambda z: jnp.tensordot(weights, z, 1), each)
    assert not w.wrong(mean, run(params, None, xs, targets)[1], 1e-12)


def test_artbp_asks_for_its_cuts():
    case = make("elman-tanh", 3, ())
    with pytest.raises(ValueError, match=r"cut: expected bool marks .* got None; pass cut=jax.random.bern"):
        jax.grad(lambda p: w.unrolled(case, jb.artbp(0.3))(p, case.carry, case.xs)[1].sum())(case.params)


BAD = {
    "no window": (lambda: jb.truncated(0), r"window: expected an integer >= 1, got 0"),
    "stride above the window": (
        lambda: jb.truncated(3, 4),
        r"stride: expected at most window=3, got 4; pass a smaller stride",
    ),
    "stride of zero": (lambda: jb.truncated(3, 0), r"stride: expected an integer >= 1, got 0"),
    "rate of one": (lambda: jb.artbp(1), r"rate: expected a probability in \[0, 1\), got 1"),
    "rate as bool": (lambda: jb.artbp(False), r"rate: expected a probability in \[0, 1\), got False"),
    "rate as array": (lambda: jb.artbp(np.ones(2)), r"rate: expected a probability .* got float64\[2\]"),
}

test_messages = refused(BAD)


def test_methods_are_values():
    assert jb.truncated(3) is jb.truncated(window=3, stride=None) is jb.truncated(np.int64(3), 3)
    assert repr(jb.truncated(3)) == "truncated(3)"
    assert repr(jb.truncated(4, 2)) == "truncated(4, stride=2)"
    assert jb.artbp(0) is jb.artbp(rate=0.0) is jb.artbp(np.float32(0))
    assert jb.truncated(3) != jb.truncated(4)

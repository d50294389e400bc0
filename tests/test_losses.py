"""Every loss that adds up errors of steps has the value and the derivatives of its formula, written out."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support.reference_calls as calls
import support.witnesses as w

import jax_bptt as jb
from jax_bptt.networks import readout_and_loss
from jax_bptt.networks.judged import Judged
from jax_bptt.networks.losses import count, value_and_slope

T, B, D = 5, 3, 2
LEVELS, DELTA = (0.1, 0.5, 0.8), 0.5
PATTERN = np.arange(T * B).reshape(T, B)
MASK = jnp.asarray(PATTERN % 5 != 3)
WEIGHT = jnp.asarray(np.where(PATTERN % 3 == 1, 0.0, np.sin(PATTERN) + 0.5))


def _numbers(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=(T, B, *shape)))


def _squares(ys, targets):
    return ((ys - targets) ** 2).sum(-1)


def _nats(ys, targets):
    return -jnp.log((jax.nn.one_hot(targets, 4) * jax.nn.softmax(ys)).sum(-1))


def _of_trees(y, target):
    """A policy and a value, as of two heads."""
    chosen = jax.nn.log_softmax(y["policy"])[target.action]
    return -chosen * target.gain + jnp.square(y["value"] - target.returned)


def _trees(ys, targets):
    chosen = jnp.take_along_axis(jax.nn.log_softmax(ys["policy"]), targets.action[..., None], -1)[..., 0]
    return -chosen * targets.gain + (ys["value"] - targets.returned) ** 2


def _of_output(y, target):
    assert target is None
    return jnp.sum(y**4)


class Aim(NamedTuple):
    action: jax.Array
    gain: jax.Array
    returned: jax.Array


class Row(NamedTuple):
    """A loss; the error of each step and row, [T, B]; ys and targets."""

    loss: Any
    each: Any
    ys: Any
    targets: Any
    is_mean: bool = True


AIM = Aim(jnp.asarray(PATTERN % 4), _numbers()[::-1], _numbers())
TABLE = {
    "squares": Row(jb.squared_error, _squares, _numbers(D), _numbers(D)[::-1], False),
    "nats": Row(jb.softmax_cross_entropy, _nats, _numbers(4), AIM.action),
    "gaussian": Row(jb.gaussian_nll, calls.gaussians, _numbers(2 * D), _numbers(D)),
    "quantile": Row(
        jb.quantile_error(LEVELS), functools.partial(calls.pinballs, LEVELS), _numbers(3 * D), _numbers(D)
    ),
    "huber": Row(
        jb.huber_error(DELTA), functools.partial(calls.hubers, DELTA), _numbers(D), _numbers(D)[::-1]
    ),
    "binary": Row(jb.binary_cross_entropy, calls.bits, _numbers(D), jnp.abs(jnp.sin(_numbers(D)))),
    "trees": Row(jb.mean_over_steps(_of_trees), _trees, {"policy": _numbers(4), "value": _numbers()}, AIM),
    "no targets": Row(jb.sum_over_steps(_of_output), lambda y, _: (y**4).sum(-1), _numbers(D), None, False),
}


def _written_out(row, mask, weight):
    """E as a formula of all steps."""

    def error(ys, weight):
        counted = jnp.where(mask, weight, 0.0)
        total = (counted * row.each(ys, row.targets)).sum()
        return total / counted.sum() if row.is_mean else total

    return error


def _spoiled(tree):
    """With NaN and −1 where the mask is False."""

    def one(z):
        nothing = jnp.asarray(jnp.nan if jnp.issubdtype(z.dtype, jnp.floating) else -1, z.dtype)
        return jnp.where(MASK.reshape(MASK.shape + (1,) * (z.ndim - 2)), z, nothing)

    return jax.tree.map(one, tree)


def _everything(value, slope, ys, weight):
    """E, dE/dY, its derivative in a direction, and dE/dw with that of dE/dY."""
    direction = jax.tree.map(jnp.cos, ys)

    def along(weight):
        return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, slope(ys, weight), direction)))

    second = jax.jvp(lambda ys: slope(ys, weight), (ys,), (direction,))[1]
    by_weight = jax.grad(value, 1)(ys, weight), jax.grad(along)(weight)
    return value(ys, weight), slope(ys, weight), second, by_weight


def test_value_and_derivatives_are_those_of_the_formula():
    """By hand and by JAX, under a mask and weights, where targets hold nothing at steps that are not read."""

    def every():
        found = {}
        for name, row in TABLE.items():
            formula, targets = _written_out(row, MASK, WEIGHT), _spoiled(row.targets)

            def by_hand(ys, weight, row=row, targets=targets):
                return value_and_slope(row.loss, ys, Judged(targets, MASK, weight), (T, B))

            def of_loss(ys, weight, row=row, targets=targets):
                return row.loss(ys, targets, MASK, weight)

            found[name] = (
                _everything(formula, jax.grad(formula), row.ys, WEIGHT),
                _everything(of_loss, jax.grad(of_loss), row.ys, WEIGHT),
                _everything(lambda *a, f=by_hand: f(*a)[0], lambda *a, f=by_hand: f(*a)[1], row.ys, WEIGHT),
            )
        return found

    for name, (wanted, by_jax, by_hand) in jax.jit(every)().items():
        assert not w.wrong(by_jax, wanted, 1e-13), name
        assert not w.wrong(by_hand, wanted, 1e-13), name


def test_without_mask_and_weight_every_step_counts_once():
    for name, row in TABLE.items():
        each = row.each(row.ys, row.targets)
        wanted = each.mean() if row.is_mean else each.sum()
        found = value_and_slope(row.loss, row.ys, Judged(row.targets), (T, B))[0]
        assert abs(float(found - wanted)) < 1e-12, name
        n = count(row.loss, Judged(row.targets), (T, B))
        assert (n is None) if not row.is_mean else int(n) == T * B


def _of_shares(y, target):
    """At y = 0 the logarithm and its derivative are not finite; the root is, but not its derivative."""
    return -(target * jnp.log(y)).sum() + jnp.sqrt(y).sum()


@pytest.mark.parametrize("by_weight", [False, True])
def test_an_error_that_is_singular_at_zero_is_not_read_where_it_does_not_count(by_weight):
    """Neither in the loss nor in its first and second derivatives: they are those of the other steps."""
    loss, counts = jb.mean_over_steps(_of_shares), MASK
    ys, targets = jnp.where(counts[..., None], jnp.exp(_numbers(D)), 0.0), jnp.ones((T, B, D))
    targets = jnp.where(counts[..., None], targets, jnp.where(jnp.arange(B)[:, None] == 1, 0.0, 1.0))
    weight = jnp.where(counts, 1.0, 0.0)
    judged = Judged(targets, None if by_weight else counts, weight if by_weight else None)
    direction = jnp.ones_like(ys)

    def formula(rows):
        return -jnp.log(rows).sum() / len(rows) + jnp.sqrt(rows).sum() / len(rows)

    counted = np.asarray(counts)

    @jax.jit
    def run():
        def slope(ys):
            return value_and_slope(loss, ys, judged, (T, B))[1]

        by_jax = jax.grad(lambda ys: loss(ys, *judged[:3]))
        rows = ys[counted]
        wanted = jax.grad(formula)(rows), jax.jvp(jax.grad(formula), (rows,), (direction[counted],))[1]
        forward = [jax.jvp(f, (ys,), (direction,)) for f in (slope, by_jax)]
        reverse = [jax.vjp(f, ys)[1](direction)[0] for f in (slope, by_jax)]
        return wanted, [(*ahead, back) for ahead, back in zip(forward, reverse, strict=True)]

    (first, second), found = run()
    for of_ys, forward, reverse in found:
        for z, wanted in ((of_ys, first), (forward, second), (reverse, second)):
            assert not w.wrong((z[counted],), (wanted,), 1e-13)
            assert not z[~counted].any()


def test_the_median_does_not_move_where_the_target_is_met():
    loss, ys = jb.quantile_error([0.5, 0.9]), jnp.ones((1, 2))
    found = value_and_slope(loss, ys, Judged(jnp.ones((1, 1))))[1], jax.grad(loss)(ys, jnp.ones((1, 1)))
    for slope in found:
        assert np.allclose(slope, [[0.0, -0.4]], atol=1e-15)


def test_a_wrong_label_is_no_number():
    assert np.isnan(jb.binary_cross_entropy(jnp.zeros((2, 1)), jnp.array([[1.0], [-1.0]])))


def test_sixteen_bits_are_widened():
    ys, targets = (z.astype("bfloat16") for z in (_numbers(2 * D), _numbers(D)))
    error, slope = value_and_slope(jb.gaussian_nll, ys, Judged(targets))
    wanted = jax.value_and_grad(jb.gaussian_nll)(ys.astype("float32"), targets.astype("float32"))
    assert (error.dtype, slope.dtype) == ("float32", "bfloat16")
    assert not w.wrong((error, slope.astype("float32")), wanted, 4e-3)


class _TwoHeads(NamedTuple):
    """A readout of a tree."""

    of_last: bool = False

    def forward(self, params, hs):
        return None, {"policy": hs @ params["policy"], "value": jnp.sin(hs @ params["value"])}

    def backward(self, params, hs, kept, ys, d_ys):
        return jax.vjp(lambda params, hs: self.forward(params, hs)[1], params, hs)[1](d_ys)


def test_outputs_that_are_a_tree_are_read_a_few_steps_at_a_time(monkeypatch):
    monkeypatch.setattr(readout_and_loss, "AT_ONCE", 2 * B * 5)  # two steps of five numbers in three rows
    row, hs = TABLE["trees"], _numbers(6)
    params = {"policy": jnp.asarray(_numbers(6, 4)[0, 0]), "value": _numbers(6)[0, 1]}
    judged = Judged(row.targets, MASK, WEIGHT)
    judged = judged._replace(n=count(row.loss, judged, (T, B)))

    def formula(params, hs):
        return _written_out(row, MASK, WEIGHT)(_TwoHeads().forward(params, hs)[1], WEIGHT)

    @jax.jit
    def run():
        found = readout_and_loss.loss_and_grad(_TwoHeads(), row.loss, params, hs, judged)
        return tuple(found), jax.value_and_grad(formula, (0, 1))(params, hs)

    (error, *found), (wanted, grads) = run()
    assert not w.wrong((error, found), (wanted, list(grads)), 1e-13)

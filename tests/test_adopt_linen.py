"""Cells and modules of flax.linen give the same numbers and gradients under ours as by themselves.

`python tests/test_adopt_linen.py` prints the largest ratio of norms of every cell.
"""

from __future__ import annotations

import functools

import conftest  # noqa: F401  (x64 and strict numerics, also when this file is run as a script)
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.flax_ways import B, H, I, T, in_all_ways
from support.live import compared, largest, random_like

nn = pytest.importorskip("flax.linen")

from support.linen_cells import CELLS, OURS, Around, random_of  # noqa: E402

from jax_bptt.adapters import flax_linen  # noqa: E402


def _compared(cell):
    def run(rnn):
        return lambda params, carry, xs: in_all_ways(functools.partial(rnn.apply, params), carry, xs)

    return compared(run(nn.RNN(cell)), run(flax_linen.RNN(cell)), *random_of(cell, B))


@pytest.mark.parametrize("name", CELLS)
def test_outputs_and_gradients_are_theirs_in_all_ways(name):
    found = _compared(CELLS[name])
    assert max(found.values()) < 1e-12, found


@pytest.mark.parametrize("rows", [(), (2, B)])
@pytest.mark.parametrize("name", ["LSTMCell", "MGUCell"])
def test_any_number_of_batch_axes(name, rows):
    cell = CELLS[name]

    def run(rnn):
        return lambda p, c, x: {"ys": rnn.apply(p, x, initial_carry=c, reverse=True)}

    found = compared(run(nn.RNN(cell)), run(flax_linen.RNN(cell)), *random_of(cell, *rows))
    assert max(found.values()) < 1e-12, found


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ["GRUCell", "MGUCell"])
def test_padding_affects_nothing_and_length_0_keeps_the_carry(name, reverse):
    rnn = flax_linen.RNN(CELLS[name], return_carry=True, reverse=reverse)
    params, carry, xs = random_of(CELLS[name], 2, B)
    lengths = jnp.array([[T, 0, 3], [1, 2, 0]])
    behind = jnp.arange(T)[None, None] >= lengths[..., None]
    xs = jnp.where(behind[..., None], jnp.nan, xs)

    def total(params, carry, xs):
        last, ys = rnn.apply(params, xs, initial_carry=carry, seq_lengths=lengths)
        return (ys**2).sum() + (last**2).sum(), (last, ys)

    grads, (last, ys) = jax.grad(total, (0, 1, 2), has_aux=True)(params, carry, xs)
    assert (ys[behind] == 0).all()
    assert (grads[2][behind] == 0).all()
    assert (last[lengths == 0] == carry[lengths == 0]).all()
    np.testing.assert_array_equal(grads[1][lengths == 0], 2 * carry[lengths == 0])
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


class InCompact(nn.Module):
    rnn: type

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3)(x)
        return self.rnn(nn.GRUCell(H))(x), self.rnn(Around(nn.GRUCell(H)), name="own_name")(x)


class InSetup(nn.Module):
    rnn: type

    def setup(self):
        cell = nn.GRUCell(H)  # shared
        self.rnns = [self.rnn(nn.LSTMCell(H)), self.rnn(cell), self.rnn(cell, reverse=True)]

    def __call__(self, x):
        return [rnn(x) for rnn in self.rnns]


class Lifted(nn.Module):
    rnn: type

    @nn.compact
    def __call__(self, x):
        many = nn.vmap(self.rnn, variable_axes={"params": 0}, split_rngs={"params": True})
        return nn.remat(self.rnn)(nn.GRUCell(H))(x), many(nn.GRUCell(H))(jnp.stack([x, x + 1]))


class Normed(nn.RNNCellBase):
    """A cell with statistics that it reads."""

    @nn.compact
    def __call__(self, carry, x):
        y = nn.BatchNorm(use_running_average=True)(nn.Dense(H)(jnp.concatenate([carry, x], -1)))
        return jnp.tanh(y), y

    @nn.nowrap
    def initialize_carry(self, key, shape):
        return jnp.zeros((*shape[:-1], H), jnp.float32)

    num_feature_axes = 1


def _partitioned(rnn):
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    return rnn(nn.GRUCell(H, kernel_init=init))


MODELS = {
    "in a compact module": InCompact,
    "in setup, a cell shared": InSetup,
    "under nn.vmap and nn.remat": Lifted,
    "Bidirectional": lambda rnn: nn.Bidirectional(rnn(nn.GRUCell(H)), rnn(nn.LSTMCell(H))),
    "params in boxes": _partitioned,
    "statistics": lambda rnn: rnn(Normed(), variable_broadcast=["params", "batch_stats"]),
    "random carry": lambda rnn: rnn(nn.LSTMCell(H, carry_init=nn.initializers.normal())),
}


@pytest.mark.parametrize("name", MODELS)
def test_names_and_initial_numbers_are_theirs_in_any_module(name):
    """So a checkpoint of theirs is one of ours, and the other way round."""
    xs = random_like(0, jnp.zeros((B, T, I), jnp.float32))
    theirs, ours = (MODELS[name](rnn) for rnn in (nn.RNN, flax_linen.RNN))
    variables = theirs.init(jax.random.key(0), xs)
    jax.tree.map(np.testing.assert_array_equal, variables, ours.init(jax.random.key(0), xs))

    def total(model):
        def f(variables):
            return sum((y**2).sum() for y in jax.tree.leaves(model.apply(variables, xs)))

        return jax.jit(jax.value_and_grad(f))(variables)

    found, wanted = total(ours), total(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), found, wanted)


def test_methods_that_other_code_intercepts():
    def half(call, args, kwargs, context):
        made = call(*args, **kwargs)
        return 0.5 * made if isinstance(context.module, nn.Dense) else made

    params, _, xs = random_of(OURS["GRUCell"], B)
    with nn.intercept_methods(half):
        theirs, ours = (r(OURS["GRUCell"]).apply(params, xs) for r in (nn.RNN, flax_linen.RNN))
    np.testing.assert_allclose(ours, theirs, 1e-12, 1e-12)


if __name__ == "__main__":
    for cell_name, one in CELLS.items():
        ratios = _compared(one)
        kinds = "outputs", "gradients"
        print(f"{cell_name:35}", *(f"{kind} {largest(ratios, kind):.1e}" for kind in kinds))

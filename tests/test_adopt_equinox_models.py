"""equinox.unroll inside models: training, frozen weights, dtypes and devices."""

from __future__ import annotations

import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.live import random_like

eqx: Any = pytest.importorskip("equinox")

from support.equinox_cells import CELLS, KEY, KEYS, XS, H, I, MyGRU, T, by_scan, by_scan_of_gru, floats  # noqa: E402

import jax_bptt as jb  # noqa: E402
from jax_bptt.adapters import equinox as ours  # noqa: E402


class Model(eqx.Module):
    """A model whose middle is a cell."""

    cell: eqx.nn.LSTMCell
    dropout: eqx.nn.Dropout
    out: eqx.nn.Linear

    def __init__(self, key, dtype=None):
        keys = jax.random.split(key)
        self.cell = eqx.nn.LSTMCell(I, H, dtype=dtype, key=keys[0])
        self.dropout = eqx.nn.Dropout(0.3)
        self.out = eqx.nn.Linear(H, 1, dtype=dtype, key=keys[1])

    def __call__(self, xs, key, unroll):
        _, hs = unroll(self.cell, xs)
        return jax.vmap(self.out)(self.dropout(hs, key=key))


def loss_of(model, xs, keys, unroll):
    return (jax.vmap(lambda x, key: model(x, key, unroll), (1, 0))(xs, keys) ** 2).mean()


def test_a_model_under_vmap_trains_as_with_a_scan_and_is_saved_and_loaded():
    losses = {}
    for unroll in (by_scan, ours.unroll):
        traces = []
        model, optimizer = Model(KEY), optax.sgd(0.1, momentum=0.9)
        state = optimizer.init(floats(model))

        @eqx.filter_jit
        def step(model, state, unroll=unroll, optimizer=optimizer, traces=traces):
            traces.append(1)
            loss, gradient = eqx.filter_value_and_grad(loss_of)(model, XS, KEYS, unroll)
            updates, state = optimizer.update(gradient, state, model)
            return eqx.apply_updates(model, updates), state, loss

        found = losses[unroll] = []
        for _ in range(5):
            model, state, loss = step(model, state)
            found.append(loss)
        assert len(traces) == 1
    np.testing.assert_allclose(losses[ours.unroll], losses[by_scan], 1e-12)
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, model)
    file.seek(0)
    loaded = eqx.tree_deserialise_leaves(file, Model(jax.random.key(1)))
    assert eqx.tree_equal(loaded, model)
    jax.tree.map(np.testing.assert_array_equal, ours.unroll(loaded.cell, XS), ours.unroll(model.cell, XS))


def test_frozen_weights():
    model = Model(KEY)
    spec = jax.tree.map(lambda _: False, model)
    spec = eqx.tree_at(lambda m: (m.cell.weight_hh, m.out.weight), spec, (True, True))

    def gradient(unroll):
        free, frozen = eqx.partition(model, spec)
        return eqx.filter_grad(lambda m: loss_of(eqx.combine(m, frozen), XS, KEYS, unroll))(free)

    wanted, found = gradient(by_scan), gradient(ours.unroll)
    assert len(jax.tree.leaves(found)) == 2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-11, 1e-13), found, wanted)
    _, params = jb.adopt(model.cell, eqx.filter(model.cell, spec.cell))  # the others are those of the cell
    np.testing.assert_array_equal(params.b, model.cell.bias)


@jax.numpy_dtype_promotion("standard")
def test_dtypes_are_promoted_as_in_the_cell():
    for dtype in (jnp.bfloat16, jnp.float32, jnp.float64):
        for cell in (eqx.nn.GRUCell(I, H, dtype=dtype, key=KEY), MyGRU(I, H, dtype=dtype, key=KEY)):
            for of_xs in (jnp.bfloat16, jnp.float32):
                xs = XS.astype(of_xs)
                wide = jnp.promote_types(dtype, of_xs)
                wanted = by_scan_of_gru(cell, xs[:, 0], jnp.zeros(H, wide))
                found = ours.unroll(cell, xs[:, 0])
                assert found[1].dtype == found[0].dtype == wide
                gap = 0.03 if jnp.bfloat16 in (dtype, of_xs) else 1e-5
                np.testing.assert_allclose(found[1].astype(float), wanted[1].astype(float), gap, gap)
                grads = eqx.filter_grad(lambda c, xs=xs: ours.unroll(c, xs)[1].astype(float).sum())(cell)
                assert grads.weight_ih.dtype == dtype
    whole = jnp.ones((T, I), jnp.int32)
    cell = CELLS["GRUCell"]
    np.testing.assert_allclose(ours.unroll(cell, whole)[1], ours.unroll(cell, whole.astype(float))[1], 1e-12)


@pytest.mark.parametrize("kind", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_sharded_rows_and_weights(kind):
    mesh = jax.make_mesh((4,), ("i",), axis_types=(kind,))
    cell = eqx.nn.LSTMCell(I, 8, key=KEY)
    xs = random_like(2, jnp.zeros((T, 8, I)))
    value = eqx.filter_jit(eqx.filter_value_and_grad(lambda c, xs: (ours.unroll(c, xs)[1] ** 2).sum()))
    wanted = value(cell, xs)
    with jax.set_mesh(mesh):
        rows = jax.device_put(xs, jax.NamedSharding(mesh, jax.P(None, "i")))
        everywhere = jax.device_put(cell, jax.NamedSharding(mesh, jax.P()))
        found = [value(everywhere, rows)]
        if kind == jax.sharding.AxisType.Auto:
            spread = jax.tree.map(lambda w: jax.device_put(w, jax.NamedSharding(mesh, jax.P("i"))), cell)
            found.append(value(spread, rows))
    for one in found:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-12, 1e-13), one, wanted)


def test_an_ensemble_of_cells():
    cells = eqx.filter_vmap(lambda key: eqx.nn.GRUCell(I, H, key=key))(jax.random.split(KEY, 3))
    _, ys = eqx.filter_vmap(lambda cell, xs: ours.unroll(cell, xs), in_axes=(eqx.if_array(0), None))(
        cells, XS
    )
    one = jax.tree.map(lambda w: w[1], cells)
    np.testing.assert_allclose(ys[1], ours.unroll(one, XS)[1], 1e-12)

"""equinox.unroll gives the outputs and gradients of a jax.lax.scan over the cell, for every cell of Equinox.

`python tests/test_adopt_equinox.py` prints the largest ratio of norms of every row.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any

import conftest  # noqa: F401  (x64 and strict numerics, also when this file is run as a script)
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.live import compared, largest, random_like

eqx: Any = pytest.importorskip("equinox")

import jax_bptt as jb  # noqa: E402
from jax_bptt.adapters import equinox as ours  # noqa: E402

T, B, I, H = 6, 3, 2, 4  # noqa: E741
KEY = jax.random.key(0)


class MyGRU(eqx.nn.GRUCell):
    """A subclass with another equation."""

    def __call__(self, input, hidden, *, key=None):
        return 0.5 * super().__call__(input, hidden) + 0.5 * hidden


class MyLSTM(eqx.nn.LSTMCell):
    """A subclass with another name only."""


class Own(eqx.Module):
    """A cell with parts, a function, a dict as its hidden state, and a counter in it."""

    inner: eqx.nn.GRUCell
    norm: eqx.nn.LayerNorm
    scale: jax.Array
    activation: Callable[[jax.Array], jax.Array]
    input_size: int = eqx.field(static=True, default=I)

    def __call__(self, x, hidden):
        h = self.inner(self.activation(self.scale * x), self.norm(hidden["a"]))
        return {"a": h, "count": hidden["count"] + 1, "z": 0.5 * hidden["z"] + h.sum()}


CELLS = {
    "GRUCell": eqx.nn.GRUCell(I, H, key=KEY),
    "GRUCell no bias": eqx.nn.GRUCell(I, H, use_bias=False, key=KEY),
    "LSTMCell": eqx.nn.LSTMCell(I, H, key=KEY),
    "LSTMCell no bias": eqx.nn.LSTMCell(I, H, use_bias=False, key=KEY),
    "subclass of GRUCell": MyGRU(I, H, key=KEY),
    "subclass of LSTMCell": MyLSTM(I, H, key=KEY),
    "own module": Own(eqx.nn.GRUCell(I, H, key=KEY), eqx.nn.LayerNorm(H), jnp.ones(()), jnp.tanh),
}
OURS = [name for name in CELLS if "Cell" in name and "subclass" not in name]
draw = np.random.default_rng(7)
MASK = jb.mask_of_lengths(jnp.array([T, 0, 3]), T)
HOLES, RESET = jnp.asarray(draw.random((T, B)) < 0.6), jnp.asarray(draw.random((T, B)) < 0.4)
MARKS = {
    "": {},
    "mask": {"mask": MASK},
    "reverse": {"reverse": True},
    "reset": {"reset": RESET},
    "all": {"mask": HOLES, "reset": RESET, "reverse": True},
}


def hidden_of(cell: Any) -> Any:
    h = random_like(3, jnp.zeros((B, H)))
    if isinstance(cell, Own):
        return {"a": h, "count": jnp.zeros(B, int), "z": h[:, 0]}
    return (h, random_like(4, h)) if isinstance(cell, eqx.nn.LSTMCell) else h


def where_at(t, mark, chosen, other):
    return jax.tree.map(lambda a, b: jnp.where(mark[t].reshape(B, *(1,) * (a.ndim - 1)), a, b), chosen, other)


def by_loop(cell, xs, hidden, mask=None, reset=None, reverse=False):
    """A loop of Python over the steps, with jax.vmap over the rows."""
    outputs = []
    for t in range(T)[:: -1 if reverse else 1]:
        wide = functools.partial(where_at, t)
        if reset is not None:
            hidden = wide(reset, jax.tree.map(jnp.zeros_like, hidden), hidden)
        x = xs[t] if mask is None else wide(mask, xs[t], jnp.ones_like(xs[t]))
        new = jax.vmap(cell)(x, hidden)
        y = jax.tree.leaves(new)[0]
        if mask is not None:
            y, new = wide(mask, (y, new), (jnp.zeros_like(y), hidden))
        hidden = new
        outputs.append(y)
    return hidden, jnp.stack(outputs[:: -1 if reverse else 1])


def floats(tree: Any) -> Any:
    return eqx.filter(tree, eqx.is_inexact_array)


def function_of(cell: Any, unroll: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """(weights, xs, hidden) -> what unroll returns, where weights replace those of the cell."""
    start = hidden_of(cell)

    def call(weights, xs, hidden):
        whole = eqx.combine(weights, cell)
        return floats(unroll(whole, xs, eqx.combine(hidden, start), **options))

    return call


def primals(cell: Any) -> tuple[Any, Any, Any]:
    weights = random_like(5, floats(cell))
    return weights, random_like(6, jnp.zeros((T, B, I))), floats(hidden_of(cell))


def ratios_of(cell: Any, gradient: Any = jb.full(), **options: Any) -> dict[str, float]:
    mine = function_of(cell, ours.unroll, gradient=gradient, **options)
    return compared(function_of(cell, by_loop, **options), mine, *primals(cell))


@pytest.mark.parametrize("marks", MARKS)
@pytest.mark.parametrize("name", CELLS)
def test_a_cell_is_unrolled_as_by_a_loop(name, marks):
    found = ratios_of(CELLS[name], **MARKS[marks])
    assert max(found.values()) < 1e-12, found


def test_our_cells_run_the_cells_that_are_ours(monkeypatch):
    scans = []
    monkeypatch.setattr(ours, "scan", lambda *args, **kwargs: scans.append(1) or jb.scan(*args, **kwargs))
    for name, cell in CELLS.items():
        function_of(cell, ours.unroll)(*primals(cell))
        assert bool(scans) != (name in OURS)
        scans.clear()


@pytest.mark.parametrize("name", [*OURS, "subclass of GRUCell", "subclass of LSTMCell", "own module"])
def test_an_adopted_cell_is_differentiable_by_the_weights_of_equinox(name):
    def unroll(cell, xs, hidden):
        adopted, params = jb.adopt(cell)
        carry = adopted.initial_carry(params, (B,))
        again, _ = jb.adopt(cell, eqx.filter(cell, eqx.is_inexact_array))
        assert again is adopted
        if isinstance(adopted, jb.StepCell):
            last, hs = jb.unroll(adopted, params, carry._replace(state=hidden), xs)
            return last.state, hs
        carry = jb.LSTMCarry(*hidden) if len(carry) == 2 else jb.Carry(hidden)
        last, hs = jb.unroll(adopted, params, carry, xs)
        return tuple(last) if len(last) == 2 else last.h, hs

    cell = CELLS[name]
    if isinstance(cell, Own):
        with pytest.raises(ValueError, match="cell has no attribute hidden_size"):
            unroll(cell, None, None)
        return
    found = compared(function_of(cell, by_loop), function_of(cell, unroll), *primals(cell))
    assert max(found.values()) < 1e-12, found


def test_biases_that_the_cell_does_not_use_are_not_read():
    cell = eqx.tree_at(
        lambda c: c.bias, CELLS["LSTMCell no bias"], jnp.ones(4 * H), is_leaf=lambda x: x is None
    )
    assert max(ratios_of(cell).values(), default=0) < np.inf
    xs = primals(cell)[1]
    np.testing.assert_allclose(ours.unroll(cell, xs)[1], ours.unroll(CELLS["LSTMCell no bias"], xs)[1], 1e-12)


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


def by_scan(cell, xs):
    zeros = jnp.zeros(cell.hidden_size, xs.dtype)

    def step(hidden, x):
        hidden = cell(x, hidden)
        return hidden, hidden[0]

    return jax.lax.scan(step, (zeros, zeros), xs)


def loss_of(model, xs, keys, unroll):
    return (jax.vmap(lambda x, key: model(x, key, unroll), (1, 0))(xs, keys) ** 2).mean()


XS, KEYS = random_like(6, jnp.zeros((T, B, I))), jax.random.split(KEY, B)


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


@pytest.mark.parametrize("name", ["GRUCell", "LSTMCell", "subclass of GRUCell"])
def test_every_gradient_method(name):
    for gradient in (jb.checkpointed(), jb.rtrl(), jb.parallel(), jb.autodiff()):
        assert max(ratios_of(CELLS[name], gradient, reset=RESET).values()) < 1e-12, gradient
    call = function_of(CELLS[name], ours.unroll, gradient=jb.truncated(1))
    weights, xs, hidden = primals(CELLS[name])
    assert not any(
        z.any() for z in jax.tree.leaves(jax.grad(lambda h: call(weights, xs, h)[1][-1].sum())(hidden))
    )


@pytest.mark.parametrize("name", ["GRUCell", "LSTMCell", "subclass of LSTMCell", "own module"])
def test_padding_is_not_read(name):
    cell = CELLS[name]
    weights, xs, hidden = primals(cell)
    call = function_of(cell, ours.unroll, mask=MASK)
    nan = jnp.where(MASK[..., None], xs, jnp.full_like(xs, jnp.nan))
    (wanted, pullback), (found, towards) = (jax.vjp(call, weights, x, hidden) for x in (xs, nan))
    d = random_like(1, wanted)
    jax.tree.map(np.testing.assert_array_equal, (found, towards(d)), (wanted, pullback(d)))
    last, outputs = found
    assert not outputs[:, 1].any()  # the row of length 0
    first = jax.tree.map(lambda z: z[1], (last, hidden))
    jax.tree.map(np.testing.assert_array_equal, *first)


def test_no_step_no_batch_and_many_batch_axes():
    for name in ("LSTMCell", "subclass of LSTMCell"):
        cell = CELLS[name]
        xs = random_like(2, jnp.zeros((T, 2, 2, I)))
        (h, c), ys = ours.unroll(cell, xs)
        (_, _), row = by_scan(cell, xs[:, 1, 0])
        np.testing.assert_allclose(ys[:, 1, 0], row, 1e-12)
        assert h.shape == c.shape == (2, 2, H)
        np.testing.assert_allclose(ours.unroll(cell, xs[:, 1, 0])[1], row, 1e-12)
        (h, _), ys = ours.unroll(cell, xs[:0])
        assert ys.shape == (0, 2, 2, H)
        assert not h.any()


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


def by_scan_of_gru(cell, xs, hidden):
    def step(hidden, x):
        hidden = cell(x, hidden)
        return hidden, hidden

    return jax.lax.scan(step, hidden, xs)


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


class Permuted(eqx.Module):
    """A cell with an array of integers."""

    weight: jax.Array
    order: jax.Array
    input_size: int = eqx.field(static=True, default=H)
    hidden_size: int = eqx.field(static=True, default=H)

    def __call__(self, x, hidden):
        return jnp.tanh(self.weight @ x + hidden[self.order])


PERMUTED = Permuted(jnp.eye(H), jnp.arange(H)[::-1])


def test_a_cell_with_an_array_of_integers():
    xs = random_like(2, jnp.zeros((T, H)))
    wanted = by_scan_of_gru(PERMUTED, xs, jnp.zeros(H))[1]
    for found in (
        ours.unroll(PERMUTED, xs),
        eqx.filter_jit(ours.unroll)(PERMUTED, xs),
        jb.unroll(*jb.adopt(PERMUTED), None, xs),
    ):
        np.testing.assert_allclose(found[1], wanted, 1e-12)


REFUSED = {
    "equinox.unroll: xs: expected an array": lambda c: ours.unroll(c, {"a": XS}),
    "equinox.unroll: xs: expected an array .T, ..., I., got float64.6.": lambda c: ours.unroll(
        c, XS[:, 0, 0]
    ),
    "equinox.unroll: hidden: expected arrays .3,....* got float64.4.; jnp.broadcast_to": lambda c: (
        ours.unroll(c, XS, jnp.zeros(H))
    ),
    "equinox.unroll: hidden: expected shape .3,4., got float64.3,5.": lambda c: ours.unroll(
        c, XS, jnp.zeros((B, 5))
    ),
    "equinox.unroll: hidden: expected .*, got tuple of": lambda c: ours.unroll(
        c, XS, (jnp.zeros((B, H)),) * 2
    ),
    "equinox.unroll: hidden: expected a hidden state": lambda c: ours.unroll(CELLS["own module"], XS),
    "equinox.unroll: mask: expected bool.6,3.": lambda c: ours.unroll(c, XS, mask=jnp.ones(T, bool)),
    "equinox.unroll: reset: expected bool.6,3.": lambda c: ours.unroll(c, XS, reset=jnp.ones((T, B))),
    "equinox.unroll: reverse: expected True or False": lambda c: ours.unroll(c, XS, reverse=1),
    "equinox.unroll: gradient: expected a gradient method": lambda c: ours.unroll(c, XS, gradient="full"),
    "equinox.unroll: xs: expected .*2.*got float64.6,3,3.": lambda c: ours.unroll(c, jnp.zeros((T, B, 3))),
    "raised by cell.*; a cell that is not called": lambda c: ours.unroll(
        CELLS["subclass of GRUCell"], jnp.zeros((T, 9))
    ),
    "adopt: params: expected the arrays of the cell": lambda c: jb.adopt(c, {"weight": jnp.ones(3)}),
    "adopt: cell: expected a cell whose integers": lambda c: eqx.filter_jit(lambda c: jb.adopt(c)[1])(
        PERMUTED
    ),
    "adopt: input_size: expected a size": lambda c: jb.adopt(eqx.nn.Linear(H, H, key=KEY)),
    "adopt: cell: expected a cell with weights": lambda c: jb.adopt(eqx.nn.Identity(), input_size=I),
    "adopt: cell: expected a cell whose step takes one row.*jb.scan": lambda c: jb.adopt(
        eqx.nn.Linear(H, H, key=KEY), input_size=I
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused(message):
    with pytest.raises(ValueError, match=message) as error:
        REFUSED[message](CELLS["GRUCell"])
    print(error.value)


def main() -> None:
    for name, cell in CELLS.items():
        found = [ratios_of(cell, **marks) for marks in MARKS.values()]
        worst = {kind: max(largest(f, kind) for f in found) for kind in ("outputs", "gradients")}
        print(f"{name:24} outputs {worst['outputs']:.1e}   gradients {worst['gradients']:.1e}")


if __name__ == "__main__":
    main()

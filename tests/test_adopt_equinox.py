"""equinox.unroll gives the outputs and gradients of a jax.lax.scan over the cell, for every cell of Equinox.

`python tests/test_adopt_equinox.py` prints the largest ratio of norms of every row.
"""

from __future__ import annotations

from typing import Any

import conftest  # noqa: F401  (x64 and strict numerics, also when this file is run as a script)
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.live import compared, largest, random_like

eqx: Any = pytest.importorskip("equinox")

from support.equinox_cells import (  # noqa: E402
    CELLS,
    KEY,
    MARKS,
    MASK,
    OURS,
    PERMUTED,
    RESET,
    XS,
    B,
    H,
    I,
    Own,
    T,
    by_loop,
    by_scan,
    by_scan_of_gru,
    function_of,
    primals,
)

import jax_bptt as jb  # noqa: E402
from jax_bptt.adapters import equinox as ours  # noqa: E402


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
    "adopt: cell: expected a cell with weights, got Identity": lambda c: jb.adopt(
        eqx.nn.Identity(), input_size=I
    ),
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

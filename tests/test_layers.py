"""Layers, directions, residuals and the last-step readout agree with a loop over time in plain JAX."""

import jax
import pytest
import support.witnesses as w
from cases import H, I
from support.network_by_loop import ROWS, O, assert_agreement, problem, some_marks

import jax_bptt as jb


def _second(name):
    """The cell of a second layer: the same kind, reading H features."""
    made = {
        "gru": lambda: jb.gru(H, H),
        "gru-reset-before": lambda: jb.gru(H, H, reset_after=False),
        "indrnn": lambda: jb.indrnn(H, H, activation="tanh"),
        "lstm-learned-carry": lambda: jb.learn_carry(jb.lstm(H, H)),
    }
    return made[name]()


SHAPES = {
    "one layer": lambda cell, second: [cell],
    "two layers": lambda cell, second: [cell, second],
    "both ways": lambda cell, second: [jb.layer(cell, backward=cell)],
    "two layers, the second both ways": lambda cell, second: [cell, jb.layer(second, backward=second)],
}


@pytest.mark.parametrize("name", ["lstm-learned-carry", "gru-reset-before", "indrnn"])
def test_other_cells_in_layers_and_directions(name):
    cells = SHAPES["two layers, the second both ways"](ROWS[name].cell, _second(name))
    assert_agreement(jb.network(cells, jb.readout(2 * H, O)), [ROWS[name].plain] * len(cells), some_marks())


@pytest.mark.parametrize(
    ("shape", "marked"), [*((shape, True) for shape in SHAPES), ("two layers, the second both ways", False)]
)
def test_layers_and_directions(shape, marked):
    cells = SHAPES[shape](ROWS["gru"].cell, _second("gru"))
    net = jb.network(cells, jb.readout(2 * H if "both ways" in shape else H, O))
    assert_agreement(net, [ROWS["gru"].plain] * len(cells), some_marks() if marked else {})


@pytest.mark.parametrize("name", ["own-pointwise", "own-layer-norm"])
def test_cells_of_ones_own_in_a_layer(name):
    cell = ROWS[name].cell
    net = jb.network([jb.layer(cell, backward=cell)], jb.readout(2 * H, O))
    assert_agreement(net, [ROWS[name].plain], some_marks())


@pytest.mark.parametrize("marked", [False, True], ids=["plain", "marked"])
@pytest.mark.parametrize("both_ways", [False, True], ids=["forward", "both ways"])
def test_readout_at_the_last_valid_step_with_a_residual(both_ways, marked):
    wide = jb.gru(H, H // 2) if both_ways else jb.gru(H, H)
    top = jb.layer(wide, backward=wide if both_ways else None, residual=True)
    net = jb.network([jb.lstm(I, H), top], jb.last(jb.readout(H, O)))
    assert_agreement(net, [ROWS["lstm"].plain, ROWS["gru"].plain], some_marks() if marked else {})


@pytest.mark.parametrize("last", [False, True], ids=["every step", "the last step"])
def test_directions_that_are_added(last):
    """With residuals, and an end of its own for each direction where the last step is read."""
    cells = [
        jb.layer(ROWS["gru"].cell, backward=ROWS["gru"].cell, merge="mean" if last else "sum"),
        jb.layer(_second("gru"), backward=_second("gru"), merge="sum" if last else "mean", residual=True),
    ]
    readout = jb.readout(H, O)
    net = jb.network(cells, jb.last(readout) if last else readout)
    assert_agreement(net, [ROWS["gru"].plain] * 2, some_marks())


def test_two_batch_axes_and_none_under_a_mask():
    net = jb.network([jb.layer(jb.lstm(I, H), backward=jb.lstm(I, H))], jb.last(jb.readout(2 * H, O)))
    params, carry, xs, _ = problem(net, {})
    mask = some_marks()["mask"]
    apply = jax.jit(net.apply)
    _, ys = apply(params, carry, xs, mask=mask)
    _, wide = apply(params, jax.tree.map(lambda z: z[None], carry), xs[:, None], mask=mask[:, None])
    assert not w.wrong({"ys": wide[0]}, {"ys": ys}, 1e-13)
    row = jax.tree.map(lambda z: z[0], carry)
    _, single = apply(params, row, xs[:, 0], mask=mask[:, 0])
    assert not w.wrong({"ys": single}, {"ys": ys[0]}, 1e-13)

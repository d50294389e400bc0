"""Layers, directions, dropout, residuals, readout at the last step: against a loop over time in plain JAX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support.witnesses as w
from cases import CELLS, METHODS, H, I
from support.optimizers import SGD

import jax_bptt as jb

T, B, O = 6, 3, 2  # noqa: E741
ROWS = {name: row for name, row in CELLS.items() if row.cell.hidden_size == H}


def _second(name):
    """The cell of a second layer: the same kind, reading H features."""
    made = {
        "lstm": lambda: jb.lstm(H, H),
        "lstm-peephole": lambda: jb.lstm(H, H, peephole=True),
        "gru": lambda: jb.gru(H, H),
        "gru-reset-before": lambda: jb.gru(H, H, reset_after=False),
        "leaky": lambda: jb.leaky(H, H, rate=0.4),
        "mgu": lambda: jb.mgu(H, H),
        "indrnn": lambda: jb.indrnn(H, H, "tanh"),
        "elman-tanh": lambda: jb.elman(H, H),
        "elman-relu": lambda: jb.elman(H, H, "relu"),
        "lstm-learned-carry": lambda: jb.learn_carry(jb.lstm(H, H)),
    }
    return made[name]() if name in made else None


def _scan(plain, p, state, xs, marks, backwards):
    """One direction as a scan over time; marks as the tests understand them."""
    p = p if isinstance(p, dict) else p._asdict()
    start = {n: jnp.broadcast_to(p[f"{n}_0"], s.shape) if f"{n}_0" in p else 0 * s for n, s in state.items()}
    here = {"reset": jnp.zeros(xs.shape[:-1], bool), "mask": jnp.ones(xs.shape[:-1], bool), **marks}
    if backwards:  # a reset stands between t − 1 and t, from either side
        here["reset"] = jnp.concatenate([here["reset"][1:], jnp.zeros_like(here["reset"][:1])])

    def step(state, at_t):
        x, mark = at_t
        state = {n: jnp.where(mark["reset"][..., None], start[n], s) for n, s in state.items()}
        stepped = plain(jnp, p, state, x)
        state = {n: jnp.where(mark["mask"][..., None], s, state[n]) for n, s in stepped.items()}
        return state, state["h"]

    return jax.lax.scan(step, state, (xs, here), reverse=backwards)


def _ends(hs, forward, mask):
    """h of each row where each direction ends, row by row in Python."""
    rows = []
    for b in range(hs.shape[1]):
        valid = [t for t in range(len(hs)) if mask is None or mask[t, b]]
        end, begin = (valid[-1], valid[0]) if valid else (len(hs) - 1, 0)
        rows.append(jnp.concatenate([hs[end, b, :forward], hs[begin, b, forward:]]))
    return jnp.stack(rows)


def _by_loop(net, plains, params, carry, xs, marks):
    """Features of the last layer and the last states, from `plains`, one step function per cell."""
    if "mask" in marks:
        xs = jnp.where(marks["mask"][..., None], xs, 0.0)
    last = []
    for layer, plain, p, s in zip(net.layers, plains, params.cells, carry, strict=True):
        if layer.backward is None:
            end, hs = _scan(plain, p, s._asdict(), xs, marks, False)
            last.append(type(s)(**end))
        else:
            end, hs = _scan(plain, p.forward, s.forward._asdict(), xs, marks, False)
            end_left, hs_left = _scan(plain, p.backward, s.backward._asdict(), xs, marks, True)
            last.append(jb.Directions(type(s.forward)(**end), type(s.backward)(**end_left)))
            hs = jnp.concatenate([hs, hs_left], -1)
        xs = hs + xs if layer.residual else hs
    if net.readout.of_last:
        xs = _ends(xs, net.layers[-1].forward.hidden_size, marks.get("mask"))
    z = xs @ params.readout.w_y
    return tuple(last), z + jnp.broadcast_to(params.readout.b_y, z.shape)


def _marks():
    pattern = np.arange(T * B).reshape(T, B)
    mask = np.array(pattern % 5 != 3)
    mask[:, 1] = False  # a row of length zero
    return {"mask": mask, "reset": pattern % 7 == 2}


def _problem(net, marks):
    keys = iter(jax.random.split(jax.random.key(5), 99))

    def noise(z):
        return 0.6 * jax.random.normal(next(keys), z.shape)

    params = jax.tree.map(lambda z: z + noise(z) / max(1, z.ndim), net.init(next(keys)))
    carry = jax.tree.map(noise, net.initial_carry(params, (B,)))
    xs = jax.random.normal(next(keys), (T, B, I))
    if "mask" in marks:
        xs = jnp.where(marks["mask"][..., None], xs, jnp.nan)
    rows = (B,) if net.readout.of_last else (T, B)
    return params, carry, xs, jax.random.normal(next(keys), (*rows, O))


def _assert_agreement(net, plains, marks):
    """value_and_grad, by hand, against jax.grad of the loop."""
    params, carry, xs, targets = _problem(net, marks)
    counts = marks.get("mask")
    if counts is not None and net.readout.of_last:
        counts = counts.any(axis=0)

    def by_loop(params):
        last, ys = _by_loop(net, plains, params, carry, xs, marks)
        squares = (ys - targets) ** 2
        return jnp.sum(squares if counts is None else jnp.where(counts[..., None], squares, 0.0)), last

    def all_of_them(params):
        found = {"plain": jax.value_and_grad(by_loop, has_aux=True)(params)}
        found["full"] = jb.value_and_grad(net, jb.squared_error)(params, carry, xs, targets, **marks)
        return found

    found = jax.jit(all_of_them)(params)
    wanted = found.pop("plain")
    for name, one in found.items():
        assert not w.wrong(one, wanted, 1e-12), name


SHAPES = {
    "one layer": lambda cell, second: [cell],
    "two layers": lambda cell, second: [cell, second],
    "both ways": lambda cell, second: [jb.layer(cell, backward=cell)],
    "two layers, the second both ways": lambda cell, second: [cell, jb.layer(second, backward=second)],
}


@pytest.mark.parametrize("name", [name for name in ROWS if _second(name) is not None])
def test_every_cell_in_layers_and_directions(name):
    cells = SHAPES["two layers, the second both ways"](ROWS[name].cell, _second(name))
    _assert_agreement(jb.network(cells, jb.readout(2 * H, O)), [ROWS[name].plain] * len(cells), _marks())


@pytest.mark.parametrize("marked", [False, True], ids=["plain", "marked"])
@pytest.mark.parametrize("shape", SHAPES)
def test_layers_and_directions(shape, marked):
    cells = SHAPES[shape](ROWS["gru"].cell, _second("gru"))
    net = jb.network(cells, jb.readout(2 * H if "both ways" in shape else H, O))
    _assert_agreement(net, [ROWS["gru"].plain] * len(cells), _marks() if marked else {})


@pytest.mark.parametrize("name", ["own-pointwise", "own-layer-norm"])
def test_cells_of_ones_own_in_a_layer(name):
    cell = ROWS[name].cell
    net = jb.network([jb.layer(cell, backward=cell)], jb.readout(2 * H, O))
    _assert_agreement(net, [ROWS[name].plain], _marks())


@pytest.mark.parametrize("marked", [False, True], ids=["plain", "marked"])
@pytest.mark.parametrize("both_ways", [False, True], ids=["forward", "both ways"])
def test_readout_at_the_last_valid_step_with_a_residual(both_ways, marked):
    wide = jb.gru(H, H // 2) if both_ways else jb.gru(H, H)
    top = jb.layer(wide, backward=wide if both_ways else None, residual=True)
    net = jb.network([jb.lstm(I, H), top], jb.last(jb.readout(H, O)))
    _assert_agreement(net, [ROWS["lstm"].plain, ROWS["gru"].plain], _marks() if marked else {})


def test_two_batch_axes_and_none_under_a_mask():
    net = jb.network([jb.layer(jb.lstm(I, H), backward=jb.lstm(I, H))], jb.last(jb.readout(2 * H, O)))
    params, carry, xs, _ = _problem(net, {})
    mask = _marks()["mask"]
    apply = jax.jit(net.apply)
    _, ys = apply(params, carry, xs, mask=mask)
    _, wide = apply(params, jax.tree.map(lambda z: z[None], carry), xs[:, None], mask=mask[:, None])
    assert not w.wrong({"ys": wide[0]}, {"ys": ys}, 1e-13)
    row = jax.tree.map(lambda z: z[0], carry)
    _, single = apply(params, row, xs[:, 0], mask=mask[:, 0])
    assert not w.wrong({"ys": single}, {"ys": ys[0]}, 1e-13)


def _dropout_net(share):
    cells = [jb.layer(jb.elman(I, H), dropout=share), jb.layer(jb.elman(H, H), residual=True, dropout=share)]
    return jb.network(cells, jb.readout(H, O))


def test_padded_outputs_of_a_row_depend_on_no_other_row():
    """Not through the residual either, which adds nothing where the mask is False."""
    net = jb.network([jb.gru(I, H), jb.layer(jb.gru(H, H), residual=True)], jb.readout(H, O))
    params, carry, xs, _ = _problem(net, {})
    mask, apply = _marks()["mask"], jax.jit(net.apply)
    _, ys = apply(params, carry, xs, mask=mask)
    _, other = apply(params, carry, xs.at[:, 0].add(1.0), mask=mask)
    assert (ys[:, 1:] == other[:, 1:]).all()
    assert not (ys[:, 0] == other[:, 0]).all()


def test_dropout_draws_once_for_the_forward_and_the_backward_pass():
    """The gradient under a key is that of the same masks written out, one draw a step, row and layer."""
    net, key = _dropout_net(0.4), jax.random.key(9)
    params, carry, xs, targets = _problem(net, {})

    def by_loop(params):
        x = xs
        for number, (p, s) in enumerate(zip(params.cells, carry, strict=True)):
            _, hs = _scan(ROWS["elman-tanh"].plain, p, s._asdict(), x, {}, False)
            keys = [jax.random.fold_in(k, number) for k in jax.random.split(key, hs.shape[:-1]).reshape(-1)]
            kept = jnp.stack([jax.random.bernoulli(k, 0.6, hs.shape[-1:]) for k in keys])
            hs = hs * kept.reshape(hs.shape).astype(hs.dtype) / 0.6
            x = hs + x if number else hs
        z = x @ params.readout.w_y
        return jnp.sum((z + jnp.broadcast_to(params.readout.b_y, z.shape) - targets) ** 2)

    for method in METHODS.values():
        run = jax.jit(functools.partial(jb.value_and_grad(net, jb.squared_error), gradient=method))
        (error, _), grads = run(params, carry, xs, targets, key=key)
        wanted = jax.jit(jax.value_and_grad(by_loop))(params)
        assert not w.wrong((error, grads), wanted, 1e-12)


def test_dropout_is_off_without_a_key_and_another_with_another_key():
    net, params = _dropout_net(0.4), _problem(_dropout_net(0.4), {})[0]
    xs = jnp.ones((T, B, I))
    ys = [net.apply(params, None, xs, key=key)[1] for key in (None, jax.random.key(0), jax.random.key(1))]
    plain = jb.network([jb.elman(I, H), jb.layer(jb.elman(H, H), residual=True)], jb.readout(H, O))
    assert (ys[0] == plain.apply(params, None, xs)[1]).all()
    assert not np.allclose(ys[1], ys[2])


def test_dropout_keeps_the_mean():
    layer = jb.layer(jb.elman(I, H, "identity"), dropout=0.3)
    net = jb.network([layer], jb.readout(H, O))
    params, xs = net.init(jax.random.key(0)), jnp.ones((1, B, I))
    keys = jax.random.split(jax.random.key(1), 4000)
    draws = jax.vmap(lambda key: net.apply(params, None, xs, key=key)[1])(keys)
    assert np.abs(draws.mean(0) - net.apply(params, None, xs)[1]).max() < 0.05


def test_a_missing_carry_trains_the_initial_one():
    net = jb.network([jb.learn_carry(jb.lstm(I, H)), jb.learn_carry(jb.gru(H, H))], jb.readout(H, O))
    params, _, xs, targets = _problem(net, {})

    def loss(params):
        carry = net.initial_carry(params, (B,))
        return jb.squared_error(net.apply(params, carry, xs, gradient=jb.autodiff())[1], targets)

    wanted = jax.jit(jax.grad(loss))(params)
    run = jax.jit(jb.value_and_grad(net, jb.squared_error))
    assert not w.wrong(run(params, None, xs, targets)[1], wanted, 1e-12)
    begun = jnp.zeros((T, B), bool).at[0].set(True)
    (_, _), by_reset = run(params, net.initial_carry(params, (B,)), xs, targets, reset=begun)
    assert not w.wrong(by_reset, wanted, 1e-12)
    ended = run(params, net.initial_carry(params, (B,)), xs, targets)[1]
    assert not ended.cells[0].h_0.any()  # a carry that came in is a number


def test_a_cut_is_a_chunk_boundary_of_its_row():
    """Row 0 cut at t = 2, row 1 at t = 4: each row's gradient is that of its own two chunks."""
    net = jb.network([jb.gru(I, H), jb.lstm(H, H)], jb.readout(H, O))
    params, carry, xs, targets = _problem(net, {})
    run, at = jax.jit(jb.value_and_grad(net, jb.squared_error)), (2, 4, 3)
    cut = jnp.zeros((T, B), bool).at[jnp.array(at), jnp.arange(B)].set(True)
    found = run(params, carry, xs, targets, cut=cut)[1]
    total = jax.tree.map(jnp.zeros_like, params)
    for b, t in enumerate(at):
        s = jax.tree.map(lambda z, b=b: z[b], carry)
        for chunk in (slice(0, t), slice(t, T)):
            (_, s), grads = run(params, s, xs[chunk, b], targets[chunk, b])
            total = jax.tree.map(jnp.add, total, grads)
    assert not w.wrong(found, total, 1e-12)


def test_a_reset_is_a_new_sequence():
    """Two sequences packed into one row, both ways, equal the two run apart."""
    cell = jb.lstm(I, H)
    net = jb.network([jb.layer(cell, backward=cell), jb.gru(2 * H, H)], jb.readout(H, O))
    params, _, xs, _ = _problem(net, {})
    reset = jnp.zeros((T, B), bool).at[2].set(True)
    apply = jax.jit(net.apply)
    _, packed = apply(params, None, xs, reset=reset)
    apart = [apply(params, None, part)[1] for part in (xs[:2], xs[2:])]
    assert not w.wrong({"ys": packed}, {"ys": jnp.concatenate(apart)}, 1e-13)


def test_padding_changes_nothing_bit_for_bit_and_gets_no_gradient():
    """Values and gradients of padded rows are those of each row alone; NaN and infinity stay outside."""
    cell = jb.lstm(I, H)
    net = jb.network([jb.layer(cell, backward=cell)], jb.last(jb.readout(2 * H, O)))
    params, _, xs, targets = _problem(net, {})
    lengths = (6, 0, 4)
    mask = jb.mask_of_lengths(jnp.array(lengths), T)
    run = jax.jit(jb.value_and_grad(net, jb.squared_error))
    results = [
        run(params, None, jnp.where(mask[..., None], xs, filler), targets, mask=mask)
        for filler in (0.0, jnp.nan, jnp.inf)
    ]
    for other in results[1:]:
        assert all((a == b).all() for a, b in zip(*map(jax.tree.leaves, (results[0], other)), strict=True))
    alone = [run(params, None, xs[:n, b], targets[b]) for b, n in enumerate(lengths) if n]
    total = jax.tree.map(lambda *z: sum(z), *alone)
    assert not w.wrong(results[0][1], total[1], 1e-12)
    assert abs(float(results[0][0][0] - total[0][0])) < 1e-12

    def loss(xs):
        return net.apply(params, None, xs, mask=mask)[1].sum()

    d_xs = jax.jit(jax.grad(loss))(jnp.where(mask[..., None], xs, jnp.nan))
    assert not jnp.where(mask[..., None], 0.0, d_xs).any()


def test_masked_targets_reach_no_loss():
    net = jb.network([jb.elman(I, H)], jb.readout(H, O))
    params, carry, xs, targets = _problem(net, {})
    mask = _marks()["mask"]
    run = jax.jit(jb.value_and_grad(net, jb.squared_error))
    spoiled = run(params, carry, xs, jnp.where(mask[..., None], targets, jnp.nan), mask=mask)
    right = run(params, carry, xs, targets, mask=mask)
    assert not w.wrong(spoiled, right, 1e-15)
    ys, classes = jnp.zeros((T, B, O)), jnp.where(mask, 1, -1)  # -1, as ignored labels often are
    assert abs(float(jb.softmax_cross_entropy(ys, classes, mask)) - np.log(O)) < 1e-14
    assert np.isnan(jb.softmax_cross_entropy(ys, classes))
    assert np.isfinite(jax.grad(jb.softmax_cross_entropy)(ys, classes, mask)).all()


@pytest.mark.parametrize("loss", [jb.squared_error, jb.softmax_cross_entropy])
def test_masked_losses_by_hand_equal_jax_grad(loss):
    from jax_bptt.networks.losses import value_and_slope

    mask = _marks()["mask"]
    ys = jax.random.normal(jax.random.key(0), (T, B, O))
    targets = jnp.ones((T, B), int) if loss is jb.softmax_cross_entropy else ys[::-1]
    wanted = jax.value_and_grad(lambda ys: loss(ys, targets, mask))(ys)
    assert not w.wrong(value_and_slope(loss, ys, targets, mask), wanted, 1e-14)


def test_a_loss_of_ones_own_is_given_the_mask():
    """And its targets may hold anything where the mask is False."""
    net = jb.network([jb.elman(I, H)], jb.readout(H, O))
    params, carry, xs, targets = _problem(net, {})
    mask = _marks()["mask"]
    targets = jnp.where(mask[..., None], targets, jnp.nan)

    def loss(ys, targets, mask):
        return jnp.sum(jnp.where(mask[..., None], (ys - targets) ** 2, 0.0))

    found, wanted = (
        jax.jit(jb.value_and_grad(net, f))(params, carry, xs, targets, mask=mask)
        for f in (loss, jb.squared_error)
    )
    assert not w.wrong(found, wanted, 1e-14)


def test_training_with_everything():
    """Masks, resets, cuts, dropout, two directions: one compilation, and the carry of each direction."""
    cell = jb.learn_carry(jb.lstm(I, H))
    cells = [jb.layer(cell, backward=cell, dropout=0.2), jb.layer(jb.gru(2 * H, 2 * H), residual=True)]
    net = jb.network(cells, jb.readout(2 * H, O))
    state = jb.init_train_state(jax.random.key(0), net, SGD, (B,))
    assert state.carry[0].backward is None
    step = jb.make_train_step(net, jb.squared_error, SGD)
    marks = {**_marks(), "cut": _marks()["reset"]}
    for i in range(3):
        xs, targets = _problem(net, marks)[2:]
        before = state.params.cells[0].backward.h_0.copy()
        state, metrics = step(state, jb.Batch(xs, targets, **marks, key=jax.random.key(i)))
        assert bool(metrics.finite)
        assert not (state.params.cells[0].backward.h_0 == before).all()  # trained: it begins every chunk
    assert step._cache_size() == 1

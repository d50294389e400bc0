"""Whole networks are right with dropout, padding, resets, cuts and learned carries, and train with them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support.witnesses as w
from cases import METHODS, H, I
from support.network_by_loop import ROWS, B, O, T, by_loop, problem, scan_one_way, some_marks
from support.optimizers import SGD

import jax_bptt as jb


def _dropout_net(share):
    cells = [jb.layer(jb.elman(I, H), dropout=share), jb.layer(jb.elman(H, H), residual=True, dropout=share)]
    return jb.network(cells, jb.readout(H, O))


def test_padded_outputs_of_a_row_depend_on_no_other_row():
    """Not through the residual either, which adds nothing where the mask is False."""
    net = jb.network([jb.gru(I, H), jb.layer(jb.gru(H, H), residual=True)], jb.readout(H, O))
    params, carry, xs, _ = problem(net, {})
    mask, apply = some_marks()["mask"], jax.jit(net.apply)
    _, ys = apply(params, carry, xs, mask=mask)
    _, other = apply(params, carry, xs.at[:, 0].add(1.0), mask=mask)
    assert (ys[:, 1:] == other[:, 1:]).all()
    assert not (ys[:, 0] == other[:, 0]).all()


@pytest.mark.parametrize("share", [0.4, 1.0])
def test_dropout_draws_once_for_the_forward_and_the_backward_pass(share):
    """The gradient under a key is that of the same masks written out, one draw a step, row and layer."""
    net, key = _dropout_net(share), jax.random.key(9)
    params, carry, xs, targets = problem(net, {})

    def by_loop(params):
        x = xs
        for number, (p, s) in enumerate(zip(params.cells, carry, strict=True)):
            _, hs = scan_one_way(ROWS["elman-tanh"].plain, p, s._asdict(), x, {}, False)
            keys = [jax.random.fold_in(k, number) for k in jax.random.split(key, hs.shape[:-1]).reshape(-1)]
            kept = jnp.stack([jax.random.bernoulli(k, 1 - share, hs.shape[-1:]) for k in keys])
            hs = hs * kept.reshape(hs.shape).astype(hs.dtype) / (1 - share if share < 1 else 1)
            x = hs + x if number else hs
        z = x @ params.readout.w_y
        return jnp.sum((z + jnp.broadcast_to(params.readout.b_y, z.shape) - targets) ** 2)

    for method in METHODS.values():
        run = jax.jit(functools.partial(jb.value_and_grad(net, jb.squared_error), gradient=method))
        (error, _), grads = run(params, carry, xs, targets, key=key)
        wanted = jax.jit(jax.value_and_grad(by_loop))(params)
        assert not w.wrong((error, grads), wanted, 1e-12)


def test_dropout_by_a_key_of_another_kind_is_one_draw_for_every_method():
    """JAX itself draws other numbers by such keys in chunks of other lengths."""
    net, key = _dropout_net(0.4), jax.random.key(9, impl="rbg")
    params, carry, xs, targets = problem(net, {})
    loss_and_grad = jb.value_and_grad(net, jb.squared_error)
    found = [
        loss_and_grad(params, carry, xs, targets, gradient=method, key=key)[0][0]
        for method in (jb.full(), jb.checkpointed(slots=2, chunk=2), jb.checkpointed(slots=1, chunk=3))
    ]
    assert np.ptp(found) < 1e-12 * found[0]
    assert abs(found[0] - loss_and_grad(params, carry, xs, targets)[0][0]) > 1e-3


def test_dropout_is_off_without_a_key_and_another_with_another_key():
    net, params = _dropout_net(0.4), problem(_dropout_net(0.4), {})[0]
    xs = jnp.ones((T, B, I))
    ys = [net.apply(params, None, xs, key=key)[1] for key in (None, jax.random.key(0), jax.random.key(1))]
    plain = jb.network([jb.elman(I, H), jb.layer(jb.elman(H, H), residual=True)], jb.readout(H, O))
    assert (ys[0] == plain.apply(params, None, xs)[1]).all()
    assert not np.allclose(ys[1], ys[2])


def _units_kept(net, params, key, share):
    """W_h with some rows zero: one draw for each layer and direction, written out."""
    cells = []
    for number, (layer, p) in enumerate(zip(net.layers, params.cells, strict=True)):
        own = jax.random.fold_in(jax.random.fold_in(key, 2**32 - 1), number)
        keys = [own] if layer.backward is None else jax.random.split(own)
        of_cells = [p] if layer.backward is None else p
        drawn = [jax.random.bernoulli(k, 1 - share, (H, 1)) for k in keys]
        rows = [jnp.where(one, 1 / (1 - share if share < 1 else 1), 0.0) for one in drawn]
        thin = [one._replace(w_h=one.w_h * row) for one, row in zip(of_cells, rows, strict=True)]
        cells.append(thin[0] if layer.backward is None else jb.Directions(*thin))
    return params._replace(cells=tuple(cells))


@pytest.mark.parametrize(("both", "share"), [(False, 0.5), (True, 1.0)])
def test_recurrent_dropout_leaves_out_the_same_units_at_every_step(both, share):
    """By layers and by chunks, with every key others, and none without a key."""
    names = "gru", "elman-tanh"
    layers = [jb.layer(ROWS["gru"].cell, recurrent_dropout=share)]
    top = jb.elman(H, H)
    layers.append(jb.layer(top, backward=top if both else None, recurrent_dropout=share))
    net, key = jb.network(layers, jb.readout(layers[1].output_size, O)), jax.random.key(9)
    params, carry, xs, targets = problem(net, {})
    marks, plains = some_marks(), [ROWS[name].plain for name in names]
    counts = marks["mask"][..., None]

    def of_loop(params):
        params = _units_kept(net, params, key, share)
        ys = by_loop(net, plains, params, carry, xs, marks)[1]
        return jnp.sum(jnp.where(counts, (ys - targets) ** 2, 0.0))

    def of_apply(params, key=key):
        ys = net.apply(params, carry, xs, key=key, **marks)[1]
        return jb.squared_error(ys, targets, marks["mask"])

    def every():
        method = jb.full() if both else jb.checkpointed(2, 2)
        run = jb.value_and_grad(net, jb.squared_error)
        (error, _), grads = run(params, carry, xs, targets, gradient=method, key=key, **marks)
        others = [of_apply(params, jax.random.key(8)), of_apply(params, None)]
        return (
            (error, grads),
            jax.value_and_grad(of_apply)(params),
            jax.value_and_grad(of_loop)(params),
            others,
        )

    found, by_jax, wanted, others = jax.jit(every)()
    assert not w.wrong(found, wanted, 1e-12)
    assert not w.wrong(by_jax, wanted, 1e-12)
    with_another, without = (bool(abs(other - wanted[0]) > 1e-3) for other in others)
    assert without
    assert with_another != (share == 1)  # where nothing is kept there is nothing to draw


def test_dropout_keeps_the_mean():
    layer = jb.layer(jb.elman(I, H, activation="identity"), dropout=0.3)
    net = jb.network([layer], jb.readout(H, O))
    params, xs = net.init(jax.random.key(0)), jnp.ones((1, B, I))
    keys = jax.random.split(jax.random.key(1), 4000)
    draws = jax.vmap(lambda key: net.apply(params, None, xs, key=key)[1])(keys)
    assert np.abs(draws.mean(0) - net.apply(params, None, xs)[1]).max() < 0.05


def test_a_missing_carry_trains_the_initial_one():
    net = jb.network([jb.learn_carry(jb.lstm(I, H)), jb.learn_carry(jb.gru(H, H))], jb.readout(H, O))
    params, _, xs, targets = problem(net, {})

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
    params, carry, xs, targets = problem(net, {})
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
    params, _, xs, _ = problem(net, {})
    reset = jnp.zeros((T, B), bool).at[2].set(True)
    apply = jax.jit(net.apply)
    _, packed = apply(params, None, xs, reset=reset)
    apart = [apply(params, None, part)[1] for part in (xs[:2], xs[2:])]
    assert not w.wrong({"ys": packed}, {"ys": jnp.concatenate(apart)}, 1e-13)


def test_padding_changes_nothing_bit_for_bit_and_gets_no_gradient():
    """Values and gradients of padded rows are those of each row alone; NaN and infinity stay outside."""
    cell = jb.lstm(I, H)
    net = jb.network([jb.layer(cell, backward=cell)], jb.last(jb.readout(2 * H, O)))
    params, _, xs, targets = problem(net, {})
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
    params, carry, xs, targets = problem(net, {})
    mask = some_marks()["mask"]
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
    from jax_bptt.networks.judged import Judged
    from jax_bptt.networks.losses import value_and_slope

    mask = some_marks()["mask"]
    ys = jax.random.normal(jax.random.key(0), (T, B, O))
    targets = jnp.ones((T, B), int) if loss is jb.softmax_cross_entropy else ys[::-1]
    wanted = jax.value_and_grad(lambda ys: loss(ys, targets, mask))(ys)
    assert not w.wrong(value_and_slope(loss, ys, Judged(targets, mask)), wanted, 1e-14)


def test_a_loss_of_ones_own_is_given_the_mask():
    """And its targets may hold anything where the mask is False."""
    net = jb.network([jb.elman(I, H)], jb.readout(H, O))
    params, carry, xs, targets = problem(net, {})
    mask = some_marks()["mask"]
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
    marks = {**some_marks(), "cut": some_marks()["reset"]}
    for i in range(3):
        xs, targets = problem(net, marks)[2:]
        before = state.params.cells[0].backward.h_0.copy()
        state, metrics = step(state, jb.Batch(xs, targets, **marks, key=jax.random.key(i)))
        assert bool(metrics.finite)
        assert not (state.params.cells[0].backward.h_0 == before).all()  # trained: it begins every chunk
    assert step._cache_size() == 1

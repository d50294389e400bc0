"""value_and_grad gives the same loss and gradient chunk by chunk as layer by layer."""

import functools

import jax
import jax.numpy as jnp
import pytest
import support.witnesses as w

import jax_bptt as jb

T, B, I, H, O = 11, 3, 3, 4, 2  # noqa: E741

BY_CHUNKS = {
    "checkpointed": jb.checkpointed(slots=2, chunk=3),
    "a slot for each leaf": jb.checkpointed(),
    "longer than the sequence": jb.checkpointed(slots=1, chunk=99),
    "truncated": jb.truncated(4),
}


def _net():
    layers = [jb.layer(jb.learn_carry(jb.lstm(I, H)), dropout=0.3), jb.layer(jb.gru(H, H), residual=True)]
    return jb.network(layers, jb.readout(H, O, activation="tanh"))


def _problem(net, loss):
    keys = iter(jax.random.split(jax.random.key(2), 99))
    params = jax.tree.map(lambda z: z + 0.3 * jax.random.normal(next(keys), z.shape), net.init(next(keys)))
    carry = jax.tree.map(lambda z: jax.random.normal(next(keys), z.shape), net.initial_carry(params, (B,)))
    mask = jb.mask_of_lengths(jnp.array([11, 0, 4]), T)  # whole chunks without a valid step
    xs = jnp.where(mask[..., None], jax.random.normal(next(keys), (T, B, I)), jnp.nan)
    targets = jax.random.normal(next(keys), (T, B, O))
    if loss is jb.softmax_cross_entropy:
        targets = jax.random.randint(next(keys), (T, B), 0, O)
    drawn = jax.random.bernoulli(next(keys), 0.2, (2, T, B))
    return params, carry, xs, targets, {"mask": mask, "reset": drawn[0], "cut": drawn[1]}


def _run(net, loss, method, *args, **marks):
    run = functools.partial(jb.value_and_grad(net, loss), gradient=method)
    return jax.jit(run)(*args, **marks)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("checkpointed", jb.softmax_cross_entropy),
        ("a slot for each leaf", jb.squared_error),
        ("longer than the sequence", jb.squared_error),
        ("truncated", jb.softmax_cross_entropy),
    ],
)
def test_by_chunks_equals_by_layers(name, loss):
    """A loss of one's own is not known to be a sum over steps, so it goes by layers."""
    net, method = _net(), BY_CHUNKS[name]
    args, marks = _marked(loss)
    found = _run(net, loss, method, *args, **marks)
    if name == "truncated":
        assert not w.wrong(found, _run(net, _own(loss), method, *args, **marks), 1e-12)
    else:
        assert not w.wrong(found, _by_layers_by_jax(loss), 1e-12)


def test_checkpointed_by_layers_is_the_gradient_of_jax():
    args, marks = _marked(jb.squared_error)
    found = _run(_net(), _own(jb.squared_error), BY_CHUNKS["checkpointed"], *args, **marks)
    assert not w.wrong(found, _by_layers_by_jax(jb.squared_error), 1e-12)


@pytest.mark.parametrize("name", ["checkpointed", "longer than the sequence"])
def test_the_network_of_the_article_has_no_biases(name):
    """S_t = tanh(W_x X_t + W_s S_{t−1}), Y_t = W_y S_t, as a loop that JAX differentiates."""
    net = jb.network([jb.elman(I, H, bias=False)], jb.readout(H, O, bias=False))
    params, carry, xs, targets, _ = _problem(net, jb.squared_error)
    xs = jnp.where(jnp.isnan(xs), 0.5, xs)

    def loss(params):
        (cell,), readout = params
        h, ys = carry[0].h, []
        for x in xs:
            h = jnp.tanh(x @ cell.w_x + h @ cell.w_h)
            ys.append(h @ readout.w_y)
        return jb.squared_error(jnp.stack(ys), targets)

    _, grads = _run(net, jb.squared_error, BY_CHUNKS[name], params, carry, xs, targets)
    assert (grads.cells[0]._fields, grads.readout._fields) == (("w_x", "w_h"), ("w_y",))
    assert not w.wrong(grads, jax.grad(loss)(params), 1e-12)


def _marked(loss):
    """The arguments of a run with everything in it."""
    params, carry, xs, targets, marks = _problem(_net(), loss)
    return (params, (carry[0], None), xs, targets), marks | {"key": jax.random.key(5)}


def _own(loss):
    return lambda ys, targets, mask: loss(ys, targets, mask)


@functools.cache
def _by_layers_by_jax(loss):
    args, marks = _marked(loss)
    return _run(_net(), _own(loss), jb.autodiff(), *args, **marks)


def test_a_missing_carry_is_trained_by_chunks_too():
    net = _net()
    params, _, _, targets, _ = _problem(net, jb.squared_error)
    xs = jax.random.normal(jax.random.key(1), (T, B, I))

    def own(ys, targets):
        return jb.squared_error(ys, targets)

    exact, truncated = (
        _run(net, own, method, params, None, xs, targets) for method in (jb.full(), BY_CHUNKS["truncated"])
    )
    for name, method in BY_CHUNKS.items():
        found = _run(net, jb.squared_error, method, params, None, xs, targets)
        assert not w.wrong(found, truncated if name == "truncated" else exact, 1e-12), name
        assert found[1].cells[0].h_0.any()


@pytest.mark.parametrize("last", [False, True], ids=["every step", "the last step"])
def test_what_does_not_run_one_way_goes_by_layers(last):
    """A layer that reads backwards, a readout of the last step."""
    both, readout = jb.layer(jb.elman(I, H), backward=jb.elman(I, H)), jb.readout(2 * H, O)
    net = jb.network([both], jb.last(readout) if last else readout)
    params, xs = net.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (T, B, I))
    targets = jnp.ones((B, O) if last else (T, B, O))
    wanted = _run(net, jb.squared_error, jb.full(), params, None, xs, targets)
    for name, method in BY_CHUNKS.items():
        found = _run(net, jb.squared_error, method, params, None, xs, targets)
        if name != "truncated":
            assert not w.wrong(found, wanted, 1e-12), name
        assert not w.wrong(found[0], wanted[0], 1e-12), name


@pytest.mark.parametrize("rows", [(), (2, 2)], ids=str)
def test_other_batch_axes_by_chunks(rows):
    net = _net()
    params = net.init(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (T, *rows, I))
    targets = jnp.ones((T, *rows, O))
    found, wanted = (
        _run(net, jb.squared_error, m, params, None, xs, targets) for m in (jb.checkpointed(2, 4), jb.full())
    )
    assert not w.wrong(found, wanted, 1e-12)


def test_the_loss_is_read_in_pieces_of_any_length(monkeypatch):
    from jax_bptt.networks import readout_and_loss as reading

    net = jb.network([jb.elman(I, H)], jb.readout(H, O))
    params, carry, xs, targets, marks = _problem(net, jb.softmax_cross_entropy)
    args = params, carry, xs, targets
    whole = _run(net, jb.softmax_cross_entropy, jb.full(), *args, mask=marks["mask"])
    for at_once in (1, 2 * B * O, 5 * B * O):
        monkeypatch.setattr(reading, "AT_ONCE", at_once)
        pieces = _run(net, jb.softmax_cross_entropy, jb.full(), *args, mask=marks["mask"])
        assert not w.wrong(pieces, whole, 1e-12)


def test_a_step_singular_at_zero_in_chunks_without_any_valid_step():
    """What stands in the place of padding is no zero vector there either."""

    def step(p, s, x):
        return jb.Carry(jnp.tanh(s.h @ p["w_h"] + (x / jnp.linalg.norm(x)) @ p["w_x"]))

    cell = jb.step_cell(I, H, step, lambda key: jb.elman(I, H).init(key)._asdict())
    net = jb.network([cell], jb.readout(H, O))
    params, xs = net.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (T, 2, I))
    mask = jb.mask_of_lengths(jnp.array([3, 2]), T)
    spoiled = jnp.where(mask[..., None], xs, 0.0)
    targets = jnp.ones((T, 2, O))
    for method in (jb.checkpointed(2, 4), jb.truncated(4)):
        _, grads = _run(net, jb.squared_error, method, params, None, spoiled, targets, mask=mask)
        _, wanted = _run(net, jb.squared_error, method, params, None, xs[:3], targets[:3], mask=mask[:3])
        assert not w.wrong(grads, wanted, 1e-12)


def test_training_with_every_method():
    """One compilation each; exact methods end where full() ends."""
    import optax

    net, sgd = jb.network([jb.gru(I, H)], jb.readout(H, O)), optax.sgd(0.05)
    ends = {}
    for method in (
        jb.full(),
        jb.checkpointed(2, 3),
        jb.full(recompute=False),
        jb.truncated(4),
        jb.truncated(4, 2),
    ):
        state = jb.init_train_state(jax.random.key(0), net, sgd, (B,))
        step = jb.make_train_step(net, jb.squared_error, sgd, gradient=method)
        for i in range(3):
            xs = jax.random.normal(jax.random.key(i), (T, B, I))
            state, metrics = step(state, jb.Batch(xs, jnp.ones((T, B, O))))
        assert step._cache_size() == 1
        assert bool(metrics.finite)
        ends[method] = state
    assert not w.wrong(ends[jb.checkpointed(2, 3)], ends[jb.full()], 1e-12)
    assert not w.wrong(ends[jb.full(recompute=False)], ends[jb.full()], 1e-12)
    assert w.wrong(ends[jb.truncated(4)], ends[jb.full()], 1e-6)


@pytest.mark.parametrize(
    ("method", "in_chunks"),
    [
        (jb.full(chunk=2), True),
        (jb.checkpointed(slots=2, chunk=2), True),
        (jb.checkpointed(slots=2, chunk=2), False),
        (jb.truncated(3, stride=2), False),
        (jb.parallel(jb.newton()), False),
        (jb.rtrl(), False),
    ],
)
def test_a_batch_of_no_rows_has_a_loss_and_a_gradient_of_zero(method, in_chunks):
    net, loss, mark = _net(), jb.squared_error, jnp.ones((T, 0), bool)
    params = net.init(jax.random.key(0))
    args = params, None, jnp.ones((T, 0, I)), jnp.ones((T, 0, O))
    marks = {"mask": mark, "reset": mark, "cut": mark, "key": jax.random.key(1)}
    (error, carry), grads = _run(net, loss if in_chunks else _own(loss), method, *args, **marks)
    assert float(error) == 0
    assert carry[1].h.shape == (0, H)
    assert not any(g.any() for g in jax.tree.leaves(grads))

"""How the public functions are called in `public_api_table`, and the same answers found in another way."""

import re

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

import jax_bptt as jb
from jax_bptt.unrolling.arguments import parameter_shapes
from support.bad_values import KEY

T, B, I, H, O = 5, 2, 3, 4, 6  # noqa: E741
cell = jb.lstm(I, H)
params = cell.init(KEY)
carry = jb.LSTMCarry(*jax.random.normal(jax.random.key(1), (2, B, H)))
xs = jax.random.normal(jax.random.key(2), (T, B, I))
mask = jnp.arange(T * B).reshape(T, B) % 4 != 1
reset, cut = mask[::-1] & (jnp.arange(T)[:, None] % 2 == 0), ~mask
net = jb.network([jb.layer(cell, dropout=0.5)], jb.readout(H, O))
net_params = net.init(KEY)
targets = jax.random.normal(jax.random.key(3), (T, B, O))
weight = jnp.arange(T * B, dtype=float).reshape(T, B) % 3 / 2  # a third of them is 0
starts = jb.LSTMCarry(*jax.random.normal(jax.random.key(4), (2, T, B, H)))
classes = jnp.arange(T * B).reshape(T, B) % O


def text_of(f, *args):
    """The program of a function, without the addresses of what is in it."""
    return re.sub(r"0x[0-9a-f]+", "", str(jax.make_jaxpr(f)(*args)))


def of_cell(cell):
    parameter_shapes(cell)  # init is asked as `unroll` asks it

    def run(key, xs):
        return jax.grad(lambda p: jb.unroll(cell, p, None, xs)[1].sum())(cell.init(key))

    return text_of(run, KEY, jnp.ones((2, cell.input_size)))


def of_net(net):
    def run(key, xs, targets):
        return jb.value_and_grad(net, jb.squared_error)(net.init(key), None, xs, targets, key=key)

    leading = () if net.readout.of_last else (2,)
    outputs = jnp.ones((*leading, getattr(net.readout, "output_size", O)))
    return text_of(run, KEY, jnp.ones((2, net.layers[0].input_size)), outputs)


def of_layer(layer):
    return of_net(jb.network([layer], jb.readout(layer.output_size, O)))


def of_gradient(gradient):
    def run(xs, targets):
        other = {"params": net_params, "carry": None, "reset": reset, "cut": cut, "key": KEY}
        return jb.value_and_grad(net, jb.squared_error)(xs=xs, targets=targets, gradient=gradient, **other)

    return repr(gradient), text_of(run, xs, targets)


def of_initializer(init):
    return init(KEY, (H, H), jnp.result_type(float))


def unrolled(cell, params, carry, xs, **rest):
    jb.unroll(cell, params, carry, xs, **rest)  # what jax.vjp refuses is not asked
    out, back = jax.vjp(lambda *at: jb.unroll(cell, *at, **rest), params, carry, xs)
    return out, back(weights(out))


def of_states(cell, params, carry, xs, **rest):
    jb.unroll_states(cell, params, carry, xs, **rest)
    out, back = jax.vjp(lambda *at: jb.unroll_states(cell, *at, **rest), params, carry, xs)
    return out, back(weights(out))


def body(c, x):
    """A body of `jb.scan`: every leaf of the carry and of x counts, and y is no part of the carry."""
    h, c = jnp.tanh(c.h + 0.5 * c.c + x[..., :1]), 0.5 * c.c + jnp.sin(c.h)
    return jb.LSTMCarry(h, c), {"y": h * c}


def scanned(f, init, xs, **rest):
    jb.scan(f, init, xs, **rest)
    out, back = jax.vjp(lambda *at: jb.scan(f, *at, **rest), init, xs)
    return out, back(weights(out))


def applied(params, carry, xs, **rest):
    net.apply(params, carry, xs, **rest)
    out, back = jax.vjp(lambda *at: net.apply(*at, **rest), params, carry, xs)
    return out, back(weights(out))


def stepped(cell, params, carry, x, **rest):
    jb.step(cell, params, carry, x, **rest)
    out, back = jax.vjp(lambda *at: jb.step(cell, *at, **rest), params, carry, x)
    return out, back(weights(out))


def _alone(x, mask, reset, **rest):
    """A sequence of one step."""
    marks = {"mask": mask, "reset": reset}
    return x[None], {name: None if mark is None else mark[None] for name, mark in marks.items()} | rest


def of_one(cell, params, carry, x, **rest):
    def run(params, carry, x):
        xs, marks = _alone(x, **rest)
        last, hs = jb.unroll(cell, params, carry, xs, **marks, gradient=jb.autodiff())
        return last, hs[0]

    out, back = jax.vjp(run, params, carry, x)
    return out, back(weights(out))


def applied_to_one(params, carry, x, **rest):
    xs, marks = _alone(x, **rest)
    last, ys = net.apply(params, carry, xs, **marks)
    return last, ys[0]


def weights(tree):
    return jax.tree.map(lambda z: jnp.cos(jnp.arange(z.size, dtype=z.dtype)).reshape(z.shape), tree)


def plainly(run):
    return lambda **arguments: run(**arguments | {"gradient": jb.autodiff()})


def graded(net, loss, **rest):
    return jb.value_and_grad(net, loss)(**rest)


def graded_by_jax(net, loss, params, carry, xs, targets, weight=None, **rest):
    rest["gradient"] = jb.autodiff()

    def error(params):
        last, ys = net.apply(params, carry, xs, **rest)
        return loss(ys, targets, rest["mask"], weight), last

    return jax.value_and_grad(error, has_aux=True)(params)


def copied(state):
    return jax.tree.map(lambda z: jnp.copy(z) if isinstance(z, jax.Array) else z, state)


def trained(state, batch, **made):
    return jb.make_train_step(**made)(copied(state), batch)


def trained_often(state, batches, **made):
    return jb.make_train_steps(**made)(copied(state), batches)


def trained_by_jax(state, batch, net, loss, optimizer, gradient, dtype):
    marks = {name: getattr(batch, name) for name in batch._fields if name not in ("xs", "targets")}
    arguments = {"params": state.params, "carry": state.carry, "xs": batch.xs, "targets": batch.targets}
    (error, last), grads = graded_by_jax(net, loss, **arguments, **marks)
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
    finite = jnp.isfinite(error) & jnp.isfinite(norm)
    for s in jax.tree.leaves(last):
        finite &= jnp.isfinite(s).all()
    after = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads), last
    begun = net.initial_carry(state.params, batch.xs.shape[1:-1]) if state.carry is None else state.carry
    kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), after, (state.params, begun))
    skipped = state.skipped + (~finite).astype(jnp.int32)
    after = state._replace(step=state.step + 1, params=kept[0], carry=kept[1], skipped=skipped)
    return after, jb.Metrics(error, norm, finite)


def trained_often_by_jax(state, batches, **made):
    return jax.lax.scan(lambda state, batch: trained_by_jax(state, batch, **made), state, batches)


def zeros(params, batch_shape):
    shape, dtype = (*batch_shape, H), jax.tree.leaves(params)[0].dtype
    return jb.LSTMCarry(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def squares(ys, targets, mask, weight):
    return _weighed(jnp.square(ys - targets).sum(-1), ys, mask, weight)[0].sum()


def _weighed(each, ys, mask, weight):
    """The errors times their weights, and these."""
    mask = jnp.ones(each.shape, bool) if mask is None else jnp.asarray(mask)
    weight = jnp.where(mask, jnp.ones_like(each) if weight is None else jnp.asarray(weight), 0.0)
    ignored = (weight == 0) & ~(mask & jnp.isnan(ys).any(-1))  # a NaN of a step that was read is none
    return weight * jnp.where(ignored, 0.0, each), weight


def _mean(each, ys, mask, weight):
    weighed, weight = _weighed(each, ys, mask, weight)
    return weighed.sum() / weight.sum()


def nats(ys, targets, mask, weight):
    each = jax.scipy.special.logsumexp(ys, -1) - jnp.take_along_axis(ys, targets[..., None], -1)[..., 0]
    each = jnp.where((targets >= 0) & (targets < ys.shape[-1]), each, jnp.nan)
    return _mean(each, ys, mask, weight)


def gaussians(ys, targets):
    """Of each step and row."""
    means, deviations = ys[..., : targets.shape[-1]], jnp.exp(ys[..., targets.shape[-1] :])
    z = (targets - means) / deviations
    return (z * z / 2 + jnp.log(deviations * jnp.sqrt(2 * jnp.pi))).sum(-1)


def pinballs(levels, ys, targets):
    """Of each step and row."""
    above = jnp.repeat(targets, len(levels), -1) - ys
    levels = jnp.broadcast_to(jnp.tile(jnp.asarray(levels), targets.shape[-1]), ys.shape)
    return jnp.where(above > 0, levels * above, (levels - 1) * above).sum(-1)


def hubers(delta, ys, targets):
    """Of each step and row."""
    size = jnp.abs(targets - ys)
    return jnp.where(size <= delta, size * size / 2, delta * (size - delta / 2)).sum(-1)


def bits(ys, targets):
    """Of each step and row."""
    each = jnp.logaddexp(0.0, ys) - targets * ys
    return jnp.where((targets >= 0) & (targets <= 1), each, jnp.nan).sum(-1)


def mean_of(each):
    """The loss that is the mean of the errors of each step and row."""
    return lambda ys, targets, mask, weight: _mean(each(ys, targets), ys, mask, weight)


def by_steps(z):
    z = np.asarray(z)
    lags, steps = z.shape
    found = np.zeros((steps, steps), z.dtype)
    for t in range(steps):
        for lag in range(min(lags, t + 1)):
            found[t, t - lag] = z[lag, t]
    return found


def by_newton(**arguments):
    last, hs, info = jb.unroll_by_newton(**arguments)
    return jax.tree.map(lambda z: jnp.where(info.converged, z, jnp.nan), (last, hs))


def by_loop(newton, **arguments):
    last, hs = jb.unroll(**arguments, gradient=jb.autodiff())
    finite = jnp.isfinite(hs).all()  # or there is no solution
    return jax.tree.map(lambda z: jnp.where(finite, z, jnp.nan), (last, hs))


def no_influence(cell, params, batch_shape):
    numbers = sum(p.size for p in jax.tree.leaves(params))
    return jb.RTRLState(zeros(params, batch_shape), jnp.zeros((*batch_shape, 2 * H, numbers)))


def influence_of_h(params, state, d_h):
    flat = jnp.einsum("bh,bhp->p", d_h, state.influence[:, :H])
    return jax.flatten_util.ravel_pytree(params)[1](flat)

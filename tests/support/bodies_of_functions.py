"""Bodies that use what JAX has beside arithmetic: control flow, loops, custom derivatives, indices, roots."""

import jax
import jax.numpy as jnp
import numpy as np

import jax_bptt as jb
from support.body import Body, H, S, T, W, X, draw, returned, tanh_of, tanh_step


def _embedding(w):
    def f(h, token):
        h = jnp.tanh(h @ w["w_h"] + w["table"][token])
        return h, w["table"] @ h

    return f


def _cond(w):
    def f(h, x):
        h = jax.lax.cond(x.sum() > 0, lambda h: tanh_of(w, h, x), lambda h: jnp.sin(h @ w["w_x"]), h)
        return h, h[0]

    return f


def _switch(w):
    ways = [
        lambda h: jnp.tanh(h @ w["w_h"]),
        lambda h: h @ w["w_x"],
        lambda h: h * w["b"],
    ]

    def f(h, i):
        h = jax.lax.switch(i, ways, h)
        return h, h

    return f


def _steps_of_collatz(n):
    def step(at):
        n, count = at
        return jnp.where(n % 2 == 0, n // 2, 3 * n + 1), count + 1

    return jax.lax.while_loop(lambda at: at[0] > 1, step, (n, 0 * n))[1]


def _while(w):
    def f(h, x):
        h = jnp.tanh(h @ w["w_h"] + x["x"] / (1.0 + _steps_of_collatz(x["n"]).astype(float)))
        return h, h

    return f


def _fori(w):
    def f(h, x):
        h = jax.lax.fori_loop(0, 3, lambda i, z: jnp.tanh(z @ w["w_h"] + x / (1 + i)), h)
        return h, h

    return f


def _inner_scan(w):
    def f(h, x):
        h, outs = jax.lax.scan(lambda h, x: (jnp.tanh(h @ w["w_h"] + x * w["b"]), h[0]), h, x)
        return h, outs

    return f


def _inner_library_scan(scan, gradient):
    """The inner scan is truncated to 2 of its 3 steps."""

    def build(w):
        def f(h, x):
            cut = jnp.array([False, False, True])
            given = gradient or {"cut": cut}
            h, outs = scan(lambda h, x: (tanh_of(w, h, x), h), h, x, **given)
            return h, outs[1]

        return f

    return build


def _with_stop_gradient(f, h, x, cut):
    def step(h, at):
        x, cut = at
        return f(jnp.where(cut, jax.lax.stop_gradient(h), h), x)

    return jax.lax.scan(step, h, (x, cut))


@jax.custom_vjp
def _doubled_back(z):
    """tanh, and twice its derivative."""
    return jnp.tanh(z)


_doubled_back.defvjp(lambda z: (jnp.tanh(z), z), lambda z, d: (2 * d * (1 - jnp.tanh(z) ** 2),))


@jax.custom_jvp
def _tripled(z):
    """tanh, and three times its derivative."""
    return jnp.tanh(z)


_tripled.defjvp(lambda z, d: (_tripled(z[0]), 3 * d[0] * (1 - jnp.tanh(z[0]) ** 2)))


def _custom(function):
    return lambda w: returned(lambda w, s, x: function(0.3 * (s @ w["w_h"] + x)), w)


def _checkpoint(w):
    return jax.checkpoint(tanh_step(w))


def _integers_and_a_key(w):
    """Among the weights are numbers that have no derivative."""

    def f(h, x):
        is_odd = jax.random.key_data(w["key"])[-1] % 2 == 1
        h = jnp.tanh(jnp.where(is_odd, h @ w["w_h"], h) + jnp.roll(x, w["shift"]))
        return h, w["shift"] + x.argmax()

    return f


def _callback(w):
    """NumPy counts something at every step."""

    def f(h, x):
        read = jax.lax.stop_gradient(x)
        n = jax.pure_callback(lambda x: np.sum(x > 0), jax.ShapeDtypeStruct((), "int64"), read)
        h = jnp.tanh(h @ w["w_h"] + x / (1.0 + n.astype(float)))
        return h, n

    return f


def _weight_as_integer(w):
    def f(h, x):
        best = jnp.argmax(w["b"])
        on = (w["b"] > 0).astype(int).sum()
        h = jnp.tanh(h @ w["w_h"] + x.at[best].add(w["b"][best] * on.astype(float)))
        return h, best

    return f


def _in_place(w):
    """The new number goes into a ring of the last ones."""

    def f(s, x):
        ring, i = s
        ring = ring.at[i % H].set(jnp.tanh(ring @ w["b"] + x[0]))
        return (ring, i + 1), ring.sum()

    return f


def _double_where(w):
    def f(s, x):
        inside = x > 0
        root = jnp.where(inside, jnp.sqrt(jnp.where(inside, x, 1.0)), 0.0)
        new = jnp.tanh(w["b"] * root + s @ w["w_h"])
        return new, jnp.where(inside, jnp.log(jnp.where(inside, x, 1.0)), new)

    return f


def _root_not_taken(w):
    """The derivative of the branch that is not taken is infinite; once with x, once with the carry."""

    def f(s, x):
        def root(z):
            return jnp.sqrt(w["b"][0] * z)

        def line(z):
            return z * w["b"][1]

        of_x = jax.lax.cond(x > 0, root, line, x)
        new = jax.lax.cond(s > 0, root, line, s) + jnp.maximum(x, 0.0)
        return new, of_x

    return f


def _a_root_and_zeros():
    return jnp.array([0.0, -0.3, 0.4, 0.0, 0.7, -0.2, 0.0])


BODIES: dict[str, Body] = {
    "embedding": Body(_embedding, S, jnp.arange(T) ** 2 % 5, {"table": draw(27, 5, H), **W}),
    "cond": Body(_cond, S, X, W),
    "switch": Body(_switch, S, jnp.arange(T) % 3, W),
    "while": Body(_while, S, {"x": X, "n": jnp.arange(1, 1 + T)}, W),
    "fori_loop": Body(_fori, S, X, W),
    "inner lax.scan": Body(_inner_scan, S, draw(28, T, 2, H), W),
    "inner jb.scan": Body(
        lambda w: _inner_library_scan(jb.scan, {"gradient": jb.truncated(2)})(w),
        S,
        draw(29, T, 3, H),
        W,
        plain=_inner_library_scan(_with_stop_gradient, None),
    ),
    "custom_vjp": Body(_custom(_doubled_back), S, X, W),
    "custom_jvp": Body(_custom(_tripled), S, X, W),
    "jax.checkpoint": Body(_checkpoint, S, X, W),
    "jax.jit": Body(lambda w: jax.jit(tanh_step(w)), S, X, W),
    "integers and a key among the weights": Body(
        _integers_and_a_key, S, X, {"key": jax.random.key(3), "shift": jnp.array(1), **W}
    ),
    "callback": Body(_callback, S, X, W),
    "weight as an integer": Body(_weight_as_integer, S, X, W),
    "in place": Body(_in_place, (S, jnp.array(0)), X, W),
    "double where": Body(_double_where, S, X.at[:, 0].set(0.0), W),
    "root not taken": Body(
        _root_not_taken, jnp.array(0.0), _a_root_and_zeros(), {"b": jnp.array([0.8, 0.5])}
    ),
}

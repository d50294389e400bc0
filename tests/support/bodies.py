"""Bodies for `jb.scan`: what people write into jax.lax.scan, one of each kind, small in size."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from support import bodies_of_functions
from support.body import Body, H, S, T, W, X, draw, returned, tanh_of, tanh_step


def _plain(w):
    return returned(tanh_of, w)


class Pair(NamedTuple):
    position: jax.Array
    rest: Any


def _nested(w):
    def f(s, x):
        a, (b, c) = s["pair"].position, s["pair"].rest
        a, b = jnp.tanh(a @ w["w_h"] + x["in"][0]), jnp.sin(b + a * s["outer"][0])
        return {"pair": Pair(a, (b, c * a[0])), "outer": [a + b]}, {"y": (a, [b * c])}

    return f


NESTED = {"pair": Pair(draw(4, H), (draw(5, H), draw(6))), "outer": [draw(7, H)]}


def _list_of_inputs(w):
    def f(s, xs):
        new = jnp.tanh(s * w + xs[0] * xs[1])
        return new, xs[1] + new

    return f


def _of_init_zero(w):
    return lambda s, x: (jnp.tanh(w * s + x), s)


def _counter(w):
    def f(s, x):
        here = s["n"] % 2 == 0
        h = jnp.where(here, 1.0, 0.5) * jnp.tanh(s["h"] @ w["w_h"] + x) / (1 + s["n"])
        return {"n": s["n"] + 1, "h": h}, (s["n"], h)

    return f


def _flag(w):
    def f(s, x):
        h, on = s
        h = jnp.where(on, jnp.tanh(h @ w["w_h"] + x), h + 0.1 * x)
        return (h, (h > 0).any() ^ on), on

    return f


def _noise_by_key(w):
    def f(s, x):
        h, key = s
        key, now = jax.random.split(key)
        h = jnp.tanh(h @ w["w_h"] + x + w["b"] * jax.random.normal(now, (H,)))
        return (h, key), h

    return f


def _keys_as_inputs(w):
    def f(h, x):
        kept = jax.random.bernoulli(x["key"], 0.7, (H,))
        h = jnp.where(kept, tanh_of(w, h, x["x"]), h)
        return h, h

    return f


def _many_weights(w):
    def f(h, x):
        mixed = jnp.einsum("i,ijk,j->k", h, w["tensor"], x) + h @ w["narrow"] @ w["narrow"].T
        return jnp.tanh(w["scale"] * mixed + w["b"]), (mixed @ w["narrow"], w["unused"][0])

    return f


def _no_output(w):
    return lambda s, x: (tanh_of(w, s, x), None)


def _no_carry(w):
    return lambda s, x: ((), jnp.tanh(x @ w["w_x"]))


def _carry_not_used(w):
    return lambda s, x: (s, jnp.tanh(x @ w["w_x"]))


def _of_length(w):
    def f(s, x):
        assert x is None
        new = jnp.tanh(s @ w["w_h"] + w["b"])
        return new, new[0]

    return f


def _single(w):
    """A float32 leaf beside one of float64; each reads the other."""

    def f(s, x):
        wide = jnp.tanh(s["wide"] @ w["w_h"] + s["single"].astype("float64") + x)
        single = jnp.sin(s["single"] * w["single"] + s["wide"].astype("float32"))
        return {"wide": wide, "single": single}, single

    return f


def _half(w):
    def f(s, x):
        half = jnp.tanh(s["half"] * w["half"] + x.astype("bfloat16"))
        return {"half": half, "tenth": s["tenth"] * jnp.float16(0.5)}, half.astype("float16") * s["tenth"]

    return f


def _complex(w):
    """A linear recurrence with complex eigenvalues; y is real."""

    def f(s, x):
        s = w["lam"] * s + (w["w_x"] @ x).astype(complex)
        return s, (s.real, s * s)

    return f


def _passed_on(w):
    def f(s, x):
        h = jnp.tanh(s["h"] * s["gain"] + x @ w["w_x"])
        return {"h": h, "gain": s["gain"]}, h

    return f


def _constant_output(w):
    return lambda s, x: (tanh_of(w, s, x), (jnp.ones(2), 3))


def _empty_leaves(w):
    def f(s, x):
        h = jnp.tanh(s["h"] @ w["w_h"] + x["none"].sum() + s["none"].sum())
        return {"h": h, "none": s["none"] * 2 + w["none"]}, (h, x["none"])

    return f


def _large(w):
    def f(s, x):
        new = {n: jnp.tanh(w[n] * z + x) for n, z in s.items()}
        return {n: new[m] for n, m in zip(new, [*list(new)[1:], *list(new)[:1]], strict=True)}, new

    return f


_NAMES = [f"leaf_{i}" for i in range(10)]

BODIES: dict[str, Body] = {
    "y is the carry": Body(_plain, S, X, W),
    "y reads both carries": Body(tanh_step, S, X, W),
    "nested carry": Body(_nested, NESTED, {"in": (X,)}, W),
    "list of inputs": Body(_list_of_inputs, S, [X, draw(22, T, 1)], draw(23, H)),
    "scalar carry": Body(_of_init_zero, draw(24), draw(25, T), draw(26)),
    "init is the number 0.0": Body(_of_init_zero, 0.0, draw(25, T), draw(26)),
    "counter": Body(_counter, {"n": jnp.array(0), "h": S}, X, W),
    "flag": Body(_flag, (S, jnp.array(True)), X, W),
    "key in the carry": Body(_noise_by_key, (S, jax.random.key(1)), X, W),
    "key of another kind": Body(_noise_by_key, (S, jax.random.key(1, impl="rbg")), X, W),
    "keys as inputs": Body(_keys_as_inputs, S, {"key": jax.random.split(jax.random.key(2), T), "x": X}, W),
    "many weights": Body(
        _many_weights,
        S,
        X,
        {
            "tensor": draw(30, H, H, H),
            "narrow": draw(31, H, 1),
            "scale": draw(32),
            "b": draw(33, H),
            "unused": S,
        },
    ),
    "no output": Body(_no_output, S, X, W),
    "no carry": Body(_no_carry, (), X, W),
    "carry not used": Body(_carry_not_used, S, X, W),
    "length only": Body(_of_length, S, None, W, length=T),
    "float32 beside float64": Body(
        _single,
        {"wide": S, "single": S.astype("float32")},
        X,
        {"single": draw(34).astype("float32"), **W},
        tolerance=1e-6,
    ),
    "half precision": Body(
        _half,
        {"half": S.astype("bfloat16"), "tenth": S.astype("float16")},
        X,
        {"half": draw(34).astype("bfloat16")},
        tolerance=2e-2,
    ),
    "complex": Body(
        _complex, jax.lax.complex(S, draw(38, H)), X, {"lam": jax.lax.complex(draw(35, H), draw(39, H)), **W}
    ),
    "leaf passed on": Body(_passed_on, {"h": S, "gain": draw(36, H)}, X, W),
    "constant output": Body(_constant_output, S, X, W),
    "empty leaves": Body(
        _empty_leaves,
        {"h": S, "none": jnp.zeros((0, 2))},
        {"none": jnp.zeros((T, 0))},
        {"none": jnp.zeros((0, 2)), **W},
    ),
    "large tree": Body(
        _large,
        {n: draw(i, 2) for i, n in enumerate(_NAMES)},
        draw(37, T, 2),
        {n: draw(40 + i, 2) for i, n in enumerate(_NAMES)},
    ),
    **bodies_of_functions.BODIES,
}

"""Strategies of hypothesis that make wrong arguments, each from the right value."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import strategies as st

import jax_bptt as jb

KEY = jax.random.key(0)
OLD_KEY = jax.random.PRNGKey(0)


class _Unhashable:
    __hash__ = None

    def __call__(self, *args):
        return args[0]


JUNK = [None, True, False, 0, 1, -1, 3, 10**30, 10**400, 0.5, 2.5, -0.5, 1e300]
JUNK += [math.nan, math.inf, -math.inf, 1j, "text", "", "0.5", "3", b"3", "tanh", "int8"]
JUNK += [[], [3], (), (3,), (2.0,), (-1,), (0,), (True,), (10**30,), ("a", 2), ("a", "b")]
JUNK += [{}, {"h": 1}, {1}, range(3), slice(None), ..., object(), int, float, np.ndarray]
JUNK += ["bfloat16", "float32", jnp.bfloat16, jnp.float32, jnp.dtype("float16")]
JUNK += [np.int64(3), np.float32(0.5), np.float64("nan"), np.bool_(True), np.complex128(1)]
JUNK += [np.str_("3"), np.datetime64("2000"), np.array(3), np.array([1, 2]), np.ones((2, 0))]
JUNK += [np.array(["a"]), np.array([None]), jnp.array(2), jnp.array(0.5), jnp.array(True)]
JUNK += [jnp.array(1j), jnp.ones(3), KEY, OLD_KEY, jax.random.split(KEY, 2)]
JUNK += [jax.ShapeDtypeStruct((5, 2, 3), "float64"), max, jnp.sum, jnp.tanh, _Unhashable()]
JUNK += [lambda: None, lambda *args: None, lambda *args: args[0], jb.full, jb.elman, jb.orthogonal]
JUNK += [jb.elman(3, 4), jb.gru(3, 4, reset_after=False), jb.lstm(2, 4), jb.layer(jb.gru(3, 4))]
JUNK += [jb.readout(4, 6), jb.last(jb.readout(4, 6)), jb.network([jb.elman(3, 4)], jb.readout(4, 6))]
JUNK += [jb.full(), jb.autodiff(), jb.newton(), jb.chrono(9), jb.orthogonal(), jb.squared_error]
JUNK += [jb.Carry, jb.Batch, optax.adam, optax.sgd(0.1), optax.trace(0.9)]
JUNK += [optax.GradientTransformation(1, 2)]

DTYPES = [
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int8",
    "uint8",
    "uint32",
    "bool",
    "complex128",
    "complex64",
]
ODD = {  # arrays of NumPy that JAX cannot take: how each is made, and its cure
    "masked": (np.ma.masked_array, r"fill in what is masked: x\.filled"),
    "big-endian": (lambda z: z.astype(z.dtype.newbyteorder(">")), "change its byte order by x.astype"),
    "longdouble": (lambda z: z.astype("g"), "cast it by x.astype"),
    "objects": (lambda z: z.astype(object), "pass numbers or bools of one dtype"),
    "fields": (lambda z: np.zeros(z.shape, [("a", z.dtype)]), "pass numbers or bools of one dtype"),
}
NUMBERS = [math.nan, math.inf, -math.inf, 1e300, -1e300, 1e-310, 0.0, 7.0, -1.0]


def junk(right):
    """Something else altogether."""
    return st.sampled_from(JUNK)


def keys(right):
    """Keys of other shapes and of the older kind."""
    others = [OLD_KEY[None], OLD_KEY[:1], OLD_KEY.astype(int), np.asarray(OLD_KEY), jax.random.key(2)]
    return st.sampled_from(others) | junk(right)


def arrays(right):
    """An array of another shape, dtype, of other values, in a container, or none."""
    if jnp.issubdtype(right.dtype, jax.dtypes.prng_key):
        return keys(right)
    z = jnp.asarray(right)
    dtypes = st.sampled_from([d for d in DTYPES if d != z.dtype]).map(z.astype)
    return st.one_of(_of_another_shape(z), dtypes, _of_other_values(z), _in_a_container(z), junk(right))


@st.composite
def _of_another_shape(draw, z):
    shape, at = list(z.shape), draw(st.sampled_from(range(max(1, z.ndim))))
    change = draw(st.sampled_from(["new", "drop", "resize", "turn", "flat"])) if shape else "new"
    if change == "turn":
        return z.transpose(draw(st.permutations(range(z.ndim))))
    if change == "new":
        shape.insert(at, draw(st.sampled_from([1, 2])))
    elif change == "drop":
        shape.pop(at)
    elif change == "resize":
        shape[at] = draw(st.sampled_from([0, 1, shape[at] - 1, shape[at] + 1]))
    else:
        shape = [z.size]
    return jnp.asarray(np.resize(z, shape).astype(z.dtype))


@st.composite
def _of_other_values(draw, z):
    if z.dtype == bool:
        return jnp.asarray(draw(st.lists(st.booleans(), min_size=z.size, max_size=z.size))).reshape(z.shape)
    is_floating = jnp.issubdtype(z.dtype, jnp.floating)
    value = draw(st.sampled_from(NUMBERS if is_floating else [-1, 0, 6, 100]))
    at = draw(st.sampled_from([..., *np.ndindex(z.shape)]))
    return z.at[at].set(jnp.asarray(value, z.dtype))


@st.composite
def _in_a_container(draw, z):
    of = [np.asarray, list, tuple] if z.ndim else [np.asarray]
    of += [str, lambda z: z.tolist(), lambda z: [z], lambda z: (z, z), lambda z: {"a": z}, lambda z: None]
    of += [lambda z: np.asarray(z, object), lambda z: jax.ShapeDtypeStruct(z.shape, z.dtype)]
    return draw(st.sampled_from(of))(z)


def trees(right):
    """A tree with another leaf, with another structure, or none."""
    return st.one_of(_with_another_leaf(right), _of_another_structure(right), junk(right))


@st.composite
def _with_another_leaf(draw, tree):
    leaves, structure = jax.tree.flatten(tree)
    at = draw(st.sampled_from(range(len(leaves))))
    leaves[at] = draw(arrays(leaves[at]))
    return jax.tree.unflatten(structure, leaves)


@st.composite
def _of_another_structure(draw, tree):
    parts = list(tree.values() if isinstance(tree, dict) else tree)
    made = [parts, tuple(parts), (tree,), [tree], {"params": tree}, parts[:-1], [*parts, parts[0]], parts[0]]
    made += [jax.tree.leaves(tree), None]
    if hasattr(tree, "_fields"):
        other = {draw(st.sampled_from(tree._fields)): draw(junk(None))}
        made += [tree._asdict(), type(tree)(*draw(st.permutations(parts))), *[tree._replace(**other)] * 3]
    return draw(st.sampled_from(made))


@st.composite
def lists(draw, right):
    """A list with other members, or none."""
    made = [tuple(right), right[::-1], [right], right[:1], [*right, draw(junk(None))]]
    return draw(st.sampled_from(made) | junk(right))

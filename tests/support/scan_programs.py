"""What `jb.scan` is compared with: the program of each gradient method, written with jax.lax.scan.

A program is a scan with something between its steps; its derivative by JAX is the gradient that is wanted.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jax_bptt as jb

RATE, LARGEST = 0.3, 0.2  # of artbp; of clipped


def weighted(s):
    """The carry itself, and 1 / (1 − c) times its derivative."""
    return jax.tree.map(
        lambda z: z + (1 / (1 - RATE) - 1) * (z - jax.lax.stop_gradient(z)) if _is_float(z) else z, s
    )


@jax.custom_vjp
def _clipped(leaves):
    return leaves


def _clip(_, d):
    squared = sum(jnp.square(jnp.abs(z)).sum().astype(float) for z in d)
    above = squared > LARGEST**2
    scale = jnp.where(above, LARGEST / jnp.sqrt(jnp.where(above, squared, 1.0)), 1.0)
    return ([z * scale.astype(z.dtype) for z in d],)


_clipped.defvjp(lambda s: (s, None), _clip)


def clipped(s):
    """The carry itself; the norm of what comes back is clipped."""
    floats, (others, how) = partition(s)
    return merge(_clipped(floats), others, how)


class Program(NamedTuple):
    """What a gradient method differentiates.

    Attributes:
      link: what the carry goes through from one step to the next.
      window, stride: those of `truncated`; None for one piece.
    """

    link: Callable[[Any], Any] | None = None
    window: int | None = None
    stride: int | None = None


PLAIN = Program()
EXACT: dict[str, Any] = {
    "full": jb.full(),
    "full in chunks": jb.full(chunk=2),
    "full, half recomputed": jb.full(chunk=3, recompute=0.5),
    "full, slopes kept": jb.full(recompute=False),
    "full, recomputed": jb.full(recompute=True),
    "checkpointed": jb.checkpointed(),
    "checkpointed, few slots": jb.checkpointed(slots=2, chunk=2),
    "checkpointed, one slot": jb.checkpointed(slots=1, chunk=1),
    "checkpointed on the host": jb.checkpointed(host=True),
    "truncated to all steps": jb.truncated(99),
    "sliding over all steps": jb.truncated(99, stride=2),
    "clipped where nothing is": jb.clipped(1e6),
    "rtrl": jb.rtrl(),
    "parallel": jb.parallel(),
    "newton": jb.parallel(jb.newton()),
    "autodiff": jb.autodiff(),
}
INEXACT: dict[str, tuple[Any, Program]] = {
    "truncated to 1": (jb.truncated(1), Program(window=1)),
    "truncated to 3": (jb.truncated(3), Program(window=3)),
    "sliding, every step": (jb.truncated(3, stride=1), Program(window=3, stride=1)),
    "sliding, every second": (jb.truncated(4, stride=2), Program(window=4, stride=2)),
    "artbp": (jb.artbp(RATE), Program(link=weighted)),
    "clipped": (jb.clipped(LARGEST), Program(link=clipped)),
}


def scan_of(program: Program) -> Callable[..., Any]:
    """A function of the arguments of `jb.scan` but `gradient`: the program."""

    def scan(f, init, xs=None, length=None, reverse=False, **marks):
        steps = jnp.arange(length or len(jax.tree.leaves(xs)[0]))
        read = steps[::-1] if reverse else steps

        def run(between):
            cut = marks.get("cut", jnp.zeros(len(steps), bool))
            cut = cut | between.reshape(-1, *[1] * (cut.ndim - 1))
            return _by_lax_scan(program.link, f, init, xs, length, reverse, {**marks, "cut": cut})

        if program.window is None:
            return run(jnp.zeros(len(steps), bool))
        if program.stride is None:
            return run((read % program.window == 0) & (read > 0))

        def block(first_loss):
            end = jnp.minimum(first_loss + program.stride, len(steps))
            return run((read == end - program.window) & (read > 0))

        # each block of losses takes its outputs from a run of its own, which is cut where its window begins
        last, ys = jax.lax.map(block, steps[:: program.stride])
        return jax.tree.map(lambda z: z[-1], last), jax.tree.map(
            lambda z: z[read // program.stride, steps], ys
        )

    return scan


def _by_lax_scan(link, f, init, xs, length, reverse, marks):
    def step(s, at):
        x, mark = at
        s = link(s) if link else s
        s = where(mark["cut"], jax.lax.stop_gradient(s), s)
        s = where(mark["reset"], init, s) if "reset" in mark else s
        if "mask" not in mark:
            return f(s, x)
        new, y = f(s, where(mark["mask"], x, zeros(x)))
        return where(mark["mask"], new, s), where(mark["mask"], y, zeros(y))

    return jax.lax.scan(step, init, (xs, marks), length=length, reverse=reverse)


def zeros(tree):
    return jax.tree.map(jnp.zeros_like, tree)


def where(mark, chosen, other):
    """Leaf by leaf, and by row where the mark has rows; a leaf without rows is `chosen`."""

    def leaf(a, b):
        if jnp.ndim(b) < mark.ndim:
            return a
        wide = jnp.broadcast_to(mark.reshape(mark.shape + (1,) * (jnp.ndim(b) - mark.ndim)), jnp.shape(b))
        return jnp.where(wide, a, b)

    return jax.tree.map(leaf, chosen, other)


def partition(tree):
    """The floating and complex leaves as a list, and the rest, from which `merge` puts the tree together."""
    leaves, structure = jax.tree.flatten(tree)
    floats = [_is_float(z) for z in leaves]
    chosen = [z for z, is_float in zip(leaves, floats, strict=True) if is_float]
    others = [z for z, is_float in zip(leaves, floats, strict=True) if not is_float]
    return chosen, (others, (structure, floats))


def _is_float(leaf):
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def merge(chosen, others, how):
    (structure, floats), chosen, others = how, iter(chosen), iter(others)
    return jax.tree.unflatten(structure, [next(chosen if is_float else others) for is_float in floats])


def of_floats(f, *args):
    """f of the floating leaves of its arguments, with the floating leaves of its result; and those leaves."""
    floats, (rest, how) = partition(args)
    outs = []

    def g(floats):
        chosen, (others, structure) = partition(f(*merge(floats, rest, how)))
        outs.append(structure)
        return chosen, others

    return g, floats, outs


class Result(NamedTuple):
    """The outputs of a scan, and its gradient by the floating leaves of weights, init and xs."""

    out: Any
    gradient: list


def result_of(scan, body, args, seed=0, build=None, **given):
    """One scan over the body with random cotangents on every floating leaf; args are weights, init, xs."""

    def run(weights, init, xs):
        return scan((build or body.build)(weights), init, xs, length=body.length, **given)

    f, floats, structures = of_floats(run, *args)
    chosen, back, others = jax.vjp(f, floats, has_aux=True)
    numbers = np.random.default_rng(seed)
    cotangents = [cotangent(numbers, z) for z in chosen]
    return Result(merge(chosen, others, structures[-1]), back(cotangents)[0])


def orders(scan, body, args, forward=True, **given):
    """The derivatives of the gradient: reverse over reverse, and forward over reverse."""

    def gradient(*args):
        return result_of(scan, body, args, **given).gradient

    g, floats, _ = of_floats(gradient, *args)
    directions = [jnp.cos(z) for z in floats]
    _, back = jax.vjp(lambda z: g(z)[0], floats)
    derivatives = {"reverse": back(directions)[0]}
    if forward:
        derivatives["forward"] = jax.jvp(lambda z: g(z)[0], (floats,), (directions,))[1]
    return derivatives


def cotangent(numbers, z):
    """Random numbers like z, complex if z is."""
    d = numbers.standard_normal(z.shape) + (
        1j * numbers.standard_normal(z.shape) if jnp.iscomplexobj(z) else 0
    )
    return jnp.asarray(d).astype(z.dtype)


def differences(one, wanted, tolerance):
    """What differs between two results: a tree, a dtype, a shape, an output or a gradient; empty if none."""
    if jax.tree.structure(one) != jax.tree.structure(wanted):
        return [f"{jax.tree.structure(one)} for {jax.tree.structure(wanted)}"]
    named = jax.tree_util.tree_leaves_with_path(one)
    wrong = []
    for (path, a), b in zip(named, jax.tree.leaves(wanted), strict=True):
        name = jax.tree_util.keystr(path)
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            wrong.append(f"{name}: {a.dtype}{a.shape} for {b.dtype}{b.shape}")
        elif ratio(a, b) >= (min(tolerance, 1e-14) if name.startswith(".out") else tolerance):
            wrong.append(f"{name}: {ratio(a, b):.1e}")
    return wrong


def ratio(a, b):
    """‖a − b‖ / ‖b‖; infinite where one is not finite."""
    if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    kind = complex if np.iscomplexobj(a) else float
    a, b = (np.asarray(z).astype(kind) for z in (a, b))
    gap, size = np.linalg.norm(np.ravel(a - b)), np.linalg.norm(np.ravel(b))
    one = 0.0 if gap == size == 0 else gap / size if size else np.inf
    return one if np.isfinite(one) else np.inf

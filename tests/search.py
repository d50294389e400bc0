"""A random search for wrong derivatives: networks x gradient methods x marks and weights x roads x orders.

Each number is a problem: `python tests/search.py 0 500` tries the problems 0 to 499 and prints what failed.
A road and a derivative of it (forward over reverse where the number is even, else reverse over reverse) are
compared with the program that the gradient method stands for, a loop in plain
JAX (`support.roads`), in float64; a third of the problems are computed in float32. A method that refuses a
second derivative by a ValueError that says what to do counts as right, where `support.roads` expects it.
"""

import argparse
import collections
import os
import time

from support.compile_options import FLAGS

os.environ["XLA_FLAGS"] = FLAGS  # before jax is imported
os.environ["JAX_ENABLE_X64"] = "1"

import jax
import jax.numpy as jnp
import numpy as np
from cases import CELLS, H, I
from support.roads import BY_CLASS, ONCE, PLAIN, PROGRAMS, ROADS, Problem, orders

import jax_bptt as jb

SECOND = "forward over reverse", "reverse over reverse"
LIMITS = {"float64": {"first": 1e-11, "second": 1e-10}, "float32": {"first": 3e-5, "second": 1e-3}}


def _layer_norm(size):
    def init(key):
        w_x, w_h, b = jb.elman(size, H).init(key)
        return _NormParams(w_x, w_h, b + 1, b)

    def step(p, s, x):
        z = x @ p.w_x + s.h @ p.w_h
        z = z - z.mean()
        return jb.Carry(jnp.tanh(p.gain * z / jnp.sqrt((z * z).mean() + 0.1) + p.b))

    return jb.step_cell(size, H, step, init)


_NormParams = collections.namedtuple("_NormParams", "w_x w_h gain b")

KINDS = {
    "elman": (lambda n: jb.elman(n, H), CELLS["elman-tanh"].plain),
    "lstm": (lambda n: jb.lstm(n, H), CELLS["lstm"].plain),
    "peephole": (lambda n: jb.lstm(n, H, peephole=True), CELLS["lstm-peephole"].plain),
    "learned lstm": (lambda n: jb.learn_carry(jb.lstm(n, H)), CELLS["lstm"].plain),
    "gru": (lambda n: jb.gru(n, H), CELLS["gru"].plain),
    "gru, reset before": (
        lambda n: jb.learn_carry(jb.gru(n, H, reset_after=False)),
        CELLS["gru-reset-before"].plain,
    ),
    "gru, heads": (lambda n: jb.gru(n, H, heads=2), CELLS["gru-heads"].plain),
    "projected": (lambda n: jb.lstm(n, 6, projection=H), CELLS["lstm-projected"].plain),
    "leaky": (lambda n: jb.leaky(n, H), CELLS["leaky"].plain),
    "mgu": (lambda n: jb.mgu(n, H), CELLS["mgu"].plain),
    "indrnn": (lambda n: jb.indrnn(n, H, activation="tanh"), CELLS["indrnn"].plain),
    "own": (lambda n: CELLS["own-pointwise"].cell, CELLS["own-pointwise"].plain),
    "layer norm": (_layer_norm, CELLS["own-layer-norm"].plain),
}


def draw(number):
    """The problem of this number, the name of its method and that of its road, its dtype and a direction."""
    rng = np.random.default_rng(number)

    def some(names):
        return list(names)[rng.integers(len(names))]

    road, method = some(ROADS), some([*PROGRAMS, *ONCE])
    method = "rtrl" if road == "rtrl_step" else method
    dtype = "float32" if rng.random() < 1 / 3 else "float64"
    steps, rows = some((1, 2, 3, 4, 5, 6, 7, 8, 8, 9)), some([(), (2,), (3,), (2, 2)])
    layers, plains, size = [], [], I
    for number_of_layer in range(1 if road in ("unroll", "rtrl_step") else rng.integers(1, 3)):
        kinds = [k for k in KINDS if k != "own" or number_of_layer == 0]
        (make, plain) = KINDS[some(kinds)]
        cell, both = make(size), rng.random() < 0.25 and road not in ("unroll", "rtrl_step")
        residual = size == H and not both and rng.random() < 0.5
        layers.append(jb.layer(cell, backward=make(size) if both else None, residual=residual))
        plains.append(plain)
        size = 2 * H if both else H
    last = len(rows) == 1 and road != "rtrl_step" and rng.random() < 0.2
    readout = jb.readout(size, 2)
    net = jb.network(layers, jb.last(readout) if last else readout)

    def normal(shape, scale=1.0):
        return jnp.asarray(scale * rng.normal(size=shape), dtype)

    shares = {"mask": 0.7, "reset": 0.25, "cut": 0.3}
    names = [n for n in shares if rng.random() < 0.4 or (n == "cut" and method == "artbp")]
    marks = {n: rng.random((steps, *rows)) < shares[n] for n in names}
    if "mask" in marks:
        marks["mask"][0] = True  # every row has a step that counts
    params = jax.tree.map(lambda z: z.astype(dtype) + normal(z.shape, 0.3), net.init(jax.random.key(number)))
    zeros = net.initial_carry(params, rows)
    # a custom_vjp of a carry that does not depend on the params has no forward mode
    none = rng.random() < 0.3 or road == "rtrl_step" or (road, method) == ("training steps", "clipped")
    carry = None if none else jax.tree.map(lambda z: normal(z.shape), zeros)
    scored = rows if last else (steps, *rows)
    by_class = road in BY_CLASS
    targets = jnp.asarray(rng.integers(0, 2, scored)) if by_class else normal((*scored, 2))
    d_carry = jax.tree.map(lambda z: normal(z.shape), zeros)
    problem = Problem(net, tuple(plains), params, carry, normal((steps, *rows, I)), targets, d_carry, marks)
    direction = jax.tree.map(lambda z: normal(z.shape), params)
    if rng.random() < 0.5:  # each draw is after those of a problem without weights
        weight = jnp.abs(normal(scored)) + 0.1 if by_class else normal(scored)  # N must not be near 0
        unscored = jnp.asarray(rng.random(scored) < 0.3)
        unscored = unscored & (jnp.arange(weight.size).reshape(scored) > 0)
        problem = problem._replace(weight=jnp.where(unscored, jnp.zeros_like(weight), weight))
    if "reset" in marks and road != "rtrl_step" and rng.random() < 0.5:
        starts = jax.tree.map(lambda z: normal((steps, *z.shape)), zeros)
        problem = problem._replace(marks={**marks, "starts": starts})
    return problem, method, road, dtype, direction


def gap(found, wanted):
    """The largest difference of a leaf, relative to its norm and a thousandth of the whole tree's."""
    whole = np.sqrt(sum(np.sum(np.square(np.asarray(z, float))) for z in jax.tree.leaves(wanted)))
    ratios = [0.0]
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a, float), np.asarray(b, float)
        norm = np.linalg.norm(b) + 1e-3 * whole
        difference = np.linalg.norm(a - b)
        ratios.append(0.0 if difference == 0 else difference / norm if norm else np.inf)
    return max(r if np.isfinite(r) else np.inf for r in ratios)


def double(tree):
    return jax.tree.map(lambda z: z.astype("float64") if z.dtype == "float32" else z, tree)


def attempt(number):
    """What is wrong with this problem: (order, words) for each failure; and the number of comparisons."""
    problem, method, road, dtype, direction = draw(number)
    value, program = PROGRAMS.get(method) or (ONCE[method], PLAIN)
    found, _ = ROADS[road](problem, value, program)
    wide = Problem(problem.net, problem.plains, *double(problem[2:]))
    _, wanted = ROADS[road](wide, value, program)

    def run(f, params):
        try:
            return jax.jit(f)(params)
        except Exception as error:  # whatever it is, it is what the user would see
            return error

    taken = ("first", SECOND[number % 2])
    one_road, other_road = orders(found, direction), orders(wanted, double(direction))
    try:
        ours = jax.jit(lambda p: {name: one_road[name](p) for name in taken})(problem.params)
    except Exception:
        ours = {name: run(one_road[name], problem.params) for name in taken}
    right = jax.jit(lambda p: {name: other_road[name](p) for name in taken})(wide.params)
    failures = []
    for name in right:
        if isinstance(ours[name], Exception):
            first = road != "what value_and_grad returns beside" and name == "first"
            expected = method in ONCE and not first and isinstance(ours[name], ValueError)
            if not (expected and "use" in str(ours[name])):
                failures.append((name, f"{type(ours[name]).__name__}: {ours[name]}".splitlines()[0][:120]))
            continue
        ratio = gap(ours[name], right[name])
        if ratio > LIMITS[dtype]["first" if name == "first" else "second"]:
            failures.append((name, f"off by {ratio:.1e} of the norm"))
    weight = () if problem.weight is None else ("weight",)
    marks = "+".join((*problem.marks, *weight)) or "no marks"
    print_as = f"{number}: {road}, {method}, {dtype}, {marks}, T={len(problem.xs)}, {problem.net}"
    return print_as, failures, len(right)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("first", type=int)
    parser.add_argument("end", type=int)
    given = parser.parse_args()
    begun, wrong, compared, kinds = time.time(), 0, 0, collections.Counter()
    for number in range(given.first, given.end):
        words, failures, comparisons = attempt(number)
        compared += comparisons
        wrong += bool(failures)
        for order, what in failures:
            kinds[words.split(", T=")[0].split(": ")[1].rsplit(", float", 1)[0] + ", " + order] += 1
            print(f"{words}\n    {order}: {what}", flush=True)
        if number % 20 == 19:
            jax.clear_caches()
            seconds = time.time() - begun
            print(f"... {number + 1 - given.first} problems, {wrong} wrong, {seconds:.0f} s", flush=True)
    for kind, times in kinds.most_common():
        print(f"{times:4d}  {kind}")
    problems, failed = given.end - given.first, sum(kinds.values())
    print(f"{problems} problems with {compared} comparisons: {wrong} with {failed} failed")


if __name__ == "__main__":
    main()

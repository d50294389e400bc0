"""Programs of E from the states of a cell, the library's and a loop's, with respect to all that they read."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from cases import CELLS, I

import jax_bptt as jb
from jax_bptt.base.trees import differentiable, merged
from support import noisy_cell as noisy
from support.network_by_loop import T, states_one_way
from support.roads import PLAIN

SLIDING = 4, 2  # the window and the stride of the truncated method that is not exact


def some(tree, key):
    """Random numbers in place of those of a tree; keys and counters stay."""
    leaves, structure = jax.tree.flatten(differentiable(tree))
    keys = jax.random.split(jax.random.key(key), len(leaves))
    drawn = [jax.random.normal(k, z.shape, z.dtype) for k, z in zip(keys, leaves, strict=True)]
    return merged(jax.tree.unflatten(structure, drawn), tree)


def _weighed(share, z):
    return z * jnp.broadcast_to(share.reshape(-1, *[1] * (z.ndim - 1)), z.shape)


class Runs:
    """A cell with two independent programs of E: the library's and a loop's."""

    def __init__(self, cell, plain, rows, reverse, with_starts=True, steps=T):
        self.cell, self.plain, self.reverse = cell, plain, reverse
        params = some(cell.init(jax.random.key(0)), 1)
        initial = cell.initial_carry(params, rows)
        self.like = type(initial)
        pattern = np.arange(steps * max(1, int(np.prod(rows)))).reshape(steps, *rows)
        self.marks = {"mask": pattern % 5 != 3, "reset": pattern % 4 == 2, "cut": pattern % 6 == 4}
        xs = jax.random.normal(jax.random.key(2), (steps, *rows, I))
        every = jax.tree.map(lambda z: jnp.broadcast_to(z, (steps, *z.shape)), initial)
        if with_starts and "key" in self.like._fields:  # other keys than those of the initial carry
            every = every._replace(key=jax.random.split(jax.random.key(9), every.key.shape))
        starts = some(every, 3) if with_starts else every
        self.at = tuple(map(differentiable, (params, some(initial, 4), xs, starts)))
        self.fixed, self.with_starts = (params, initial, xs, starts), with_starts
        self.weights = differentiable((some(initial, 5), some(every, 6)))
        self.read = np.arange(steps)[::-1] if reverse else np.arange(steps)

    def whole(self, at):
        return tuple(merged(part, whole) for part, whole in zip(at, self.fixed, strict=True))

    def run(self, method, at):
        params, carry, xs, starts = self.whole(at)
        starts = starts if self.with_starts else None
        marks = {**self.marks, "reverse": self.reverse, "starts": starts}
        return jb.unroll_states(self.cell, params, carry, xs, gradient=method, **marks)

    def loop(self, program, at, marks=None):
        params, carry, xs, starts = self.whole(at)
        marks = {**(marks or self.marks), "starts": starts._asdict()}
        found = states_one_way(self.plain, params, carry._asdict(), xs, marks, self.reverse, program)
        return tuple(self.like(**part) for part in found)

    def error(self, run, weights=None):
        def of(at):
            found = differentiable(run(at))
            return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, weights or self.weights, found)))

        return of

    def sliding(self, window, stride):
        """The sum over blocks of losses, each with a cut `window` steps before its end."""

        def gradient(at):
            total = []
            for first in range(0, len(self.read), stride):
                end = min(first + stride, len(self.read)) - 1
                inside = ((first <= self.read) & (self.read <= end)).astype(float)
                of_carry, of_states = self.weights
                of_states = jax.tree.map(functools.partial(_weighed, inside), of_states)
                of_carry = jax.tree.map(lambda z, end=end: z * float(end == len(self.read) - 1), of_carry)
                border = ((self.read == end - window + 1) & (self.read > 0)).reshape(
                    -1, *[1] * (self.marks["cut"].ndim - 1)
                )
                marks = {**self.marks, "cut": self.marks["cut"] | border}
                run = functools.partial(self.loop, PLAIN, marks=marks)
                total.append(jax.grad(self.error(run, (of_carry, of_states)))(at))
            return jax.tree.map(lambda *z: sum(z), *total)

        return gradient

    def ours(self, method):
        return jax.grad(self.error(functools.partial(self.run, method)))

    def wanted(self, program):
        return jax.grad(self.error(functools.partial(self.loop, program)))


LSTM = CELLS["lstm"].cell, CELLS["lstm"].plain
NOISY = noisy.CELL, noisy.plain

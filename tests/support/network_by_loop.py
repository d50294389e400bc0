"""A network with layers, directions and residuals as a loop over time in plain JAX, and a problem for it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from cases import CELLS, H, I, initial

import jax_bptt as jb
from support import witnesses as w

T, B, O = 6, 3, 2  # noqa: E741
ROWS = {name: row for name, row in CELLS.items() if row.cell.hidden_size == H}


class Program(NamedTuple):
    """What a gradient method differentiates: the loop, with something between its steps.

    Attributes:
      link: what the carry goes through from one step to the next, a function of its dict.
      window: the carry is a number where a piece of so many steps begins; None for one piece.
    """

    link: Callable[[dict], dict] | None = None
    window: int | None = None


PLAIN = Program()


def scan_one_way(plain, p, state, xs, marks, backwards, program=PLAIN):
    """The last state and h_1..h_T of one direction."""
    last, states = states_one_way(plain, p, state, xs, marks, backwards, program)
    return last, states["h"]


def states_one_way(plain, p, state, xs, marks, backwards, program=PLAIN):
    """One direction as a scan over time; marks as the tests understand them, starts as a dict."""
    p = p if isinstance(p, dict) else p._asdict()
    start = None if marks.get("starts") else initial(None, jnp, p, state)
    no = jnp.zeros(xs.shape[:-1], bool)
    here = {"reset": no, "cut": no, "mask": ~no, **marks}
    if backwards == "a layer":  # a reset stands between t − 1 and t, from either side
        ends = {n: here.get(n) for n in ("reset", "cut", "starts")}
        here |= jax.tree.map(lambda z: jnp.concatenate([z[1:], jnp.zeros_like(z[:1])]), ends)
    read = jnp.arange(len(xs)).reshape(-1, *[1] * (xs.ndim - 2))
    read = len(xs) - 1 - read if backwards else read
    if program.window:
        here["cut"] = here["cut"] | (read % program.window == 0) & (read > 0)

    def where(mark, chosen, other):
        wide = {n: mark.reshape(mark.shape + (1,) * (z.ndim - mark.ndim)) for n, z in other.items()}
        return {n: jnp.where(wide[n], chosen[n], z) for n, z in other.items()}

    def step(state, at_t):
        x, mark = at_t
        if program.link:  # of what has a derivative
            numbers = {n: z for n, z in state.items() if jnp.issubdtype(z.dtype, jnp.inexact)}
            state = {**state, **program.link(numbers)}
        state = where(mark["cut"], jax.lax.stop_gradient(state), state)
        state = where(mark["reset"], mark.get("starts") or start, state)
        state = where(mark["mask"], plain(jnp, p, state, x), state)
        return state, state

    # a custom_vjp in jax.lax.scan has no forward mode over reverse; written out it has
    scan = _written_out if program.link else jax.lax.scan
    return scan(step, state, (xs, here), reverse=bool(backwards))


def _written_out(step, state, data, reverse):
    outs = {}
    for t in reversed(range(len(data[0]))) if reverse else range(len(data[0])):
        state, outs[t] = step(state, jax.tree.map(lambda z, t=t: z[t], data))
    return state, jax.tree.map(lambda *z: jnp.stack(z), *[outs[t] for t in sorted(outs)])


def _ends(hs, forward, mask):
    """h of each row where each direction ends, row by row in Python."""
    rows = []
    for b in range(hs.shape[1]):
        valid = [t for t in range(len(hs)) if mask is None or mask[t, b]]
        end, begin = (valid[-1], valid[0]) if valid else (len(hs) - 1, 0)
        rows.append(jnp.concatenate([hs[end, b, :forward], hs[begin, b, forward:]]))
    return jnp.stack(rows)


def _both(layer, ahead, back):
    if layer.merge == "concatenate":
        return jnp.concatenate([ahead, back], -1)
    return ahead + back if layer.merge == "sum" else (ahead + back) / 2


def by_loop(net, plains, params, carry, xs, marks, program=PLAIN):
    """Outputs and last states of a network from `plains`, one step function per cell; carry may be None."""
    if "mask" in marks:
        xs = jnp.where(marks["mask"][..., None], xs, 0.0)
    last = []
    zeros = net.initial_carry(params, xs.shape[1:-1])  # for its shapes
    for number, (layer, plain, p) in enumerate(zip(net.layers, plains, params.cells, strict=True)):

        def run(p, s, zeros, starts, backwards, xs=xs, plain=plain):
            own = zeros._asdict()
            s = initial(None, jnp, p._asdict(), own) if s is None else s._asdict()
            of_layer = {**marks, "starts": None if starts is None else starts._asdict()}
            end, hs = scan_one_way(plain, p, s, xs, of_layer, backwards, program)
            return type(zeros)(**end), hs

        s, back_to = (None if z is None else z[number] for z in (carry, marks.get("starts")))
        if layer.backward is None:
            end, hs = run(p, s, zeros[number], back_to, False)
        else:
            (to_right, to_left), (ahead, behind) = ((None, None) if z is None else z for z in (s, back_to))
            right, hs = run(p.forward, to_right, zeros[number].forward, ahead, False)
            left, hs_left = run(p.backward, to_left, zeros[number].backward, behind, "a layer")
            end, sides = jb.Directions(right, left), (hs, hs_left)
            hs = _both(layer, *sides)
        last.append(end)
        before, xs = xs, hs + xs if layer.residual else hs
    if net.readout.of_last:
        top, mask = net.layers[-1], marks.get("mask")
        size = top.forward.hidden_size
        xs = _ends(xs if top.merge == "concatenate" else jnp.concatenate(sides, -1), size, mask)
        if top.merge != "concatenate":
            of_ends = _ends(jnp.concatenate([before, before], -1), size, mask)
            xs = _both(top, xs[:, :size], xs[:, size:])
            xs = xs + (of_ends[:, :size] + of_ends[:, size:]) / 2 if top.residual else xs
    z = xs @ params.readout.w_y
    return tuple(last), z + jnp.broadcast_to(params.readout.b_y, z.shape)


def some_marks():
    pattern = np.arange(T * B).reshape(T, B)
    mask = np.array(pattern % 5 != 3)
    mask[:, 1] = False  # a row of length zero
    return {"mask": mask, "reset": pattern % 7 == 2}


def problem(net, marks):
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


def assert_agreement(net, plains, marks):
    """value_and_grad, by hand, against jax.grad of the loop."""
    params, carry, xs, targets = problem(net, marks)
    counts = marks.get("mask")
    if counts is not None and net.readout.of_last:
        counts = counts.any(axis=0)

    def of_loop(params):
        last, ys = by_loop(net, plains, params, carry, xs, marks)
        squares = (ys - targets) ** 2
        return jnp.sum(squares if counts is None else jnp.where(counts[..., None], squares, 0.0)), last

    def all_of_them(params):
        found = {"plain": jax.value_and_grad(of_loop, has_aux=True)(params)}
        found["full"] = jb.value_and_grad(net, jb.squared_error)(params, carry, xs, targets, **marks)
        return found

    found = jax.jit(all_of_them)(params)
    wanted = found.pop("plain")
    for name, one in found.items():
        assert not w.wrong(one, wanted, 1e-12), name

"""A network with layers, directions and residuals as a loop over time in plain JAX, and a problem for it."""

import jax
import jax.numpy as jnp
import numpy as np
from cases import CELLS, H, I

import jax_bptt as jb
from support import witnesses as w

T, B, O = 6, 3, 2  # noqa: E741
ROWS = {name: row for name, row in CELLS.items() if row.cell.hidden_size == H}


def scan_one_way(plain, p, state, xs, marks, backwards):
    """One direction as a scan over time; marks as the tests understand them."""
    p = p if isinstance(p, dict) else p._asdict()
    start = {n: jnp.broadcast_to(p[f"{n}_0"], s.shape) if f"{n}_0" in p else 0 * s for n, s in state.items()}
    here = {"reset": jnp.zeros(xs.shape[:-1], bool), "mask": jnp.ones(xs.shape[:-1], bool), **marks}
    if backwards:  # a reset stands between t − 1 and t, from either side
        here["reset"] = jnp.concatenate([here["reset"][1:], jnp.zeros_like(here["reset"][:1])])

    def step(state, at_t):
        x, mark = at_t
        state = {n: jnp.where(mark["reset"][..., None], start[n], s) for n, s in state.items()}
        stepped = plain(jnp, p, state, x)
        state = {n: jnp.where(mark["mask"][..., None], s, state[n]) for n, s in stepped.items()}
        return state, state["h"]

    return jax.lax.scan(step, state, (xs, here), reverse=backwards)


def _ends(hs, forward, mask):
    """h of each row where each direction ends, row by row in Python."""
    rows = []
    for b in range(hs.shape[1]):
        valid = [t for t in range(len(hs)) if mask is None or mask[t, b]]
        end, begin = (valid[-1], valid[0]) if valid else (len(hs) - 1, 0)
        rows.append(jnp.concatenate([hs[end, b, :forward], hs[begin, b, forward:]]))
    return jnp.stack(rows)


def _by_loop(net, plains, params, carry, xs, marks):
    """Features of the last layer and the last states, from `plains`, one step function per cell."""
    if "mask" in marks:
        xs = jnp.where(marks["mask"][..., None], xs, 0.0)
    last = []
    for layer, plain, p, s in zip(net.layers, plains, params.cells, carry, strict=True):
        if layer.backward is None:
            end, hs = scan_one_way(plain, p, s._asdict(), xs, marks, False)
            last.append(type(s)(**end))
        else:
            end, hs = scan_one_way(plain, p.forward, s.forward._asdict(), xs, marks, False)
            end_left, hs_left = scan_one_way(plain, p.backward, s.backward._asdict(), xs, marks, True)
            last.append(jb.Directions(type(s.forward)(**end), type(s.backward)(**end_left)))
            hs = jnp.concatenate([hs, hs_left], -1)
        xs = hs + xs if layer.residual else hs
    if net.readout.of_last:
        xs = _ends(xs, net.layers[-1].forward.hidden_size, marks.get("mask"))
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

    def by_loop(params):
        last, ys = _by_loop(net, plains, params, carry, xs, marks)
        squares = (ys - targets) ** 2
        return jnp.sum(squares if counts is None else jnp.where(counts[..., None], squares, 0.0)), last

    def all_of_them(params):
        found = {"plain": jax.value_and_grad(by_loop, has_aux=True)(params)}
        found["full"] = jb.value_and_grad(net, jb.squared_error)(params, carry, xs, targets, **marks)
        return found

    found = jax.jit(all_of_them)(params)
    wanted = found.pop("plain")
    for name, one in found.items():
        assert not w.wrong(one, wanted, 1e-12), name

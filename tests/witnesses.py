"""Four independent gradients of E = Σ_t <d_h_t, h_t> + <d_carry, s_T>, and how they are compared."""

from __future__ import annotations

from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from cases import Case

import jax_bptt as jb


def unrolled(case: Case, method: jb.GradientMethod) -> Any:
    """The library's outputs as a function of params, carry and xs."""
    return lambda params, carry, xs: jb.unroll(case.row.cell, params, carry, xs, gradient=method)


def manual(case: Case, method: jb.GradientMethod) -> Any:
    """The library's gradient."""
    _, pullback = jax.vjp(jax.jit(unrolled(case, method)), *case.primals())
    return pullback((case.d_carry, case.d_hs))


def plain(case: Case) -> Any:
    """The same outputs by an independent scan over `row.plain`."""

    def run(params: Any, carry: Any, xs: Any) -> Any:
        def step(s: Any, x: Any) -> Any:
            s = type(s)(**case.row.plain(jnp, params._asdict(), s._asdict(), x))
            return s, s.h

        return jax.lax.scan(step, carry, xs)

    return run


def error(case: Case, outputs: Any) -> Any:
    """E of outputs (carry, hs)."""
    products = jax.tree.map(lambda d, out: (d * out).sum(), (case.d_carry, case.d_hs), outputs)
    return sum(jax.tree.leaves(products))


def by_autodiff(case: Case) -> Any:
    """Witness 1: jax.grad of the independent scan."""
    return jax.jit(jax.grad(lambda *a: error(case, plain(case)(*a)), (0, 1, 2)))(*case.primals())


def by_differences(case: Case, h: float = 1e-5) -> Any:
    """Witness 2: central differences of the library's own value, every coordinate."""
    flat, unflatten = jax.flatten_util.ravel_pytree(case.primals())
    value = jax.jit(jax.vmap(lambda z: error(case, unrolled(case, jb.full())(*unflatten(z)))))
    steps = h * jnp.eye(len(flat))
    return unflatten((value(flat[None] + steps) - value(flat[None] - steps)) / (2 * h))


def by_forward_mode(case: Case) -> Any:
    """Witness 3: forward-mode differentiation of the independent scan (what RTRL computes)."""
    return jax.jit(jax.jacfwd(lambda *a: error(case, plain(case)(*a)), (0, 1, 2)))(*case.primals())


def broken_identity(case: Case, found: Any, tolerance: float) -> dict[str, float]:
    """Witness 3 again: <J v, w> = <v, Jᵀ w> for a random v; the relative gap if there is one."""
    keys = iter(jax.random.split(jax.random.key(1), 16))
    v = jax.tree.map(lambda z: jax.random.normal(next(keys), z.shape), case.primals())
    _, jv = jax.jvp(jax.jit(plain(case)), case.primals(), v)
    terms = [float(t) for t in jax.tree.leaves(jax.tree.map(jnp.vdot, v, found))]
    gap = abs(float(error(case, jv)) - sum(terms)) / sum(map(abs, terms))
    return {"gap": gap} if not gap < tolerance else {}


def by_complex_step(case: Case) -> Any:
    """Witness 4: NumPy alone; Im E(z + ih)/h for every coordinate."""
    flat, unflatten = jax.flatten_util.ravel_pytree(case.primals())
    carry_type, d_carry, d_hs = type(case.carry), case.d_carry._asdict(), np.asarray(case.d_hs)
    sizes = np.cumsum([np.size(leaf) for leaf in jax.tree.leaves(case.primals())])[:-1]
    shapes = [leaf.shape for leaf in jax.tree.leaves(case.primals())]
    names = case.params._fields

    def value(z: np.ndarray) -> complex:
        leaves = [part.reshape(s) for part, s in zip(np.split(z, sizes), shapes, strict=True)]
        p = dict(zip(names, leaves[: len(names)], strict=True))
        s = dict(zip(carry_type._fields, leaves[len(names) : -1], strict=True))
        e = 0
        for x, d_h in zip(leaves[-1], d_hs, strict=True):
            s = case.row.plain(np, p, s, x)
            e = e + (d_h * s["h"]).sum()
        return e + sum((np.asarray(d_carry[n]) * s[n]).sum() for n in s)

    point, h = np.asarray(flat, complex), 1e-30
    gradient = [value(point + 1j * h * e).imag / h for e in np.eye(len(flat))]
    return unflatten(jnp.asarray(gradient))


def ratios(found: Any, wanted: Any) -> dict[str, float]:
    """‖found − wanted‖ / ‖wanted‖ for each leaf, by name; a NaN counts as infinite."""
    names = ("params", "carry", "xs")
    out = {}
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        name = (
            names[path[0].idx] + jax.tree_util.keystr(path[1:])
            if hasattr(path[0], "idx")
            else jax.tree_util.keystr(path)
        )
        ratio = np.linalg.norm(np.ravel(a) - np.ravel(b)) / np.linalg.norm(np.ravel(b))
        out[name] = float(ratio) if np.isfinite(ratio) else np.inf
    return out


def wrong(found: Any, wanted: Any, tolerance: float) -> dict[str, float]:
    """The leaves that differ by more than the tolerance; empty if all agree."""
    return {name: ratio for name, ratio in ratios(found, wanted).items() if ratio >= tolerance}

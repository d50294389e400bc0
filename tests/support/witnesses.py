"""Four independent gradients of E = Σ_t <d_h_t, h_t> + <d_carry, s_T>, and how they are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from cases import Case, initial

import jax_bptt as jb


def unrolled(case: Case, method: jb.GradientMethod) -> Any:
    """The library's outputs as a function of params, carry and xs."""
    marks = {**case.marks, "reverse": case.reverse}
    return lambda params, carry, xs: jb.unroll(case.row.cell, params, carry, xs, gradient=method, **marks)


def by_hand(
    case: Case, methods: Sequence[jb.GradientMethod], compiler_options: dict | None = None
) -> list[Any]:
    """The library's gradient by each of these methods, by one program."""

    def gradients(primals: Any, cotangents: Any) -> Any:
        return [jax.vjp(unrolled(case, method), *primals)[1](cotangents) for method in methods]

    return jax.jit(gradients, compiler_options=compiler_options)(case.primals(), (case.d_carry, case.d_hs))


def manual(case: Case, method: jb.GradientMethod, compiler_options: dict | None = None) -> Any:
    """The library's gradient."""
    return by_hand(case, [method], compiler_options)[0]


def one_step(case: Case, np: Any, p: dict, s: dict, x: Any, marks: dict) -> dict:
    """One step with its marks, in terms of np; a number is np.real in numpy, stop_gradient in JAX."""

    def where(mark: Any, chosen: dict, other: dict) -> dict:
        wide = {n: mark.reshape(mark.shape + (1,) * (z.ndim - mark.ndim)) for n, z in other.items()}
        return {n: np.where(wide[n], chosen[n], z) for n, z in other.items()}

    number = jax.lax.stop_gradient if np is jnp else np.real
    if "cut" in marks:
        s = where(marks["cut"], {n: number(z) for n, z in s.items()}, s)
    if "reset" in marks:
        s = where(marks["reset"], initial(case.row, np, p, s), s)
    if "mask" not in marks:
        return case.row.plain(np, p, s, x)
    x = np.where(marks["mask"][..., None], x, np.zeros_like(x))
    return where(marks["mask"], case.row.plain(np, p, s, x), s)


def as_dict(params: Any) -> dict:
    return params if isinstance(params, dict) else params._asdict()


def plain(case: Case) -> Any:
    """The same outputs by an independent scan over `row.plain`."""

    def run(params: Any, carry: Any, xs: Any) -> Any:
        def step(s: Any, at_t: Any) -> Any:
            s = type(s)(**one_step(case, jnp, as_dict(params), s._asdict(), *at_t))
            return s, s.h

        return jax.lax.scan(step, carry, (xs, case.marks), reverse=case.reverse)

    return run


def error(case: Case, outputs: Any) -> Any:
    """E of outputs (carry, hs)."""
    products = jax.tree.map(lambda d, out: (d * out).sum(), (case.d_carry, case.d_hs), outputs)
    return sum(jax.tree.leaves(products))


def by_autodiff(case: Case) -> Any:
    """Witness 1: jax.grad of the independent scan."""
    gradient = jax.grad(lambda *a: error(case, plain(case)(*a)), (0, 1, 2))
    return jax.jit(gradient)(*case.primals())


def by_differences(case: Case, h: float = 1e-5) -> Any:
    """Witness 2: central differences of the library's own value, every coordinate."""
    flat, unflatten = jax.flatten_util.ravel_pytree(case.primals())
    values = jax.vmap(lambda z: error(case, unrolled(case, jb.full())(*unflatten(z))))
    value = jax.jit(values)
    steps = h * jnp.eye(len(flat))
    return unflatten((value(flat[None] + steps) - value(flat[None] - steps)) / (2 * h))


def by_forward_mode(case: Case) -> Any:
    """Witness 3: forward-mode differentiation of the independent scan (what RTRL computes)."""
    gradient = jax.jacfwd(lambda *a: error(case, plain(case)(*a)), (0, 1, 2))
    return jax.jit(gradient)(*case.primals())


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
    d_carry, d_hs = case.d_carry._asdict(), np.asarray(case.d_hs)
    leaves, structure = jax.tree.flatten(case.primals())
    sizes = np.cumsum([np.size(leaf) for leaf in leaves])[:-1]
    order = reversed(range(len(case.xs))) if case.reverse else range(len(case.xs))
    order, marks = list(order), {n: np.asarray(mark) for n, mark in case.marks.items()}

    def value(z: np.ndarray) -> complex:
        parts = [part.reshape(leaf.shape) for part, leaf in zip(np.split(z, sizes), leaves, strict=True)]
        params, carry, xs = jax.tree.unflatten(structure, parts)
        p, s, e = as_dict(params), carry._asdict(), 0
        for t in order:
            s = one_step(case, np, p, s, xs[t], {n: mark[t] for n, mark in marks.items()})
            e = e + (d_hs[t] * s["h"]).sum()
        return e + sum((np.asarray(d_carry[n]) * s[n]).sum() for n in s)

    point, h = np.asarray(flat, complex), 1e-30
    gradient = [value(point + 1j * h * e).imag / h for e in np.eye(len(flat))]
    return unflatten(jnp.asarray(gradient))


def ratios(found: Any, wanted: Any) -> dict[str, float]:
    """‖found − wanted‖ / ‖wanted‖ for each leaf, by name; a NaN counts as infinite."""
    names = ("params", "carry", "xs", "starts")
    out = {}
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        name = (
            names[path[0].idx] + jax.tree_util.keystr(path[1:])
            if hasattr(path[0], "idx")
            else jax.tree_util.keystr(path)
        )
        gap, size = np.linalg.norm(np.ravel(a) - np.ravel(b)), np.linalg.norm(np.ravel(b))
        ratio = 0.0 if gap == size == 0 else gap / size if size else np.inf
        out[name] = float(ratio) if np.isfinite(ratio) else np.inf
    return out


def wrong(found: Any, wanted: Any, tolerance: float) -> dict[str, float]:
    """The leaves that differ by more than the tolerance; empty if all agree."""
    return {name: ratio for name, ratio in ratios(found, wanted).items() if ratio >= tolerance}

"""A function that runs a cell of a framework, and the same function with our gradient, are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from support.witnesses import ratios


def random_like(seed: int, tree: Any) -> Any:
    """Normal numbers of the shapes and dtypes of a tree."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jax.numpy.asarray(draw.normal(size=a.shape), a.dtype), tree)


def compared(theirs: Callable[..., Any], ours: Callable[..., Any], *primals: Any) -> dict[str, float]:
    """‖ours − theirs‖ / ‖theirs‖ by leaf, of the outputs and of the gradients by all arguments.

    Both return the same tree; every leaf of it has a random cotangent.
    """
    wanted, pullback = jax.vjp(jax.jit(theirs), *primals)
    found, our_pullback = jax.vjp(jax.jit(ours), *primals)
    d = random_like(1, wanted)
    pairs = {"outputs": (found, wanted), "gradients": (our_pullback(d), pullback(d))}
    return {f"{kind}{leaf}": r for kind, pair in pairs.items() for leaf, r in ratios(*pair).items()}


def largest(found: dict[str, float], kind: str) -> float:
    """The largest ratio of the outputs or of the gradients."""
    return max(ratio for name, ratio in found.items() if name.startswith(kind))

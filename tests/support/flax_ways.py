"""All ways in which an RNN of Flax arranges a sequence, as one function of its weights, carry and inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

B, T, I, H = 3, 5, 2, 4  # noqa: E741

LENGTHS = jnp.array([T, 1, 3])
WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "reversed": {"reverse": True},
    "reversed, in order": {"reverse": True, "keep_order": True},
    "time first": {"time_major": True, "keep_order": True},
    "lengths": {"seq_lengths": LENGTHS},
    "lengths, reversed": {"seq_lengths": LENGTHS, "reverse": True},
    "lengths, reversed, in order": {"seq_lengths": LENGTHS, "reverse": True, "keep_order": True},
    "lengths, reversed, time first": {"seq_lengths": LENGTHS, "reverse": True, "time_major": True},
}


def in_all_ways(rnn: Callable[..., Any], carry: Any, xs: Any, **options: Any) -> dict[str, Any]:
    """(carry, outputs) of every way; outputs behind a length, on which Flax goes on computing, are zero."""
    made = {}
    for name, way in WAYS.items():
        time_major = "time_major" in way
        inputs = jnp.moveaxis(xs, 1, 0) if time_major else xs
        last, ys = rnn(inputs, initial_carry=carry, return_carry=True, **way, **options)
        if "seq_lengths" in way:
            mask = jnp.arange(T)[None] < LENGTHS[:, None]
            mask = mask.T if time_major else mask
            ys = jax.tree.map(
                lambda y, mask=mask: jnp.where(mask.reshape(mask.shape + (1,) * (y.ndim - 2)), y, 0.0), ys
            )
        made[name] = last, ys
    return made

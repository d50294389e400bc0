"""A system in a free run: its Lyapunov exponents, where it is, its power spectrum; how far two are apart.

    distance(p, q) = √(1 − Σ √(p q))        of Hellinger: 0 if p = q, 1 if p and q have nothing in common

p and q are shares that sum to 1: how often a system is in each small box of the space of its states, or how
the power of each of its variables is spread over the frequencies.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import jax_bptt as jb

TRANSIENT = 500  # steps of a free run that are not looked at
SHOWN = 2000  # states of its path
EDGE, BOXES = 3.5, 28  # the boxes of each variable lie from −EDGE to EDGE
WINDOW = 500  # steps of which one power spectrum is taken


def distance(p: np.ndarray, q: np.ndarray) -> float:
    """The Hellinger distance of shares on the first axis, the mean over all others; 1 where there is none."""
    overlap = np.sqrt(p * q).sum(0)
    return float(np.sqrt(np.clip(1 - np.nan_to_num(overlap), 0, 1)).mean())


def visits(states: np.ndarray) -> np.ndarray:
    """How often the states [T, rows, D] are in each box, [BOXES^D]; what is outside is in the last boxes."""
    width = 2 * EDGE / BOXES
    inside = np.clip(np.nan_to_num(states, posinf=EDGE, neginf=-EDGE), -EDGE, EDGE - width / 2)
    boxes = ((inside + EDGE) / width).astype(int)
    variables = boxes.shape[-1]
    numbers = np.ravel_multi_index(tuple(np.moveaxis(boxes, -1, 0)), (BOXES,) * variables)
    return np.bincount(numbers.ravel(), minlength=BOXES**variables) / numbers.size


def powers(states: np.ndarray) -> np.ndarray:
    """How the power of each variable of the states [T, rows, D] is spread over the frequencies, [F, D].

    It is the mean over windows of WINDOW steps, or of all T if these are fewer. The frequencies are
    1, 2, .. periods a window; NaN for a variable that is not finite or does not move.
    """
    steps = min(WINDOW, len(states))
    windows = states[: len(states) // steps * steps].reshape(-1, steps, *states.shape[1:])
    waves = windows - windows.mean(1, keepdims=True)
    amplitudes = np.fft.rfft(waves * np.hanning(steps)[:, None, None], axis=1)[:, 1:]
    power = np.square(np.abs(amplitudes)).mean((0, 2))
    with np.errstate(invalid="ignore", over="ignore"):
        return power / power.sum(0)


class Attractor(NamedTuple):
    """What is known of a system from a free run.

    Attributes:
      exponents: in nats a step, largest first, [D].
      visits, powers: see the functions of these names.
      path: some of its states, one after the other, [n, D].
    """

    exponents: np.ndarray
    visits: np.ndarray
    powers: np.ndarray
    path: np.ndarray


@functools.partial(jax.jit, static_argnums=(0, 3))
def free_run(cell: jb.StepCell[Any, jb.Carry], params: Any, start: Array, steps: int) -> tuple[Array, Array]:
    """Run a cell that does not read its input, after a transient.

    Args:
      cell: its h is the state.
      params: of the cell.
      start: states to begin with, [rows, D].
      steps: T.

    Returns:
      Exponents in nats a step, the mean of all rows, [D]; and the states, [T, rows, D].
    """
    carry, nothing = jb.Carry(start), jnp.zeros((TRANSIENT + steps, len(start), 1), start.dtype)
    found = jb.lyapunov_spectrum(cell, params, carry, nothing, transient=TRANSIENT)
    _, states = jb.unroll(cell, params, carry, nothing)
    return found.exponents.mean(0), states[TRANSIENT:]


def attractor(exponents: Array, states: Array) -> Attractor:
    """What is known from a free run."""
    some = np.asarray(states)
    return Attractor(np.asarray(exponents), visits(some), powers(some), some[:SHOWN, 0])


def apart(one: Attractor, other: Attractor) -> dict[str, float]:
    """How far two attractors are apart, by what is compared."""
    return {
        "visited states": distance(one.visits, other.visits),
        "power spectrum": distance(one.powers, other.powers),
    }

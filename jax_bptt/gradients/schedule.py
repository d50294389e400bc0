"""Binomial checkpointing reverses n steps when at most m states can be stored.

To reverse a step one needs the state from which it began. At most m states are stored, s_0 among them; every
other state is recomputed by advancing from the nearest stored state before it. The fewest advances are:

    β(m, r) = (m + r)! / (m! r!)        steps that can be reversed with no step advanced over
                                        more than r times                                     (Z1)
    t(n, m) = r n − β(m + 1, r − 1)     where β(m, r − 1) < n ≤ β(m, r)                       (Z2)

This number is reached as follows: advance k steps and store the state there; reverse the n − k later steps
with the m − 1 states that remain; then reverse the first k steps with m states:

    t(n, m) = min over k of (k + t(n − k, m − 1) + t(k, m))                                  (Z3)
    max(β(m, r−2), n − β(m−1, r))  ≤  k  ≤  min(β(m, r−1), n − β(m−1, r−1))  all reach it     (Z4)

All of this is Python on numbers that are known before anything is compiled. t(n, m) counts the advances
only; in addition each of the n steps runs once when it is reversed.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Action(NamedTuple):
    """An action of a schedule may load a state, may then store a state, and always runs one step.

    Attributes:
      load: the slot whose state becomes the current state; −1 leaves the current state as it is.
      keep: the slot in which the current state is then stored; −1 stores nothing.
      step: the step that runs from the current state, counted from 0.
      reverse: True reverses the step, False advances over it.
    """

    load: int
    keep: int
    step: int
    reverse: bool


def advances(n: int, m: int) -> int:
    """This is the smallest number of advances that reverses n steps with m states, s_0 among them.

    t(n, m) = r n − β(m + 1, r − 1)   (Z2)

    Args:
      n: the number of steps, at least 1.
      m: the number of states that can be stored, at least 1.

    Returns:
      t(n, m).

    Reference: Griewank & Walther 2000, Algorithm 799: Revolve, Proposition 1.

    >>> advances(10, 3), advances(100, 10), advances(4, 1)
    (15, 222, 6)
    """
    r = _repetitions(n, m)
    return r * n - _beta(m + 1, r - 1)  # (Z2)


def schedule(n: int, m: int) -> list[Action]:
    """The schedule lists the actions that reverse steps n − 1 to 0 with m states in slots 0 to m − 1.

    The first action stores s_0 in slot 0. The advances before the first reversal go through the steps in
    order, so they are the forward pass.

    Args:
      n: the number of steps, at least 1.
      m: the number of states that can be stored, at least 1.

    Returns:
      The actions in order: t(n, m) advances and n reversals.

    Reference: Griewank & Walther 2000, Algorithm 799: Revolve.

    >>> [(a.step, a.reverse) for a in schedule(3, 2)]
    [(0, False), (1, False), (2, True), (1, True), (0, True)]
    """
    actions: list[Action] = []
    waiting: list[tuple[int, int, int]] = []  # (first step, steps, slot) still to reverse
    first, slot, load, keep = 0, 0, -1, 0
    while True:
        while n > 1:
            k = _advance(n, m - slot)  # slots 0 to slot − 1 hold states that are needed later
            actions.append(Action(load, keep, first, False))
            actions += [Action(-1, -1, step, False) for step in range(first + 1, first + k)]
            waiting.append((first, k, slot))
            first, n, load, keep = first + k, n - k, -1, -1
            if n > 1:
                slot = keep = slot + 1
        actions.append(Action(load, keep, first, True))
        if not waiting:
            return actions
        first, n, slot = waiting.pop()
        load, keep = slot, -1


def _advance(n: int, m: int) -> int:
    """This is the largest of the best k of (Z3), so that few states are stored near the end of the steps."""
    if m == 1:
        return n - 1
    r = _repetitions(n, m)
    return max(1, min(_beta(m, r - 1), n - _beta(m - 1, r - 1)))  # (Z3, Z4)


def _beta(m: int, r: int) -> int:
    return math.comb(m + r, m) if r >= 0 else 0  # (Z1)


def _repetitions(n: int, m: int) -> int:
    r = 0
    while _beta(m, r) < n:
        r += 1
    return r

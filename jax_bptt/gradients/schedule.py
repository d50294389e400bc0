"""Binomial checkpointing: how to go back through n steps when only m states can be kept.

Reversing a step needs the state it began from. With s_0 among them m states are kept; every other one
is made again, by advancing from the nearest kept state before it. The fewest advances:

    β(m, r) = (m + r)! / (m! r!)        steps that can be reversed with no step advanced over
                                        more than r times                                     (Z1)
    t(n, m) = r n − β(m + 1, r − 1)     where β(m, r − 1) < n ≤ β(m, r)                       (Z2)

They are reached by advancing k steps, keeping the state there, reversing the n − k steps behind it with
the m − 1 states that remain, and then the k steps before it with m:

    t(n, m) = min over k of (k + t(n − k, m − 1) + t(k, m))                                  (Z3)
    max(β(m, r−2), n − β(m−1, r))  ≤  k  ≤  min(β(m, r−1), n − β(m−1, r−1))  all reach it     (Z4)

All of this is in Python, on numbers known before anything is compiled; t(n, m) counts advances only,
to which come n steps that are run once more to be reversed.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Action(NamedTuple):
    """One action of a schedule: perhaps load, perhaps keep, then run one step.

    Attributes:
      load: the slot whose state becomes the current one; −1 to go on from the current one.
      keep: the slot in which the current state is then kept; −1 for none.
      step: the step that is run, from the current state, counted from 0.
      reverse: whether to reverse it, or to advance over it.
    """

    load: int
    keep: int
    step: int
    reverse: bool


def advances(n: int, m: int) -> int:
    """The fewest advances to reverse n steps with m states, s_0 among them.

    t(n, m) = r n − β(m + 1, r − 1)   (Z2)

    Args:
      n: steps, at least 1.
      m: states that can be kept, at least 1.

    Returns:
      t(n, m).

    Reference: Griewank & Walther 2000, Algorithm 799: Revolve, Proposition 1.

    >>> advances(10, 3), advances(100, 10), advances(4, 1)
    (15, 222, 6)
    """
    r = _repetitions(n, m)
    return r * n - _beta(m + 1, r - 1)  # (Z2)


def schedule(n: int, m: int) -> list[Action]:
    """The actions that reverse steps n − 1 to 0 with m states in slots 0 to m − 1.

    The first action keeps s_0 in slot 0. Advances before the first reversal go through the steps in
    order; they are what a forward pass does.

    Args:
      n: steps, at least 1.
      m: states that can be kept, at least 1.

    Returns:
      The actions in order: t(n, m) advances and n reversals.

    Reference: Griewank & Walther 2000, Algorithm 799: Revolve.

    >>> [(a.step, a.reverse) for a in schedule(3, 2)]
    [(0, False), (1, False), (2, True), (1, True), (0, True)]
    """
    actions: list[Action] = []
    waiting: list[tuple[int, int, int]] = []  # stretches still to be reversed, with the slot they begin from
    first, slot, load, keep = 0, 0, -1, 0
    while True:
        while n > 1:
            k = _advance(n, m - slot)
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
    """k of (Z3); the largest that is best, so that the first sweep keeps few states near its end."""
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

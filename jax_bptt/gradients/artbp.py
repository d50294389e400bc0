"""Random truncation without bias: what passes a step is worth more, since a cut might have stopped it.

With a cut before each step and row with probability c, drawn independently, and λ̃_{t−1} as in `loops`:

    λ_{t−1} = G_{t−1}                        where cut_t
              G_{t−1} + λ̃_{t−1} / (1 − c)    elsewhere                                        (U1)

A term of the summed chain rule that goes from step t back to step i meets t − i links. Each is open with
probability 1 − c and then multiplies the term by 1/(1 − c), so its expectation is the term itself:

    E[dE/dW] = dE/dW                         over all patterns of cuts

What was bias is now variance, which grows with the number of links that a gradient must pass.
"""

from __future__ import annotations

import functools

import jax

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import number
from jax_bptt.base.errors import bad
from jax_bptt.base.types import Tree
from jax_bptt.cell.step_cell import AnyCell
from jax_bptt.engine.run import Kept, Outputs, Run
from jax_bptt.gradients.full import full, full_with
from jax_bptt.gradients.method import GradientMethod


def _rate(argument: str, rate: object) -> float:
    expected = "a probability in [0, 1)"
    found = number(argument, expected, rate)
    if not 0 <= found < 1:
        raise bad(argument, expected, rate, "pass the one that the cuts are drawn with")
    return found


@cached(rate=_rate)
def artbp(rate: float) -> GradientMethod:
    """An unbiased gradient from sequences cut at random (anticipated reweighted truncated BPTT).

    λ_{t−1} = G_{t−1} + λ̃_{t−1} / (1 − c) where there is no cut   (U1)

    The cuts are data, drawn by you with the same probability and given as the mark `cut`:
    `cut = jax.random.bernoulli(key, rate, (T, *batch_shape))`. In a network all layers share them, and
    the gradient is unbiased if all read forward (where two layers read both ways, a term can meet the
    same link twice). Time and memory as `full`.

    Args:
      rate: c in [0, 1), the probability of a cut before a step.

    Returns:
      The `GradientMethod`; the same object for the same rate.

    Raises:
      ValueError: a rate outside [0, 1); when it is used, a sequence without cuts.

    Reference: Tallec & Ollivier 2017, Unbiasing truncated backpropagation through time.

    >>> artbp(0.1)
    artbp(0.1)
    """
    weighted = functools.partial(_times, 1 / (1 - rate))  # (U1)
    return GradientMethod("artbp", functools.partial(_forward, rate), full_with(weighted))


def _times(weight: float, lam: Tree) -> Tree:
    return jax.tree.map(lambda z: weight * z, lam)


def _forward(rate: float, cell: AnyCell, run: Run) -> tuple[Outputs, Kept]:
    if run.sequence.cut is None:
        fix = f"draw it by jax.random.bernoulli(key, {rate}, xs.shape[:-1])"
        raise bad("cut", "bool marks for gradient=jb.artbp", run.sequence.cut, fix)
    return full().forward(cell, run)

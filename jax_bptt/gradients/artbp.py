"""Random truncation is made unbiased: a gradient that survives a possible cut is scaled up by 1/(1 − c).

Before each step and row there is a cut with probability c, drawn independently. With λ̃_{t−1} as in `loops`:

    λ_{t−1} = G_{t−1}                        where cut_t
              G_{t−1} + λ̃_{t−1} / (1 − c)    elsewhere                                        (U1)

So this is the gradient of a program in which the derivative of every carry is multiplied by 1/(1 − c); a
second derivative is that of the same program.

A term of the summed chain rule that goes from step t back to step i passes t − i links between steps. Each
link is uncut with probability 1 − c and then multiplies the term by 1/(1 − c), so the expected value of the
term is the term itself:

    E[dE/dW] = dE/dW                         over all patterns of cuts

The bias is replaced by variance, which grows with the number of links that a gradient must pass.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp

from jax_bptt.base.caching import cached
from jax_bptt.base.checks import number
from jax_bptt.base.errors import bad
from jax_bptt.engine.engine import Runnable
from jax_bptt.engine.run import Kept, Outputs, Run
from jax_bptt.gradients.full import full
from jax_bptt.gradients.method import GradientMethod


def _rate(argument: str, rate: object) -> float:
    expected = "a probability in [0, 1)"
    found = number(argument, expected, rate)
    if not 0 <= found < 1:
        raise bad(argument, expected, rate, "pass the probability with which you draw the cuts")
    return found


@cached(rate=_rate)
def artbp(rate: float) -> GradientMethod:
    """This method computes an unbiased gradient from randomly cut sequences (ARTBP).

    λ_{t−1} = G_{t−1} + λ̃_{t−1} / (1 − c) where there is no cut   (U1)

    ARTBP stands for anticipated reweighted truncated backpropagation. You draw the cuts with the same
    probability and pass them as the mark `cut`:
    `cut = jax.random.bernoulli(key, rate, (T, *batch_shape))`. All layers of a network share the cuts. The
    gradient is unbiased if all layers read forward; where two layers read both ways, a term can pass the
    same link twice. Time and memory are those of `full`.

    Args:
      rate: c in [0, 1), the probability of a cut before a step, the same that draws the cuts.

    Returns:
      The `GradientMethod`; the same object for the same rate.

    Raises:
      ValueError: the rate is outside [0, 1); or, when the method runs, the sequence has no cuts.

    Reference: Tallec & Ollivier 2017, Unbiasing truncated backpropagation through time.

    >>> artbp(0.1)
    artbp(0.1)
    """
    check = functools.partial(_check, rate)
    return GradientMethod("artbp", functools.partial(_forward, rate), full().backward, check=check)


def _check(rate: float, cell: Runnable, run: Run) -> None:
    if run.sequence.cut is None:
        fix = f"pass cut=jax.random.bernoulli(key, {rate}, (T, *batch_shape))"
        raise bad("cut", "bool marks for gradient=jb.artbp", None, fix)


def _forward(rate: float, cell: Runnable, run: Run) -> tuple[Outputs, Kept]:
    sequence = run.sequence
    assert sequence.cut is not None  # `_check` has refused None
    factor = jnp.full_like(sequence.cut, 1 / (1 - rate), dtype=float)  # (U1)
    return full().forward(cell, run._replace(sequence=sequence._replace(factor=factor)))

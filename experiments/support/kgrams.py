"""The k-gram, which predicts a symbol by counting what followed the last k symbols.

Two ways to go on where the last k were seen seldom. With n the counts, and w(last k) the number of different
symbols that followed them; p_{−1} is uniform:

    Witten-Bell   p_k(c | last k) = (n(last k, c) + w p_{k−1}(c | last k−1)) / (n(last k) + w)
    Kneser-Ney    p_k(c | last k) = (max(n(last k, c) − D, 0) + D w p_{k−1}(c | last k−1)) / n(last k)

Witten-Bell takes from what was seen in proportion to how surprising these k have been. Kneser-Ney takes the
same D from every count. Its p_{k−1} does not count how often c followed the last k−1, but after how many
different symbols before them: a symbol that always follows the same ones is not likely elsewhere.

    D = (n₁ + 1) / (n₁ + 2 n₂ + 2)        n_i: how many counts are i; 1 and 2 so that 0 < D < 1

References: Witten & Bell 1991, The zero-frequency problem (method C); Kneser & Ney 1995, Improved backing-off
for m-gram language modeling; Chen & Goodman 1999, An empirical study of smoothing techniques for language
modeling (interpolated Kneser-Ney).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


def kgram_nats(train: np.ndarray, text: np.ndarray, classes: int, k: int) -> np.ndarray:
    """Nats per symbol of the 0-gram to the k-gram with Witten-Bell's smoothing, over text[1:].

    Args:
      train: codes in 0..classes−1, [N]; what is counted.
      text: codes, [M]; symbol i is predicted from the at most k symbols before it.
      classes: size of the vocabulary.
      k: the longest context.

    Returns:
      [k+1], nats per symbol.

    Raises:
      ValueError: so many classes that k + 1 symbols have no number of 64 bits.
    """
    _check_numbers(classes, k)
    nats = []
    p = np.full(len(text) - 1, 1 / classes)
    for length in range(k + 1):
        here = _found(
            *np.unique(_grams(train, classes, length + 1), return_counts=True), text, classes, length
        )
        smoothed = (here.both + here.different * p) / np.maximum(here.context + here.different, 1)
        p = np.where(here.context > 0, smoothed, p)
        nats.append(-np.log(p).mean())
    return np.array(nats)


def kneser_ney_nats(train: np.ndarray, text: np.ndarray, classes: int, k: int) -> np.ndarray:
    """The same with interpolated Kneser-Ney smoothing; see `kgram_nats`."""
    _check_numbers(classes, k)
    nats = []
    below = np.full(len(text) - 1, 1 / classes)
    for length in range(k + 1):
        pairs, n = np.unique(_grams(train, classes, length + 1), return_counts=True)
        nats.append(-np.log(_discounted(pairs, n, text, classes, length, below)).mean())
        if length < k:
            longer = np.unique(_grams(train, classes, length + 2))  # each once: with what stands before
            pairs, n = np.unique(longer % classes ** (length + 1), return_counts=True)
            below = _discounted(pairs, n, text, classes, length, below)
    return np.array(nats)


def _discounted(
    pairs: np.ndarray, n: np.ndarray, text: np.ndarray, classes: int, length: int, below: np.ndarray
) -> np.ndarray:
    """p of each symbol of text[1:], D taken from every count."""
    here = _found(pairs, n, text, classes, length)
    once, twice = np.sum(n == 1), np.sum(n == 2)
    d = (once + 1) / (once + 2 * twice + 2)
    smoothed = (np.maximum(here.both - d, 0) + d * here.different * below) / np.maximum(here.context, 1)
    return np.where(here.context > 0, smoothed, below)


class _Found(NamedTuple):
    """What was counted at each symbol of text[1:].

    Attributes:
      both: of the symbol after its context.
      context: of its context before any symbol.
      different: how many different symbols followed the context.
    """

    both: np.ndarray
    context: np.ndarray
    different: np.ndarray


def _found(pairs: np.ndarray, n: np.ndarray, text: np.ndarray, classes: int, length: int) -> _Found:
    """Look up counts n of `pairs`, the numbers of a context and the symbol after it, in ascending order."""
    contexts, first, different = np.unique(pairs // classes, return_index=True, return_counts=True)
    n_context = np.add.reduceat(n, first)
    target = text[1:]
    here = np.full(len(target), -1)  # the first symbols of the text have no context this long
    start = max(length, 1)
    here[start - 1 :] = _grams(text, classes, length)[start - length : len(text) - length]
    return _Found(
        _look_up(pairs, n, np.where(here < 0, -1, here * classes + target)),
        _look_up(contexts, n_context, here),
        _look_up(contexts, different, here),
    )


def _grams(codes: np.ndarray, classes: int, length: int) -> np.ndarray:
    """The number of the `length` symbols that begin at each symbol, [N − length + 1]."""
    gram = np.zeros(len(codes) - length + 1, np.int64)
    for i in range(length):
        gram = gram * classes + codes[i : len(codes) - length + 1 + i]
    return gram


def _look_up(keys: np.ndarray, counts: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, counts[at], 0)


def _check_numbers(classes: int, k: int) -> None:
    if classes ** (k + 1) > 2**63:
        raise ValueError(f"{k + 1} symbols of {classes} have no number of 64 bits; choose a smaller k")

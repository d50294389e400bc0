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
    """
    nats = []
    p = np.full(len(text) - 1, 1 / classes)
    contexts, *longer = _grams(train, text, k + 1)
    for length, pairs in enumerate(longer):
        here = _counted(contexts, pairs, np.arange(len(train) - length), len(train), length)
        smoothed = (here.both + here.different * p) / np.maximum(here.context + here.different, 1)
        p = np.where(here.context > 0, smoothed, p)
        nats.append(-np.log(p).mean())
        contexts = pairs
    return np.array(nats)


def kneser_ney_nats(train: np.ndarray, text: np.ndarray, classes: int, k: int) -> np.ndarray:
    """The same with interpolated Kneser-Ney smoothing; see `kgram_nats`."""
    nats = []
    below = np.full(len(text) - 1, 1 / classes)
    grams = _grams(train, text, k + 1)
    for length in range(k + 1):
        contexts, pairs = grams[length : length + 2]
        everywhere = np.arange(len(train) - length)
        nats.append(-np.log(_discounted(contexts, pairs, everywhere, len(train), length, below)).mean())
        if length < k:
            _, first = np.unique(grams[length + 2][: len(everywhere) - 1], return_index=True)
            # Of each gram that is longer by the symbol before it, one place is counted.
            below = _discounted(contexts, pairs, first + 1, len(train), length, below)
    return np.array(nats)


def _discounted(
    contexts: np.ndarray, pairs: np.ndarray, at: np.ndarray, trained: int, length: int, below: np.ndarray
) -> np.ndarray:
    """p of each symbol of text[1:], D taken from every count; see `_counted`."""
    here = _counted(contexts, pairs, at, trained, length)
    once, twice = (np.sum(here.counts == n) for n in (1, 2))
    d = (once + 1) / (once + 2 * twice + 2)
    smoothed = (np.maximum(here.both - d, 0) + d * here.different * below) / np.maximum(here.context, 1)
    return np.where(here.context > 0, smoothed, below)


def _grams(train: np.ndarray, text: np.ndarray, longest: int) -> list[np.ndarray]:
    """For each length 0..longest, at each place of train and then of text, the number of the gram from there.

    Grams have the same number if they are the same symbols.
    """
    codes = np.concatenate([train, text]).astype(np.int64)
    grams = [np.zeros(len(codes) + 1, np.int64)]
    for length in range(longest):
        pairs = np.stack([grams[-1][: len(codes) - length], codes[length:]])
        grams.append(np.unique(pairs[0] * (1 + codes.max()) + pairs[1], return_inverse=True)[1])
    return grams


class _Counted(NamedTuple):
    """What was counted, at each symbol of text[1:].

    Attributes:
      both: of the symbol after its context.
      context: of its context before any symbol; 0 where the text has no context of this length yet.
      different: how many different symbols followed the context.
      counts: of every gram that was counted, in no order of the text.
    """

    both: np.ndarray
    context: np.ndarray
    different: np.ndarray
    counts: np.ndarray


def _counted(contexts: np.ndarray, pairs: np.ndarray, at: np.ndarray, trained: int, length: int) -> _Counted:
    """Count some places of the training text, and look at those of the text.

    Args:
      contexts, pairs: the grams of `length` symbols, and of one more.
      at: the places of the training text that are counted.
      trained: its length.
      length: of the context.
    """
    _, first, counts = np.unique(pairs[at], return_index=True, return_counts=True)
    ends = np.arange(1, len(contexts) - 1 + length - trained)  # the symbols of text[1:]
    known = ends >= length
    place = trained + ends - length

    def looked_up(grams: np.ndarray, where: np.ndarray) -> np.ndarray:
        return np.where(known, np.bincount(grams[where], minlength=grams.max() + 1)[grams[place]], 0)

    return _Counted(
        both=looked_up(pairs, at),
        context=looked_up(contexts, at),
        different=looked_up(contexts, at[first]),
        counts=counts,
    )

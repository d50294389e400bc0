"""The k-gram, which predicts a character by counting what followed the last k characters.

    p_k(c | last k) = (n(last k, c) + w p_{k−1}(c | last k−1)) / (n(last k) + w)

with w the number of different characters seen after the last k, and p_{−1} uniform: counts where there
are any, the shorter context in proportion to how surprising this one has been.

Reference: Witten & Bell 1991, The zero-frequency problem (method C).
"""

from __future__ import annotations

import numpy as np


def kgram_nats(train: np.ndarray, text: np.ndarray, classes: int, k: int) -> np.ndarray:
    """Nats per character of the 0-gram to the k-gram, counted on train, over text[1:].

    Args:
      train: codes in 0..classes−1, [N].
      text: codes, [M]; character i is predicted from the at most k characters before it.
      classes: size of the vocabulary.
      k: the longest context.

    Returns:
      [k+1], nats per character.
    """
    nats = []
    target = text[1:]
    p = np.full(len(target), 1 / classes)
    for length in range(k + 1):
        contexts, seen = _contexts(train, classes, length), train[length:]
        pairs, n_pair = np.unique(contexts * classes + seen, return_counts=True)
        context, n_context = np.unique(contexts, return_counts=True)
        _, n_different = np.unique(pairs // classes, return_counts=True)

        here = np.full(len(target), -1)  # the first characters of the text have no context this long
        first = max(length, 1)
        here[first - 1 :] = _contexts(text, classes, length)[first - length :]
        n, w = _look_up(context, n_context, here), _look_up(context, n_different, here)
        n_c = _look_up(pairs, n_pair, np.where(here < 0, -1, here * classes + target))
        p = np.where(n > 0, (n_c + w * p) / np.maximum(n + w, 1), p)
        nats.append(-np.log(p).mean())
    return np.array(nats)


def _contexts(codes: np.ndarray, classes: int, length: int) -> np.ndarray:
    """The `length` characters before each character from number `length` on, as one integer each."""
    context = np.zeros(len(codes) - length, np.int64)
    for i in range(length):
        context = context * classes + codes[i : len(codes) - length + i]
    return context


def _look_up(keys: np.ndarray, counts: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, counts[at], 0)

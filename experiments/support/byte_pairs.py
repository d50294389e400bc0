"""Byte pairs: a text as symbols, each a byte or two symbols that often stand side by side.

The first 256 symbols are the bytes of UTF-8. Each further one is the pair of neighbours that is the most
frequent in the text when it is learnt, within words:

    n(a, b) = Σ over words  (how often the word occurs) · (how often b follows a in it)
    symbol number 256 + i = (a, b) with the largest n, of several the smallest; then every a b becomes it

So frequent words become one symbol, rare ones a few, and every text can be written in them, and read again
from them: there is no unknown word.

References: Gage 1994, A new algorithm for data compression; Sennrich, Haddow & Birch 2016, Neural machine
translation of rare words with subword units.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

Pair = tuple[int, int]
BYTES = 256
WORD = re.compile(r" ?\w+| ?[^\w\s]+|\s+(?!\S)|\s+")  # with the space before it; every character is in one


class BytePairs(NamedTuple):
    """What each symbol is made of.

    Attributes:
      merges: symbol number 256 + i is the pair merges[i].
    """

    merges: tuple[Pair, ...]

    @property
    def size(self) -> int:
        """How many symbols there are."""
        return BYTES + len(self.merges)

    def encode(self, text: str) -> np.ndarray:
        """The text in symbols, [N]."""
        number = {pair: BYTES + i for i, pair in enumerate(self.merges)}

        @functools.cache
        def symbols(word: str) -> list[int]:
            found = list(word.encode())
            while first := min((number[p] for p in itertools.pairwise(found) if p in number), default=0):
                found = _merged(found, self.merges[first - BYTES], first)
            return found

        words = map(symbols, WORD.findall(text))
        return np.fromiter(itertools.chain.from_iterable(words), np.int32)

    def decode(self, codes: Iterable[int]) -> str:
        """The text of symbols; bytes that are no character become �."""
        texts = [bytes([byte]) for byte in range(BYTES)]
        for a, b in self.merges:
            texts.append(texts[a] + texts[b])
        return b"".join(texts[code] for code in codes).decode(errors="replace")


def learn_byte_pairs(text: str, size: int) -> BytePairs:
    """The symbols of a text.

    Args:
      text: what is counted.
      size: how many symbols, at least 256; there are fewer where no pair occurs twice any more.
    """
    counts = Counter(WORD.findall(text))
    words, times = [list(word.encode()) for word in counts], list(counts.values())
    n: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[int]] = defaultdict(set)  # words in which a pair is, or was
    for i, word in enumerate(words):
        for pair in itertools.pairwise(word):
            n[pair] += times[i]
            where[pair].add(i)
    heap = [(-count, pair) for pair, count in n.items()]
    heapq.heapify(heap)

    merges: list[Pair] = []
    while heap and BYTES + len(merges) < size:
        count, best = heapq.heappop(heap)
        if -count != n[best]:  # it was counted anew since, and stands in the heap again
            continue
        if n[best] < 2:
            break
        changed = set()
        for i in where.pop(best):
            before, words[i] = words[i], _merged(words[i], best, BYTES + len(merges))
            for pair in itertools.pairwise(before):
                n[pair] -= times[i]
                changed.add(pair)
            for pair in itertools.pairwise(words[i]):
                n[pair] += times[i]
                where[pair].add(i)
                changed.add(pair)
        merges.append(best)
        for pair in changed:
            heapq.heappush(heap, (-n[pair], pair))
    return BytePairs(tuple(merges))


def _merged(symbols: list[int], pair: Pair, into: int) -> list[int]:
    """The same with every pair, from the left, as one symbol."""
    found: list[int] = []
    for symbol in symbols:
        if found and (found[-1], symbol) == pair:
            found[-1] = into
        else:
            found.append(symbol)
    return found

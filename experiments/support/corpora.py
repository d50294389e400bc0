"""A text as a language model reads it: symbols in rows, the last tenth of it for validation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np

import jax_bptt as jb
from experiments.support import processes


class Vocabulary(Protocol):
    """What a text is made of: numbered symbols."""

    @property
    def size(self) -> int:
        """How many symbols there are."""

    def encode(self, text: str) -> np.ndarray:
        """The numbers of the symbols of a text, int32 [N]."""

    def decode(self, codes: Iterable[int]) -> str:
        """The text of symbols."""

    def _asdict(self) -> dict[str, Any]:
        """What it is made of, for JSON."""


class Alphabet(NamedTuple):
    """Each character is a symbol.

    Attributes:
      characters: in ascending order.
    """

    characters: str

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.characters)

    def encode(self, text: str) -> np.ndarray:
        """The places of the characters. SystemExit if one is not in the alphabet."""
        if other := set(text) - set(self.characters):
            raise SystemExit(f"the network has never read {min(other)!r}; give a text without it")
        return np.searchsorted(np.array(list(self.characters)), np.array(list(text))).astype(np.int32)

    def decode(self, codes: Iterable[int]) -> str:
        """The text."""
        return "".join(self.characters[code] for code in codes)


class Corpus(NamedTuple):
    """A text in rows; each row begins with the last symbol of the row before it.

    Attributes:
      sha256: of the text.
      vocabulary: its symbols.
      unit: what a symbol is called.
      train, valid: codes, [B, L+1] and [B, L'+1].
      kgrams: validation nats per symbol of the k-grams, k = 0, 1, ..
      begin: the first characters of the validation text.
      characters: of the validation text that is scored.
    """

    sha256: str
    vocabulary: Vocabulary
    unit: str
    train: np.ndarray
    valid: np.ndarray
    kgrams: np.ndarray
    begin: str
    characters: int


KGrams = Callable[[np.ndarray, np.ndarray, int, int], np.ndarray]


def training_part(text: str) -> str:
    """All but the last tenth."""
    return text[: len(text) * 9 // 10]


def corpus_of(
    text: str, vocabulary: Vocabulary, unit: str, kgrams: KGrams, k: int, rows: int, window: int
) -> Corpus:
    """A text in rows, and what k-grams score on it.

    Args:
      text: whole.
      vocabulary, unit: its symbols, and what one is called.
      kgrams: such as `kgram_nats`; they are scored on the same symbols as the network.
      k: the longest of their contexts.
      rows: B.
      window: T, the length of the network's chunks.

    Raises:
      SystemExit: the text is too short.
    """
    learnt = training_part(text)
    kept = text[len(learnt) :]
    codes = vocabulary.encode(learnt)
    train, valid = _in_rows(codes, rows), _in_rows(vocabulary.encode(kept), rows)
    if valid.shape[1] < 2 or train.shape[1] <= window:
        raise SystemExit(f"the text has {len(text)} characters, too few for {rows} rows of {window}")
    scored = np.append(valid[:, :-1].reshape(-1), valid[-1, -1])
    return Corpus(
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        vocabulary=vocabulary,
        unit=unit,
        train=train,
        valid=valid,
        kgrams=kgrams(codes, scored, vocabulary.size, k),
        begin=kept[:40],
        characters=len(vocabulary.decode(scored[1:])),
    )


def _in_rows(codes: np.ndarray, rows: int) -> np.ndarray:
    length = (len(codes) - 1) // rows
    return codes[np.arange(rows)[:, None] * length + np.arange(length + 1)]


def chunk(rows: np.ndarray, start: int, length: int) -> jb.Batch:
    """Symbols start..start+length of every row, and the symbol after each, [T, B]."""
    part = processes.by_rows(rows[:, start : start + length + 1].T, 1)
    return jb.Batch(part[:-1], part[1:])

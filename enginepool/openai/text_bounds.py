"""What is far too long for a model is refused before all of it has become tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from typing import Any

PIECE = 256 * 1024
"""Characters that are made tokens of at a time, where a text may be too long: a tenth of a second."""
SLACK = 64
"""Tokens by which a piece may have more than the same text within a whole."""
SHRINKS = 4
"""Times by which a tokenizer's normalizer may shorten a text at most, in bytes."""


class TextBounds:
    """Of a model's tokenizer, of transformers: `most` are the tokens that a prompt may have."""

    def __init__(self, tokenizer: Any, most: int) -> None:
        self._tokenizer = tokenizer
        self._most = most
        self._longest: int | None = None

    def check(self, text: str, encode: Callable[[str], Sized]) -> None:
        """To be called before `encode`, which gives tokens; in a thread if the text may be long.

        Raises:
            ValueError: its tokens are too many.
        """
        if len(text) <= PIECE:
            return
        nbytes, most = len(text.encode(errors="replace")), self._bytes_per_token() * SHRINKS * self._most
        if most and nbytes > most:
            raise self._too_long(f"{nbytes} bytes")
        tokens = 0
        for number, piece in enumerate(_pieces(text), start=1):
            tokens += len(encode(piece))
            if tokens > self._most + number * SLACK:
                raise self._too_long(f"more than {self._most} tokens")

    def _too_long(self, size: str) -> ValueError:
        return ValueError(f"The input ({size}) is longer than this model can take ({self._most} tokens).")

    def _bytes_per_token(self) -> int:
        """At most; 0 where one token may stand for a text of any length, as an unknown word does."""
        if self._longest is None:
            backend = getattr(self._tokenizer, "backend_tokenizer", None)
            limited = type(getattr(backend, "model", None)).__name__ == "BPE"
            self._longest = max(map(_size, self._tokenizer.get_vocab())) if limited else 0
        return self._longest


def _pieces(text: str) -> Iterator[str]:
    return (text[start : start + PIECE] for start in range(0, len(text), PIECE))


def _size(token: str | bytes) -> int:
    return len(token.encode(errors="replace")) if isinstance(token, str) else len(token)

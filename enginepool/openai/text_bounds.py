"""Refuses texts that are far too long for a model without tokenizing all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from typing import Any

PIECE = 256 * 1024
"""Characters tokenized at a time to find out whether a text is too long; takes a tenth of a second."""
SLACK = 64
"""Additional tokens a piece may yield compared with the same text inside the whole."""
SHRINKS = 4
"""Largest factor by which a tokenizer's normalizer may shorten a text, in bytes."""


class TextBounds:
    """Bounds for texts to be tokenized by a transformers tokenizer; `most` is the maximum number of tokens."""

    def __init__(self, tokenizer: Any, most: int) -> None:
        self._tokenizer = tokenizer
        self._most = most
        self._longest: int | None = None

    def check(self, text: str, encode: Callable[[str], Sized]) -> None:
        """Check whether `encode(text)` would yield too many tokens. Call it in a thread if the text may be long.

        Raises:
            ValueError: the text has too many tokens.
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
        """Maximum bytes per token; 0 if a token, such as one for unknown words, can stand for a text of any length."""
        if self._longest is None:
            backend = getattr(self._tokenizer, "backend_tokenizer", None)
            limited = type(getattr(backend, "model", None)).__name__ == "BPE"
            self._longest = max(map(_size, self._tokenizer.get_vocab())) if limited else 0
        return self._longest


def _pieces(text: str) -> Iterator[str]:
    return (text[start : start + PIECE] for start in range(0, len(text), PIECE))


def _size(token: str | bytes) -> int:
    return len(token.encode(errors="replace")) if isinstance(token, str) else len(token)

"""What each word of a prompt costs in tokens, and what the rest of a chat does.

Tokenizers cut text at blanks, so that a chat costs what its words do, and a constant for the chat template. Whoever
counts, a tokenizer or a server, is asked about each word once; after that nobody needs to be asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

COPIES = 16
"""Of a word in the text that tells its cost: of engines that count characters a word may cost a part of a token."""
OPENINGS = tuple("1" * digits + "." for digits in range(1, 7))
"""Prompts begin with a number; one of as many digits costs the same."""


@dataclass(frozen=True)
class WordCosts:
    """Tokens."""

    openings: Mapping[int, float]
    """Of a chat that consists of a number, by the number's length."""
    words: Mapping[str, float]
    """Of one that comes after others."""

    def opening(self, number: str) -> float:
        return self.openings[min(len(number), max(self.openings))]


def questions(words: Sequence[str]) -> list[str]:
    """Texts whose counts are what `costs_of` wants."""
    return [*OPENINGS, *(" ".join([OPENINGS[0], *[word] * COPIES]) for word in words)]


def costs_of(words: Sequence[str], counts: Sequence[int]) -> WordCosts:
    """`counts` has the tokens of each of `questions(words)`."""
    openings, many = counts[: len(OPENINGS)], counts[len(OPENINGS) :]
    return WordCosts(
        {len(opening): float(count) for opening, count in zip(OPENINGS, openings, strict=True)},
        {word: (count - openings[0]) / COPIES for word, count in zip(words, many, strict=True)},
    )

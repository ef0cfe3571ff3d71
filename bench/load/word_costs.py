"""The token costs of each word in a prompt and of the rest of a chat.

Tokenizers split text at spaces, so a chat costs the sum of its words plus a constant for the chat template. The
tokenizer or server is asked once for each word's cost, and not for each prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

COPIES = 16
"""Repetitions of a word when measuring its cost, which may be fractional in engines that count characters."""
OPENINGS = tuple("1" * digits + "." for digits in range(1, 7))
"""Numbers that prompts begin with, by number of digits; those with equally many digits cost the same."""


@dataclass(frozen=True)
class WordCosts:
    """Costs in tokens."""

    openings: Mapping[int, float]
    """Cost of a chat that consists of a number only, by the number's length."""
    words: Mapping[str, float]
    """Cost of each word after others."""

    def opening(self, number: str) -> float:
        return self.openings[min(len(number), max(self.openings))]


def questions(words: Sequence[str]) -> list[str]:
    """The texts whose token counts `costs_of` needs."""
    return [*OPENINGS, *(" ".join([OPENINGS[0], *[word] * COPIES]) for word in words)]


def costs_of(words: Sequence[str], counts: Sequence[int]) -> WordCosts:
    """The costs, given the token counts of `questions(words)`."""
    openings, many = counts[: len(OPENINGS)], counts[len(OPENINGS) :]
    return WordCosts(
        {len(opening): float(count) for opening, count in zip(OPENINGS, openings, strict=True)},
        {word: (count - openings[0]) / COPIES for word, count in zip(words, many, strict=True)},
    )

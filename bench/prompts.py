"""Prompts that read like text, differ from the first word on, and come close to a length asked for.

A word repeated a thousand times is one token's work for a tokenizer and a prefix cache's best case; this is neither.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable

TOKENS_PER_WORD = 1.35
"""Common tokenizers on English text; what the server counted is in the report."""

_words = str.split

NOUNS = _words(
    "river harbour engine lantern orchard library signal mountain kettle market sailor teacher window bridge garden "
    "letter clock machine forest village winter story pocket island carriage violin painter storm baker telescope "
    "compass archive tunnel meadow queue ladder neighbour railway theatre candle journal festival workshop"
)
ADJECTIVES = _words(
    "quiet narrow golden patient distant crooked early careful hollow bright stubborn ancient hurried gentle northern "
    "empty familiar curious heavy silver unlikely wooden brave muddy precise forgotten restless green final useful"
)
VERBS = _words(
    "follows repairs remembers crosses describes measures paints carries questions answers watches borrows opens "
    "predicts delays discovers mends counts ignores compares surrounds lights translates divides warms replaces"
)
ADVERBS = _words("slowly often rarely suddenly again twice together almost never gladly alone early later quietly")
LINKS = _words("because although while before after until whenever so unless and")
PLACES = _words("behind beneath beside above across near inside beyond along against")
ASKS = ("Explain why", "Describe how", "Tell me whether", "Summarise what it means that", "Continue the story in which")


class PromptWriter:
    """Writes prompts, each once; the same seed gives the same prompts in the same order."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._written = 0

    def write(self, tokens: int) -> str:
        """A prompt of about `tokens` tokens."""
        self._written += 1
        wanted = max(1, round(tokens / TOKENS_PER_WORD))
        words = [f"{self._written}.", *self._random.choice(ASKS).split()]
        while len(words) < wanted:
            words += self._sentence()
        return " ".join(words[:wanted])

    def fit(self, tokens: int, count: Callable[[str], int]) -> str:
        """The longest prompt of at most `tokens` tokens, which `count` counts; of whole words."""
        words = self.write(2 * tokens).split()
        return " ".join(words[: bisect_right(range(1, len(words)), tokens, key=lambda n: count(" ".join(words[:n])))])

    def _sentence(self) -> list[str]:
        pick = self._random.choice
        ending = self._clause()
        ending[-1] += "."
        return [*self._clause(), pick(ADVERBS) + ",", pick(LINKS), *ending]

    def _clause(self) -> list[str]:
        pick = self._random.choice
        subject = ["the", pick(ADJECTIVES), pick(NOUNS), pick(VERBS), "the", pick(NOUNS)]
        return [*subject, pick(PLACES), "a", pick(ADJECTIVES), pick(NOUNS)]

"""Writes prompts that read like text, differ from the first word on, and have exactly the requested number of tokens.

Repeating one word a thousand times would be trivial for a tokenizer and the best case for a prefix cache.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from bench.load.tokens import CountEach
from bench.load.word_costs import WordCosts, costs_of, questions

TOKENS_PER_WORD = 1.35
"""Average of common tokenizers on English text, used if a tokenizer is not known."""
TRIES = 8
"""Maximum attempts at a prompt whose token count differs from the sum of its words' costs."""

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


def _vocabulary() -> tuple[str, ...]:
    asked = [word for ask in ASKS for word in ask.split()]
    ending = [f"{noun}." for noun in NOUNS] + [f"{adverb}," for adverb in ADVERBS]
    return tuple(dict.fromkeys(["the", "a", *asked, *NOUNS, *ADJECTIVES, *VERBS, *LINKS, *PLACES, *ending]))


VOCABULARY = _vocabulary()
"""All words that may follow a prompt's number, in the form in which they appear."""


class PromptWriter:
    """Writes unique prompts; the same seed gives the same prompts in the same order."""

    def __init__(self, seed: int | str) -> None:
        self.random = random.Random(seed)
        self._written = 0

    def write(self, tokens: int) -> str:
        """A prompt of about `tokens` tokens for common tokenizers."""
        wanted = max(1, round(tokens / TOKENS_PER_WORD))
        words = self.words()
        return " ".join(next(words) for _ in range(wanted))

    def write_each(self, lengths: Sequence[int]) -> list[str]:
        return [self.write(tokens) for tokens in lengths]

    def words(self) -> Iterator[str]:
        """Yields an endless prompt: its number, then words of `VOCABULARY`."""
        self._written += 1
        yield f"{self._written}."
        yield from self.random.choice(ASKS).split()
        while True:
            yield from self._sentence()

    def _sentence(self) -> list[str]:
        pick = self.random.choice
        ending = self._clause()
        ending[-1] += "."
        return [*self._clause(), pick(ADVERBS) + ",", pick(LINKS), *ending]

    def _clause(self) -> list[str]:
        pick = self.random.choice
        subject = ["the", pick(ADJECTIVES), pick(NOUNS), pick(VERBS), "the", pick(NOUNS)]
        return [*subject, pick(PLACES), "a", pick(ADJECTIVES), pick(NOUNS)]


class ExactWriter:
    """Writes prompts with exact token counts, chat template included.

    `costs` has the tokens per word; `count_each`, if given, verifies the result.
    """

    def __init__(self, seed: int | str, costs: WordCosts, count_each: CountEach | None = None) -> None:
        self._writer = PromptWriter(seed)
        self._costs = costs
        self._count_each = count_each

    @classmethod
    def counting(cls, seed: int | str, count_each: CountEach) -> ExactWriter:
        return cls(seed, costs_of(VOCABULARY, count_each(questions(VOCABULARY))), count_each)

    def write(self, tokens: int) -> str:
        return self.write_each([tokens])[0]

    def write_each(self, lengths: Sequence[int]) -> list[str]:
        """A prompt for each length in tokens; lengths below the minimum get the shortest prompt."""
        texts = [self._compose(tokens) for tokens in lengths]
        if self._count_each is None:
            return texts
        off = [tokens - count for tokens, count in zip(lengths, self._count_each(texts), strict=True)]
        aims = list(lengths)
        for _ in range(TRIES):
            wrong = [at for at, tokens in enumerate(lengths) if off[at] and tokens > self._shortest]
            if not wrong:
                break
            for at in wrong:
                aims[at] += off[at]
            again = [self._compose(aims[at]) for at in wrong]
            for at, text, count in zip(wrong, again, self._count_each(again), strict=True):
                texts[at], off[at] = text, lengths[at] - count
        return texts

    @property
    def _shortest(self) -> float:
        return min(self._costs.openings.values())

    def _compose(self, tokens: float) -> str:
        """Compose a prompt by word costs: as many words as fit, then the most expensive one that still fits."""
        words = self._writer.words()
        text = [next(words)]
        left = tokens - self._costs.opening(text[0])
        for word in words:
            if self._costs.words[word] > left:
                break
            text.append(word)
            left -= self._costs.words[word]
        while fitting := [word for word in VOCABULARY if 0 < self._costs.words[word] <= left]:
            largest = max(self._costs.words[word] for word in fitting)
            text.append(self._writer.random.choice([word for word in fitting if self._costs.words[word] == largest]))
            left -= largest
        return " ".join(text)

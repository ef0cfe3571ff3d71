"""What SGLang finds out about a tokenizer, it finds out once."""

from __future__ import annotations

import itertools

from enginepool.engines.sglang.tokenizers import MOST, ByTokenizer


class Vocabulary:
    """Stands for a tokenizer: only its identity counts."""


def test_what_is_made_of_a_tokenizer_is_made_once_for_each_other_thing() -> None:
    made: list[tuple[object, str]] = []

    def make(tokenizer: object, template: str) -> int:
        made.append((tokenizer, template))
        return len(made)

    findings, one, two = ByTokenizer(make), Vocabulary(), Vocabulary()
    asked = [findings.get(one, "a"), findings.get(one, "b"), findings.get(two, "a"), findings.get(one, "a")]
    assert asked == [1, 2, 3, 1]
    assert made == [(one, "a"), (one, "b"), (two, "a")]


def test_no_other_tokenizer_can_be_taken_for_one_that_is_gone() -> None:
    numbers = itertools.count()
    findings = ByTokenizer(lambda tokenizer, template: next(numbers))
    assert [findings.get(Vocabulary(), "a") for _ in range(MOST)] == list(range(MOST))

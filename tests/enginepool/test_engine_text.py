"""From tokens to text: whole characters only, and nothing from a stop string on."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from enginepool.engines.transformers.text import Detokenizer, StopFilter


@pytest.fixture(scope="module")
def tokenizer(demo_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(demo_folder / "llama-tiny")


def pieces(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(token) for token in tokens), detokenizer.finish()]


@pytest.mark.parametrize("text", ["Hello world", "naïve 日本語 🙂👩‍👩‍👧", "\n\t  x", "🙂" * 20])
def test_characters_of_several_tokens_come_out_whole(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    tokens = tokenizer(text)["input_ids"]
    assert len(tokens) > 1
    parts = pieces(tokenizer, tokens)
    assert "".join(parts) == text
    assert not any("\ufffd" in part for part in parts)
    assert all(part == part.encode().decode() for part in parts)


@given(tokens=st.lists(st.integers(0, 4095), max_size=60))
def test_any_tokens_give_in_pieces_what_they_give_at_once(
    tokenizer: PreTrainedTokenizerBase, tokens: list[int]
) -> None:
    whole = tokenizer.decode(tokens, skip_special_tokens=True)
    assert "".join(pieces(tokenizer, tokens)) == whole


def test_an_incomplete_character_at_the_end_is_shown_as_such(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = tokenizer("🙂")["input_ids"][:-1]
    assert "".join(pieces(tokenizer, tokens)) == tokenizer.decode(tokens) != ""


def filtered(stops: tuple[str, ...], parts: list[str]) -> tuple[str, bool]:
    stop = StopFilter(stops)
    text = ""
    for part in parts:
        text += stop.push(part)
        if stop.stopped:
            return text, True
    return text + stop.finish(), False


def test_a_stop_string_over_several_pieces_is_never_sent() -> None:
    stop = StopFilter(("STOP",))
    assert stop.push("a ST") == "a "
    assert stop.push("O") == ""
    assert stop.push("X ST") == "STOX "
    assert stop.push("OP and more") == ""
    assert stop.stopped
    assert stop.finish() == ""


def test_what_only_began_like_a_stop_string_is_sent_at_the_end() -> None:
    assert filtered(("STOP",), ["a ST"]) == ("a ST", False)


def test_without_stop_strings_nothing_is_held_back() -> None:
    assert StopFilter(()).push("text") == "text"


def expected(stops: tuple[str, ...], text: str) -> tuple[str, bool]:
    """Character by character: cut before the longest stop string that the text so far ends with."""
    for end in range(len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            return text[: end - max(map(len, hits))], True
    return text, False


@given(
    parts=st.lists(st.text("ab", max_size=4), max_size=8),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=4).map(tuple),
)
def test_how_the_text_is_cut_changes_nothing(parts: list[str], stops: tuple[str, ...]) -> None:
    assert filtered(stops, parts) == expected(stops, "".join(parts))

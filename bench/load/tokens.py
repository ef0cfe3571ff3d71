"""Counts a chat's tokens as a server does, with the model's own tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from enginepool.engines.simulated import BYTES_PER_TOKEN
from simulator.errors import StudyError

CountEach = Callable[[Sequence[str]], list[int]]
"""Counts the tokens of chats with a single user message each, chat template included."""

PLACE = "PLACE OF THE TEXT"
AT_A_TIME = 64
"""Texts tokenized at a time, since tokenizers' results are much larger than the texts."""


def counter_of(folder: Path) -> CountEach:
    """The counter for a model's folder. The first call in a process imports transformers, which takes seconds.

    Raises:
        StudyError: transformers cannot read a tokenizer there.
    """
    import transformers

    try:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(folder))
        before, after = _around(tokenizer)
    except Exception as error:  # whatever transformers and a template raise
        raise StudyError(f"{folder}: no tokenizer can be read: {error}") from error

    def count_each(texts: Sequence[str]) -> list[int]:
        chats = [f"{before}{text}{after}" for text in texts]
        parts = (chats[at : at + AT_A_TIME] for at in range(0, len(chats), AT_A_TIME))
        return [length for part in parts for length in _lengths(tokenizer, part)]

    return count_each


def simulated_counter(texts: Sequence[str]) -> list[int]:
    """Counts tokens as the engine `simulated` does."""
    return [1 + len(text) // BYTES_PER_TOKEN for text in texts]


def _around(tokenizer: Any) -> tuple[str, str]:
    """The text that the chat template adds before and after a message; empty without a template."""
    if tokenizer.chat_template is None:
        return "", ""
    asked = [{"role": "user", "content": PLACE}]
    before, _, after = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False).partition(PLACE)
    return before, after


def _lengths(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    if tokenizer.is_fast:  # in parallel, and without offsets that nobody needs
        encoded = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [len(each) for each in encoded]
    return [len(tokenizer.encode(text, add_special_tokens=False)) for text in texts]

"""A tokenizer for a model that has none: byte-level BPE of any size, made by rule and not by training.

The same everywhere, made in a moment, and with some three characters of English to a token, as trained ones have. After
the bytes come a word's first letters (" t", " th", " the"), pairs of letters ("er"), and numbers (" 0", " 1", ...) for
all ids that are left: random weights say any of them, and text that numbers were decoded to has the same ids again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from gateway.demo_models import CHAT_TEMPLATE, END_OF_TEXT, SPECIAL, TURN_END

SPACE = "Ġ"
"""How byte-level BPE writes a space."""


def write_tokenizer(folder: Path, vocabulary: int, context: int) -> None:
    """Write the files of a tokenizer of `vocabulary` tokens, for a model that takes `context` of them.

    Raises:
        OSError: the folder cannot be written.
    """
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(vocabulary), ensure_ascii=False))
    (folder / "tokenizer_config.json").write_text(json.dumps(_settings(context), indent=2))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def special_ids() -> dict[str, Any]:
    """What config.json has to say of the tokens that end an answer."""
    end, padding = SPECIAL.index(TURN_END), SPECIAL.index(END_OF_TEXT)
    return {"bos_token_id": None, "eos_token_id": [end, padding], "pad_token_id": padding}


def _settings(context: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "model_max_length": context,
    }


def _tokenizer(vocabulary: int) -> dict[str, Any]:
    tokens, merges = _bpe(vocabulary)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special(number, text) for number, text in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": {text: number for number, text in enumerate(tokens)}, "merges": merges},
    }


def _special(number: int, text: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": text, **flags, "special": True}


def _bpe(vocabulary: int) -> tuple[list[str], list[str]]:
    """Tokens by id, and merges by rank.

    Every token of several characters is one that is shorter by the last, and that. Pairs have the last ranks: a word is
    read from its beginning for as long as there is a token, and then by pairs.
    """
    known = [*SPECIAL, *_bytes()]
    room = vocabulary - len(known)
    beginnings = list(islice(_beginnings(), room // 2))
    pairs = list(islice(_letters(2), room // 8))
    numbers = [f"{SPACE}{number}" for number in range(room - len(beginnings) - len(pairs))]
    merges = [f"{token[:-1]} {token[-1]}" for token in (*beginnings, *numbers, *pairs)]
    return [*known, *beginnings, *pairs, *numbers], merges


def _beginnings() -> Iterator[str]:
    """Of words, the shorter first, so that what a longer one is made of is there."""
    return (SPACE + letters for length in (1, 2, 3) for letters in _letters(length))


def _letters(length: int) -> Iterator[str]:
    return map("".join, product(ascii_lowercase, repeat=length))


def _bytes() -> list[str]:
    """GPT-2's characters for the 256 bytes: those that can be printed, and others in place of those that cannot."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = 256 - len(shown)
    return [*map(chr, shown), *map(chr, range(256, 256 + hidden))]

"""What one request may have SGLang's front do, and what is refused before it is done: a ValueError becomes a 400."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any

from enginepool.engines.sglang.front.own_template import REFUSAL
from enginepool.engines.sglang.front.requests import CURRENT

LONG = 16 * 1024
"""Characters that take some milliseconds to become tokens."""
PIECE = 256 * 1024
"""Characters that are made tokens of at a time, where a text may be too long: a tenth of a second."""
SLACK = 64
"""Tokens by which a piece may have more than the same text within a whole."""
SHRINKS = 4
"""Times by which a tokenizer's normalizer may shorten a text at most, in bytes."""
TOKENIZE = "/v1/tokenize"
"""The route that may count what is too long for the model."""


class TextBounds:
    """Of a model's tokenizer: `most` are the tokens that a prompt may have."""

    def __init__(self, tokenizer: Any, most: int) -> None:
        self._tokenizer = tokenizer
        self._most = most
        self._longest: int | None = None

    def check(self, text: str, encode: Callable[[str], Any]) -> None:
        """To be called before `encode` for a text of more than one PIECE, in a thread; it may be much too long.

        Raises:
            ValueError: its tokens are too many.
        """
        live = CURRENT.get()
        if len(text) <= PIECE or (live is not None and live.path == TOKENIZE):
            return
        nbytes, most = len(text.encode()), self._bytes_per_token() * SHRINKS * self._most
        if most and nbytes > most:
            raise ValueError(f"The input ({nbytes} bytes) is longer than this model can take ({self._most} tokens).")
        tokens = 0
        for number, piece in enumerate(_pieces(text), start=1):
            tokens += len(encode(piece))
            if tokens > self._most + number * SLACK:
                raise ValueError(
                    f"The input (more than {self._most} tokens) is longer than this model can take ({self._most} tokens)."
                )

    def _bytes_per_token(self) -> int:
        """At most; 0 where one token may stand for a text of any length, as an unknown word does."""
        if self._longest is None:
            backend = getattr(self._tokenizer, "backend_tokenizer", None)
            limited = type(getattr(backend, "model", None)).__name__ == "BPE"
            self._longest = max(map(_size, self._tokenizer.get_vocab())) if limited else 0
        return self._longest


def bound(tokenizer: Any, most: int, *, own_templates: bool) -> TextBounds:
    """Have a model's tokenizer refuse texts of more than `most` tokens early, and clients' own templates unless they
    are allowed. It may be bound again."""
    cls = type(tokenizer)
    bounds = TextBounds(tokenizer, most)

    def encode(text: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(text, str):
            bounds.check(text, lambda piece: cls.encode(tokenizer, piece))
        return cls.encode(tokenizer, text, *args, **kwargs)

    def apply_chat_template(conversation: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("chat_template") is not None and not own_templates:
            raise ValueError(REFUSAL)
        return cls.apply_chat_template(tokenizer, conversation, *args, **kwargs)

    tokenizer.encode, tokenizer.apply_chat_template = encode, apply_chat_template
    return bounds


def check_prompts(obj: Any, most: int) -> None:
    """Of one of SGLang's requests, before anything is made of it.

    Raises:
        ValueError: there are more than `most` prompts in it.
    """
    for name in ("text", "input_ids", "input_embeds"):
        value = getattr(obj, name, None)
        if isinstance(value, list) and len(value) > most and not isinstance(value[0], int | float):
            raise ValueError(f"A request may have {most} prompts, and not {len(value)}.")


def check_logprobs(obj: Any, tokens: int, most: int) -> None:
    """Of one prompt with so many `tokens`.

    Raises:
        ValueError: it asks for more than `most` logprobs of them.
    """
    if not getattr(obj, "return_logprob", False):
        return
    start, chosen = obj.logprob_start_len, len(obj.token_ids_logprob or ())
    asked = (0 if start is None or start < 0 else max(0, tokens - start)) * max(1, obj.top_logprobs_num or 0, chosen)
    if asked > most:
        raise ValueError(f"logprob_start_len: {asked} logprobs of the prompt are asked for; {most} is the most.")


def frozen(texts: Any) -> Hashable:
    """A text, texts or pairs of texts, as a key."""
    return tuple(map(frozen, texts)) if isinstance(texts, list | tuple) else texts


def characters(texts: Any) -> int:
    return sum(map(len, strings_of(texts)))


def strings_of(texts: Any) -> Iterator[str]:
    """All of a text, of texts, or of pairs of texts."""
    if isinstance(texts, str):
        yield texts
    elif isinstance(texts, list | tuple):
        for text in texts:
            yield from strings_of(text)


def _pieces(text: str) -> Iterator[str]:
    return (text[start : start + PIECE] for start in range(0, len(text), PIECE))


def _size(token: str | bytes) -> int:
    return len(token.encode()) if isinstance(token, str) else len(token)

"""Limits on the work one request may cause in SGLang's front. A ValueError becomes an answer with status 400."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

from enginepool.engines.sglang.front.own_template import REFUSAL
from enginepool.engines.sglang.front.requests import CURRENT
from enginepool.openai.text_bounds import TextBounds

LONG = 16 * 1024
"""Texts above this many characters take several milliseconds to tokenize."""
TOKENIZE = "/v1/tokenize"
"""The route that may tokenize texts too long for the model."""


def bound(tokenizer: Any, most: int, *, own_templates: bool) -> TextBounds:
    """Make a tokenizer refuse texts of more than `most` tokens early, and clients' own chat templates unless allowed.
    May be called again for the same tokenizer."""
    cls = type(tokenizer)
    bounds = TextBounds(tokenizer, most)

    def encode(text: Any, *args: Any, **kwargs: Any) -> Any:
        live = CURRENT.get()
        if isinstance(text, str) and (live is None or live.path != TOKENIZE):
            bounds.check(text, lambda piece: cls.encode(tokenizer, piece))
        return cls.encode(tokenizer, text, *args, **kwargs)

    def apply_chat_template(conversation: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("chat_template") is not None and not own_templates:
            raise ValueError(REFUSAL)
        return cls.apply_chat_template(tokenizer, conversation, *args, **kwargs)

    tokenizer.encode, tokenizer.apply_chat_template = encode, apply_chat_template
    return bounds


def check_prompts(obj: Any, most: int) -> None:
    """Check the number of prompts in one of SGLang's requests.

    Raises:
        ValueError: it has more than `most` prompts.
    """
    for name in ("text", "input_ids", "input_embeds"):
        value = getattr(obj, name, None)
        if isinstance(value, list) and len(value) > most and not isinstance(value[0], int | float):
            raise ValueError(f"A request may have at most {most} prompts, got {len(value)}.")


def check_logprobs(obj: Any, tokens: int, most: int) -> None:
    """Check the number of logprobs requested for a prompt of `tokens` tokens.

    Raises:
        ValueError: it is more than `most`.
    """
    if not getattr(obj, "return_logprob", False):
        return
    start, chosen = obj.logprob_start_len, len(obj.token_ids_logprob or ())
    asked = (0 if start is None or start < 0 else max(0, tokens - start)) * max(1, obj.top_logprobs_num or 0, chosen)
    if asked > most:
        raise ValueError(f"logprob_start_len: asks for {asked} logprobs of the prompt; the maximum is {most}.")


def frozen(texts: Any) -> Hashable:
    """A text, a list of texts or of pairs of texts, made hashable."""
    return tuple(map(frozen, texts)) if isinstance(texts, list | tuple) else texts


def characters(texts: Any) -> int:
    return sum(map(len, strings_of(texts)))


def strings_of(texts: Any) -> Iterator[str]:
    """Yields all strings in a text, a list of texts or of pairs of texts."""
    if isinstance(texts, str):
        yield texts
    elif isinstance(texts, list | tuple):
        for text in texts:
            yield from strings_of(text)

"""Turns a request into prompt tokens."""

from __future__ import annotations

from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from config.errors import RequestError
from enginepool.openai.requests import ChatMessage, ChatRequest, GenerationRequest
from enginepool.openai.text_bounds import TextBounds

Tokens = list[int]


def tokenize(
    request: GenerationRequest, tokenizer: PreTrainedTokenizerBase, vocabulary: int, context: int
) -> list[Tokens]:
    """Tokenize the prompts of a request; those far longer than `context` tokens are refused early.

    Raises:
        RequestError: 400, the chat template rejects the messages, or a prompt is empty, outside the vocabulary or far
            too long.
    """
    bounds = TextBounds(tokenizer, context)
    if isinstance(request, ChatRequest):
        return [_chat(request.messages, tokenizer, bounds)]
    return [_prompt(prompt, tokenizer, vocabulary, bounds) for prompt in request.prompts]


def _chat(messages: tuple[ChatMessage, ...], tokenizer: PreTrainedTokenizerBase, bounds: TextBounds) -> Tokens:
    if tokenizer.chat_template is None:
        raise _refusal("messages", "This model has no chat template; use /v1/completions.")
    conversation = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text: Any = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    except jinja2.TemplateError as error:
        raise _refusal("messages", f"The model's chat template rejects these messages: {error}.") from error
    return _encode(text, tokenizer, bounds, "messages", add_special_tokens=False)


def _prompt(
    prompt: str | tuple[int, ...], tokenizer: PreTrainedTokenizerBase, vocabulary: int, bounds: TextBounds
) -> Tokens:
    tokens = _encode(prompt, tokenizer, bounds, "prompt") if isinstance(prompt, str) else list(prompt)
    if not tokens:
        raise _refusal("prompt", "'prompt' must not be empty.")
    if max(tokens) >= vocabulary:
        raise _refusal("prompt", f"Token {max(tokens)} is not in the model's vocabulary of {vocabulary}.")
    return tokens


def _encode(
    text: str, tokenizer: PreTrainedTokenizerBase, bounds: TextBounds, param: str, *, add_special_tokens: bool = True
) -> Tokens:
    def encode(part: str) -> Tokens:
        encoded: Any = tokenizer(part, add_special_tokens=add_special_tokens)
        return list(encoded["input_ids"])

    try:
        bounds.check(text, encode)
    except ValueError as error:
        raise RequestError(400, str(error), code="context_length_exceeded", param=param) from error
    return encode(text)


def _refusal(param: str, message: str) -> RequestError:
    return RequestError(400, message, code="invalid_value", param=param)

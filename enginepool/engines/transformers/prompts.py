"""From a request to prompt tokens."""

from __future__ import annotations

from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from config.errors import RequestError
from enginepool.openai_api import ChatMessage, ChatRequest, GenerationRequest

Tokens = list[int]


def tokenize(request: GenerationRequest, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> list[Tokens]:
    """The prompts of a request, each at least one token.

    Raises:
        RequestError: 400, the chat template refuses the messages, or a prompt is empty or not of this vocabulary.
    """
    if isinstance(request, ChatRequest):
        return [_chat(request.messages, tokenizer)]
    return [_prompt(prompt, tokenizer, vocabulary) for prompt in request.prompts]


def _chat(messages: tuple[ChatMessage, ...], tokenizer: PreTrainedTokenizerBase) -> Tokens:
    if tokenizer.chat_template is None:
        raise _refusal("messages", "This model has no chat template; use /v1/completions.")
    conversation = [{"role": message.role, "content": message.content} for message in messages]
    try:
        encoded: Any = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=True)
    except jinja2.TemplateError as error:
        raise _refusal("messages", f"The model's chat template refuses these messages: {error}.") from error
    return list(encoded["input_ids"])


def _prompt(prompt: str | tuple[int, ...], tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> Tokens:
    tokens = _encode(prompt, tokenizer) if isinstance(prompt, str) else list(prompt)
    if not tokens:
        raise _refusal("prompt", "'prompt' must not be empty.")
    if max(tokens) >= vocabulary:
        raise _refusal("prompt", f"Token {max(tokens)} is not in the model's vocabulary of {vocabulary}.")
    return tokens


def _encode(text: str, tokenizer: PreTrainedTokenizerBase) -> Tokens:
    encoded: Any = tokenizer(text)
    return list(encoded["input_ids"])


def _refusal(param: str, message: str) -> RequestError:
    return RequestError(400, message, code="invalid_value", param=param)

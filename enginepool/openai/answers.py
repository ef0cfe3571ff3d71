"""Formats answers of /v1/chat/completions and /v1/completions, whole or as server-sent events.

A stream consists of `begin`, `piece`..., `finish` for each choice, and one `end`. `piece` is called for each token, so
the constant parts are encoded only once.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from enginepool.openai.requests import ChatRequest, GenerationRequest

JSON = "application/json"
EVENT_STREAM = "text/event-stream"

FinishReason = Literal["stop", "length"]

_encode = msgspec.json.Encoder().encode


class Choice(Struct, frozen=True):
    index: int
    text: str
    finish_reason: FinishReason


class Usage(Struct, frozen=True):
    """Token counts of a request."""

    prompt_tokens: int
    completion_tokens: int

    def as_json(self) -> dict[str, int]:
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }


class OpenAIAnswer:
    """Formats the answer to one request; created when the request arrives, which determines its id and time."""

    id_prefix: str
    whole_object: str
    chunk_object: str

    def __init__(self, model: str, include_usage: bool) -> None:
        self._include_usage = include_usage
        self._identity = {"id": self.id_prefix + secrets.token_hex(12), "created": int(time.time()), "model": model}
        head = _encode({"object": self.chunk_object, **self._identity})
        self._open = b"data: " + head[:-1] + b',"choices":[{"index":'
        self._close = b',"logprobs":null}]' + (b',"usage":null' if include_usage else b"") + b"}\n\n"

    def whole(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """The body of an answer that is not streamed."""
        listed = [self._choice(choice) for choice in choices]
        return _encode({"object": self.whole_object, **self._identity, "choices": listed, "usage": usage.as_json()})

    def begin(self, index: int) -> bytes:
        """The first event of a choice, which may be empty."""
        raise NotImplementedError

    def piece(self, index: int, text: str) -> bytes:
        """An event with more text of a choice."""
        raise NotImplementedError

    def finish(self, index: int, reason: FinishReason) -> bytes:
        """The last event of a choice."""
        raise NotImplementedError

    def end(self, usage: Usage) -> bytes:
        """The end of the stream, after all choices."""
        if not self._include_usage:
            return b"data: [DONE]\n\n"
        last = {"object": self.chunk_object, **self._identity, "choices": [], "usage": usage.as_json()}
        return b"data: " + _encode(last) + b"\n\ndata: [DONE]\n\n"

    def _choice(self, choice: Choice) -> dict[str, Any]:
        shared = {"index": choice.index, "logprobs": None, "finish_reason": choice.finish_reason}
        return {**shared, **self._content(choice.text)}

    def _content(self, text: str) -> dict[str, Any]:
        raise NotImplementedError


class ChatAnswer(OpenAIAnswer):
    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def begin(self, index: int) -> bytes:
        role = b'%d,"delta":{"role":"assistant","content":""},"finish_reason":null' % index
        return self._open + role + self._close

    def piece(self, index: int, text: str) -> bytes:
        content = b'%d,"delta":{"content":%b},"finish_reason":null' % (index, _encode(text))
        return self._open + content + self._close

    def finish(self, index: int, reason: FinishReason) -> bytes:
        return self._open + b'%d,"delta":{},"finish_reason":%b' % (index, _encode(reason)) + self._close

    def _content(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}


class CompletionAnswer(OpenAIAnswer):
    id_prefix = "cmpl-"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def begin(self, index: int) -> bytes:
        return b""

    def piece(self, index: int, text: str) -> bytes:
        return self._open + b'%d,"text":%b,"finish_reason":null' % (index, _encode(text)) + self._close

    def finish(self, index: int, reason: FinishReason) -> bytes:
        return self._open + b'%d,"text":"","finish_reason":%b' % (index, _encode(reason)) + self._close

    def _content(self, text: str) -> dict[str, Any]:
        return {"text": text}


def answer_to(request: GenerationRequest) -> OpenAIAnswer:
    """The formatter for the kind of `request`."""
    kind = ChatAnswer if isinstance(request, ChatRequest) else CompletionAnswer
    return kind(request.model, request.include_usage)

"""Sends a request's text back, as one answer or as a stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from config.errors import RequestError
from enginepool.engine import Output
from enginepool.messages import Chunk, Done, Head, Reply
from enginepool.openai.answers import EVENT_STREAM, JSON, Choice, FinishReason, OpenAIAnswer, Usage
from enginepool.openai.errors import error_body

Send = Callable[[Output], None]


class Answering(Protocol):
    """Sends the answer to one request; nothing more after `close` or `fail`."""

    def begin(self, index: int) -> None: ...

    def text(self, index: int, piece: str) -> None: ...

    def finish(self, index: int, reason: FinishReason) -> None: ...

    def flush(self) -> None:
        """Send what was collected in this step."""
        ...

    def close(self, usage: Usage) -> None: ...

    def fail(self, error: RequestError, usage: Usage) -> None: ...


def refuse(request: int, error: RequestError, send: Send, prompt_tokens: int = 0, output_tokens: int = 0) -> None:
    """Answer `request` with an error in OpenAI's format."""
    send(Reply(request, error.status, JSON, error_body(error), prompt_tokens, output_tokens))


class WholeAnswer:
    def __init__(self, request: int, answer: OpenAIAnswer, send: Send) -> None:
        self._request = request
        self._answer = answer
        self._send = send
        self._texts: dict[int, list[str]] = {}
        self._reasons: dict[int, FinishReason] = {}

    def begin(self, index: int) -> None:
        self._texts[index] = []

    def text(self, index: int, piece: str) -> None:
        self._texts[index].append(piece)

    def finish(self, index: int, reason: FinishReason) -> None:
        self._reasons[index] = reason

    def flush(self) -> None:
        pass

    def close(self, usage: Usage) -> None:
        ordered = sorted(self._reasons.items())
        choices = [Choice(index, "".join(self._texts[index]), reason) for index, reason in ordered]
        body = self._answer.whole(choices, usage)
        self._send(Reply(self._request, 200, JSON, body, usage.prompt_tokens, usage.completion_tokens))

    def fail(self, error: RequestError, usage: Usage) -> None:
        refuse(self._request, error, self._send, usage.prompt_tokens, usage.completion_tokens)


class StreamedAnswer:
    def __init__(self, request: int, answer: OpenAIAnswer, send: Send) -> None:
        self._request = request
        self._answer = answer
        self._send = send
        self._events: list[bytes] = []
        self._begun = False

    def begin(self, index: int) -> None:
        self._events.append(self._answer.begin(index))

    def text(self, index: int, piece: str) -> None:
        self._events.append(self._answer.piece(index, piece))

    def finish(self, index: int, reason: FinishReason) -> None:
        self._events.append(self._answer.finish(index, reason))

    def flush(self) -> None:
        data = b"".join(self._events)
        self._events.clear()
        if data:
            self._head()
            self._send(Chunk(self._request, data))

    def close(self, usage: Usage) -> None:
        self._events.append(self._answer.end(usage))
        self.flush()
        self._send(Done(self._request, usage.prompt_tokens, usage.completion_tokens, ""))

    def fail(self, error: RequestError, usage: Usage) -> None:
        if not self._begun:
            refuse(self._request, error, self._send, usage.prompt_tokens, usage.completion_tokens)
            return
        self._send(Done(self._request, usage.prompt_tokens, usage.completion_tokens, error.message))

    def _head(self) -> None:
        if not self._begun:
            self._begun = True
            self._send(Head(self._request, 200, EVENT_STREAM))

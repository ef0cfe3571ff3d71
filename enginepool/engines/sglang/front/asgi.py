"""Runs one request through an ASGI application in memory, without HTTP, and turns its output into messages."""

from __future__ import annotations

import asyncio
from typing import Any

from config.errors import RequestError
from enginepool.engine import Emit
from enginepool.engines.sglang.front.requests import FrontRequest
from enginepool.messages import Chunk, Done, Head, Reply
from enginepool.openai.answers import EVENT_STREAM, JSON
from enginepool.openai.errors import error_body, server_error

_VERSION = {"version": "3.0", "spec_version": "2.3"}


class Exchange:
    """The `receive` and `send` of ASGI for one request. Nothing is emitted after the request was aborted."""

    def __init__(self, live: FrontRequest, emit: Emit, reading: asyncio.Event) -> None:
        self._live = live
        self._emit = emit
        self._reading = reading
        self._body_taken = False
        self._status = 500
        self._content_type = JSON
        self._parts: list[bytes] = []
        self._streaming = False
        self.ended = False

    @property
    def scope(self) -> dict[str, Any]:
        path, length = self._live.path, str(len(self._live.body))
        return {
            "type": "http",
            "asgi": _VERSION,
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"content-type", JSON.encode()), (b"content-length", length.encode())],
            "client": None,
            "server": None,
        }

    async def receive(self) -> dict[str, Any]:
        if not self._body_taken:
            self._body_taken = True
            return {"type": "http.request", "body": self._live.body, "more_body": False}
        await self._live.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, event: dict[str, Any]) -> None:
        """Emit an event. While the gateway does not read, this blocks, and SGLang's stream with it."""
        if self._live.aborted or self.ended:
            return
        if event["type"] == "http.response.start":
            self._start(event)
        elif self._is_stream:
            if not self._reading.is_set():
                await self._reading.wait()
            self._send_chunk(event.get("body", b""), event.get("more_body", False))
        else:
            self._parts.append(event.get("body", b""))
            if not event.get("more_body", False):
                self._reply(self._status, self._content_type, b"".join(self._parts))

    def fail(self, error: RequestError) -> None:
        """Answer with an error, unless the request is over already."""
        if self._live.aborted or self.ended:
            return
        if self._streaming:
            self._done(error.message)
        else:
            self._reply(error.status, JSON, error_body(error))

    def close(self) -> None:
        """Called when the application has returned: make sure that the request was answered."""
        self.fail(server_error("SGLang ended a request without an answer."))

    @property
    def _is_stream(self) -> bool:
        return self._content_type == EVENT_STREAM

    def _start(self, event: dict[str, Any]) -> None:
        self._status = event["status"]
        headers = dict(event.get("headers", ()))
        self._content_type = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0] or JSON

    def _send_chunk(self, data: bytes, more: bool) -> None:
        if self._live.aborted or self.ended:
            return
        if self._live.refusal is not None:
            self.fail(self._live.refusal)
            return
        if not self._streaming:
            self._streaming = True
            self._emit(Head(self._live.id, self._status, self._content_type))
        if data:
            self._emit(Chunk(self._live.id, data))
        if not more:
            self._done("")

    def _reply(self, status: int, content_type: str, body: bytes) -> None:
        self.ended = True
        live = self._live
        self._emit(Reply(live.id, status, content_type, body, live.prompt_tokens, live.output_tokens))

    def _done(self, error: str) -> None:
        self.ended = True
        self._emit(Done(self._live.id, self._live.prompt_tokens, self._live.output_tokens, error))

"""One client's request in the gateway: where its answer goes, whatever happens to workers meanwhile."""

from __future__ import annotations

import asyncio
import time

from config.errors import RequestError
from enginepool.messages import Head, Reply
from gateway.sse import EventStream


class LiveRequest:
    """The HTTP handler awaits `answer`: a whole Reply, or the Head of a stream to which it then attaches the client.

    An earlier error is raised from `answer`; a later one ends the stream with an error event.
    """

    __slots__ = (
        "_backlog",
        "_head",
        "answer",
        "arrived",
        "body",
        "deadline",
        "ended",
        "error",
        "first_token_at",
        "id",
        "model",
        "path",
        "slo",
        "stream",
        "worker",
    )  # fmt: skip

    def __init__(self, number: int, model: str, path: str, body: bytes, slo: float) -> None:
        self.id = number
        self.model = model
        self.path = path
        self.body = body
        self.slo = slo
        self.arrived = time.monotonic()
        self.deadline = self.arrived + slo
        self.worker: int | None = None
        self.first_token_at: float | None = None
        self.answer: asyncio.Future[Reply | Head] = asyncio.get_running_loop().create_future()
        self.ended = False
        self.error: RequestError | None = None
        self.stream: EventStream | None = None
        self._head: Head | None = None
        self._backlog: list[bytes] = []

    def reply(self, reply: Reply) -> None:
        self.ended = True
        if not self.answer.done():
            self.answer.set_result(reply)

    def head(self, head: Head) -> None:
        """Note the head; it is held back until the first bytes, so that the request can still be served elsewhere."""
        self._head = head

    def chunk(self, data: bytes) -> bool:
        """Pass bytes on; returns False if the client has left too much unread."""
        if self.stream is not None:
            return self.stream.write(data)
        self._backlog.append(data)
        self._open()
        return True

    def done(self, error: RequestError | None) -> None:
        """End the answer, with `error` if it failed."""
        if self.ended:
            return
        self.ended = True
        self.error = error
        if not self.answer.done():
            if error is not None:
                self.answer.set_exception(error)
                return
            self._open()
        if self.stream is not None:
            self.stream.end(error)

    def requeue(self) -> None:
        """Forget what its worker had announced: it died before the first bytes."""
        self.worker = None
        self._head = None

    def attach(self, stream: EventStream) -> None:
        """Send bytes straight to the client's connection from now on; its headers are out."""
        self.stream = stream
        if self._backlog:
            stream.write(b"".join(self._backlog))
            self._backlog.clear()
        if self.ended:
            stream.end(self.error)

    def _open(self) -> None:
        if not self.answer.done() and self._head is not None:
            self.answer.set_result(self._head)

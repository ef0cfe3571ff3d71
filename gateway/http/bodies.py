"""Bodies of requests while they arrive: how long they may pause, and how much memory all of them may take.

Where there is no room for another piece, the body that has stalled longest gives way; a client that goes on sending
waits for that, and its TCP connection with it. So bodies that nobody finishes keep no other out.
"""

from __future__ import annotations

import asyncio
import logging

from aiohttp import web
from aiohttp.streams import StreamReader

from config.errors import RequestError
from config.registry import Limits
from gateway.http.seldom import Seldom

STALLED = 1.0
"""Seconds without `STEP` more bytes after which a body may have to give way."""
STEP = 16 * 1024
"""Bytes: less is no progress, or a client that sends a byte now and then would keep its place."""
_SHARE = 6
"""Of the largest bodies, how many may be under way at a time, unless the registry says otherwise."""

log = logging.getLogger("prism.http")


class _Unfinished:
    def __init__(self, due: asyncio.Timeout, now: float) -> None:
        self.data = bytearray()
        self.due = due
        self.progressed = now
        self.marked = 0
        self.cut = False


class Bodies:
    def __init__(self, limits: Limits) -> None:
        self._most = limits.max_body
        self._room = limits.unfinished_bodies or _SHARE * limits.max_body
        self._patience = limits.body_timeout
        self._held = 0
        self._unfinished: dict[_Unfinished, None] = {}
        """In the order of their last progress."""
        self._freed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._cut = Seldom(log, f"%d unfinished bodies gave way to others: more than {self._room} bytes at a time")

    async def read(self, request: web.Request) -> bytes:
        """The whole body.

        Raises:
            RequestError: 400 for a wrong encoding, 408 if it pauses for too long, 413, 503 if it has to give way.
        """
        try:
            if (request.content_length or 0) > self._most:
                raise self._too_large()
            if request.content.is_eof():  # as nearly always: it came with the headers
                return self._fitting(await request.content.readany())
            return await self._receive(request.content)
        except web.RequestPayloadError as error:
            raise RequestError(400, "The body is not as its headers say it is encoded.", code="invalid_body") from error

    async def _receive(self, content: StreamReader) -> bytes:
        loop = asyncio.get_running_loop()
        due = asyncio.timeout(self._patience)
        body = _Unfinished(due, loop.time())
        self._unfinished[body] = None
        try:
            async with due:
                while piece := await content.readany():
                    await self._take(body, piece)
                    due.reschedule(loop.time() + self._patience)
                return bytes(body.data)
        except TimeoutError:
            raise _gave_way() if body.cut else self._paused() from None
        finally:
            self._release(body)

    async def _take(self, body: _Unfinished, piece: bytes) -> None:
        self._held += len(piece)
        body.data += piece
        self._fitting(body.data)
        while self._held > self._room:
            await self._make_room()
        if body.cut:
            raise _gave_way()
        if len(body.data) - body.marked >= STEP:
            self._note_progress(body)

    async def _make_room(self) -> None:
        """End what has stalled longest, or wait until it has for long enough, or until others are done."""
        stalest = next(iter(self._unfinished))
        patience = stalest.progressed + STALLED - asyncio.get_running_loop().time()
        if patience > 0:
            await asyncio.wait((self._freed,), timeout=patience)
            return
        stalest.cut = True
        stalest.due.reschedule(0.0)
        self._release(stalest)
        self._cut.note()
        await asyncio.sleep(0)  # it may be the one that asks

    def _note_progress(self, body: _Unfinished) -> None:
        body.marked, body.progressed = len(body.data), asyncio.get_running_loop().time()
        del self._unfinished[body]
        self._unfinished[body] = None

    def _release(self, body: _Unfinished) -> None:
        """May be called twice."""
        if body in self._unfinished:
            del self._unfinished[body]
            self._held -= len(body.data)
            body.data = bytearray()
            self._freed.set_result(None)
            self._freed = asyncio.get_running_loop().create_future()

    def _fitting(self, data: bytes | bytearray) -> bytes:
        if len(data) > self._most:
            raise self._too_large()
        return data  # type: ignore[return-value]

    def _too_large(self) -> RequestError:
        return RequestError(413, f"The body is larger than {self._most} bytes.", code="body_too_large")

    def _paused(self) -> RequestError:
        return RequestError(408, f"Nothing of the body came for {self._patience:g} s.", code="body_timeout")


def _gave_way() -> RequestError:
    message = "Too many large bodies arrive at a time, and this one had stalled."
    return RequestError(503, message, kind="server_error", code="too_many_bodies", retry_after=1.0)

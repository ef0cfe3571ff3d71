"""Writing a stream to a client without waking a task for each event.

aiohttp's `StreamResponse.write` is a coroutine, which at 50,000 events a second costs more than all the rest. Once
the headers are out, events are written to the request's transport here, in HTTP/1.1's chunked form, from the callback
that received them; aiohttp still writes the headers and the end. Relies on aiohttp 3.13 to 3.14: `prepare` sends the
headers at once, and `write_eof` ends the chunked body with its last chunk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from aiohttp import web

from config.errors import RequestError
from enginepool.openai.errors import error_body

STREAMING = "prism.streaming"
"""Set in a request whose headers are on their way: it can be answered by nothing else."""


class EventStream:
    """A client's open stream. `finished` resolves when nothing more is to come."""

    def __init__(self, transport: asyncio.Transport, *, chunked: bool, buffer_limit: int) -> None:
        self._transport = transport
        self._chunked = chunked
        self._limit = buffer_limit
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def write(self, data: bytes) -> bool:
        """Send bytes now. False when the client has left more than the limit unread; it must be dropped then."""
        if self._transport.is_closing():
            return True  # the handler is being cancelled
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        return self._transport.get_write_buffer_size() <= self._limit

    def end(self, error: RequestError | None) -> None:
        """The last word, an error event if it went wrong."""
        if error is not None:
            self.write(b"data: " + error_body(error) + b"\n\n")
        if not self.finished.done():
            self.finished.set_result(None)

    def drop(self) -> None:
        """Break the connection: its client reads too slowly to be told anything."""
        self._transport.abort()


async def open_stream(
    request: web.Request, status: int, content_type: str, buffer_limit: int, headers: Mapping[str, str]
) -> tuple[web.StreamResponse, EventStream]:
    """Send the headers of a streamed answer."""
    response = web.StreamResponse(status=status, headers=headers)
    response.content_type = content_type
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Accel-Buffering"] = "no"
    chunked = request.version >= (1, 1)
    if chunked:
        response.enable_chunked_encoding()
    request[STREAMING] = True
    await response.prepare(request)
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client is gone")
    return response, EventStream(transport, chunked=chunked, buffer_limit=buffer_limit)

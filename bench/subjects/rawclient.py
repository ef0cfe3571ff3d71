"""A minimal-overhead HTTP/1.1 client, so that measurements reflect the server and not the client.

Requests are encoded once, connections are kept alive, replies are delimited by length only, and stream events are
counted without parsing them.
"""

from __future__ import annotations

import asyncio
import re
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import TypeVar, cast

import msgspec

from bench.errors import BadReply

EVENT = b"data: "
LAST_CHUNK = b"0\r\n\r\n"
NEWLINE = 10
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
CONNECTS_AT_A_TIME = 64

P = TypeVar("P", bound=asyncio.Protocol)


@dataclass(frozen=True)
class Address:
    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@dataclass(frozen=True)
class RawReply:
    status: int
    body: bytes


def chat_request(address: Address, model: str, *, prompt: str, max_tokens: int, stream: bool) -> bytes:
    """A complete POST to /v1/chat/completions, which can be sent any number of times."""
    fields = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "stream": stream,
    }
    body = msgspec.json.encode(fields)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.host}:{address.port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def cut_reply(received: bytes) -> RawReply | None:
    """Parse a reply; None while it is incomplete.

    Raises:
        BadReply: it is not HTTP/1.1, or has neither a length nor chunks.
    """
    head_end = received.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    status = status_of(received)
    body = received[head_end + 4 :]
    length = LENGTH.search(received, 0, head_end)
    if length is not None:
        return RawReply(status, body) if len(body) >= int(length[1]) else None
    if CHUNKED.search(received, 0, head_end) is not None:
        return RawReply(status, join_chunks(body)) if body.endswith(LAST_CHUNK) else None
    raise BadReply(f"a reply with neither length nor chunks: {received[:80]!r}")


def status_of(received: bytes) -> int:
    """The status of a reply of which at least the first line was received. Raises: BadReply."""
    if received[:9] != b"HTTP/1.1 " or not received[9:12].isdigit():
        raise BadReply(f"not an HTTP/1.1 reply: {received[:40]!r}")
    return int(received[9:12])


def join_chunks(body: bytes) -> bytes:
    """Decode a complete chunked body."""
    parts: list[bytes] = []
    while True:
        size_line, _, rest = body.partition(b"\r\n")
        size = int(size_line.partition(b";")[0], 16)
        if size == 0:
            return b"".join(parts)
        parts.append(rest[:size])
        body = rest[size + 2 :]


class RawConnection(asyncio.Protocol):
    """A keep-alive connection for one request at a time; `on_reply` gets None when the server closes it."""

    def __init__(self, on_reply: Callable[[RawReply | None], None]) -> None:
        self._on_reply = on_reply
        self._received = b""
        self._closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self, request: bytes) -> None:
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received = self._received + data if self._received else data
        reply = cut_reply(self._received)
        if reply is not None:
            self._received = b""
            self._on_reply(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._closing:
            self._on_reply(None)

    def close(self) -> None:
        self._closing = True
        self._transport.abort()


class Caller:
    """Sends requests one after the other on one connection, awaiting each reply."""

    def __init__(self) -> None:
        self._connection = RawConnection(self._deliver)
        self._reply: asyncio.Future[RawReply | None] = asyncio.get_running_loop().create_future()

    async def connect(self, address: Address) -> None:
        """Raises: OSError."""
        await connect(address, lambda: self._connection)

    async def call(self, request: bytes) -> RawReply | None:
        """Send a request; returns the reply, or None if the server closed the connection."""
        self._reply = asyncio.get_running_loop().create_future()
        self._connection.send(request)
        return await self._reply

    def close(self) -> None:
        self._connection.close()

    def _deliver(self, reply: RawReply | None) -> None:
        if not self._reply.done():
            self._reply.set_result(reply)


@dataclass
class EventCount:
    """Totals over all streams of a measurement."""

    streams: int
    events: int = 0
    begun: int = 0
    failed: int = 0
    """Number of streams that were refused or ended unexpectedly."""
    timing: bool = False
    gaps: array[float] = field(default_factory=lambda: array("d"))
    """Seconds between reads of a stream that contained events, recorded while `timing`."""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once every stream has begun or failed."""

    def settle(self, *, begun: bool) -> None:
        if begun:
            self.begun += 1
        else:
            self.failed += 1
        if self.begun + self.failed >= self.streams:
            self.settled.set()


class RawEventStream(asyncio.Protocol):
    """A streamed request on a connection of its own, sent at once and ended by `close`."""

    def __init__(self, request: bytes, count: EventCount) -> None:
        self._request = request
        self._count = count
        self._split = b""
        self._last = 0.0
        self._answered = self._refused = self._over = False
        self.events = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = perf_counter()
        if not self._answered:
            self._answered = True
            self._refused = data[9:12] != b"200"
        if self._refused or data.endswith(LAST_CHUNK):
            self._fail()
        found = self._count_events(data)
        if found:
            self._note(found, now)

    def _count_events(self, data: bytes) -> int:
        if self._split:
            data = self._split + data
            self._split = b""
        if data[-1] != NEWLINE:  # an event may have been split here
            self._split = data[max(data.rfind(b"\n"), len(data) - len(EVENT)) + 1 :]
        return data.count(EVENT)

    def _note(self, found: int, now: float) -> None:
        count = self._count
        if self.events == 0:
            count.settle(begun=True)
        elif count.timing:
            count.gaps.append(now - self._last)
        self._last = now
        self.events += found
        count.events += found

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail()

    def _fail(self) -> None:
        if not self._over:
            self._over = True
            self._count.settle(begun=False)

    def close(self) -> None:
        self._over = True
        self._transport.abort()


async def connect(address: Address, factory: Callable[[], P]) -> P:
    """Raises: OSError."""
    _, protocol = await asyncio.get_running_loop().create_connection(factory, address.host, address.port)
    return protocol


async def connect_many(address: Address, factory: Callable[[], P], number: int) -> list[P]:
    """Open `number` connections, few at a time so that the server's accept queue does not overflow. Raises: OSError."""
    made: list[P] = []
    while len(made) < number:
        batch = min(CONNECTS_AT_A_TIME, number - len(made))
        made += await asyncio.gather(*(connect(address, factory) for _ in range(batch)))
    return made

"""Clients' connections: how many, and for how long without a request.

aiohttp closes connections that are idle. It lacks a limit for headers that never end, and for the number of
connections: when the process has no file descriptor left, the kernel's own end of the queue closes newcomers without a
word, and neither `prism status` nor a worker's replacement gets one. So some are kept back for these, and of clients
that are too many those give way that have asked for nothing for longest; where all are busy, newcomers may ask how the
gateway is, and are refused otherwise. Relies on aiohttp 3.13 to 3.14: of `RequestHandler`, that `_waiter` is set while
it waits for a request, and `_request_count` counts them.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import resource
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from config.errors import RequestError
from config.registry import Registry
from enginepool.openai.errors import error_body
from gateway.http.seldom import Seldom

BACKLOG = 4096
"""Connections that may wait to be accepted."""
LINGERING = 1.0
"""Seconds that a client may go on sending a body that was refused already."""
MOST_FILES = 2**20
"""File descriptors: some systems have no limit, and programs that close all there may be."""
_OWN_FILES = 128
"""For all but clients and what grows with the registry."""
_FILES_PER_WORKER = 8
_LOOKS = 1024
"""Connections that are looked at for one that may give way."""
_GRACE = 1.0
"""Seconds that a connection may be idle in any case: its request may be on its way."""

log = logging.getLogger("prism.http")


def raise_file_limit() -> int:
    """Let this process and its children open as many files as they may; returns the number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return min(soft, MOST_FILES) if soft != resource.RLIM_INFINITY else MOST_FILES


def reserve(files: int, registry: Registry) -> int:
    """Of `files` that the process may have open, how many are not for clients."""
    pool = registry.pool
    workers = len(pool.devices) * pool.workers_per_device
    return min(files // 2, _OWN_FILES + _FILES_PER_WORKER * workers + len(registry.models))


class Connections:
    """Makes the protocol of each new connection. `serve` is aiohttp's server."""

    def __init__(self, server: web.Server, registry: Registry, files: int) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._limits = registry.gateway.limits
        kept = reserve(files, registry)
        self._clients = _Crowd(files - kept, _GRACE)
        self._guests = _Crowd(max(1, kept // 4), 0.0)
        """Beyond the clients, in what is kept back: to be told that there is no room."""
        at = f"at the limit of {files} open files (ulimit -n)"
        self._gave_way = Seldom(log, f"{at}: %d idle connections gave way to new ones")
        self._refused = Seldom(log, f"{at}, and all connections are busy: %d new ones were refused")

    def __call__(self) -> asyncio.Protocol:
        if self._room_in(self._clients):
            return self._connection(self._clients)
        self._refused.note()
        if self._room_in(self._guests):
            return self._connection(self._guests)
        return _Refusal()

    def _room_in(self, crowd: _Crowd) -> bool:
        if not crowd.full:
            return True
        idle = crowd.longest_idle()
        if idle is not None:
            idle.give_way()
            self._gave_way.note()
        return idle is not None

    def _connection(self, crowd: _Crowd) -> Connection:
        return Connection(
            self._server,
            crowd,
            guest=crowd is self._guests,
            header_timeout=self._limits.header_timeout,
            loop=self._loop,
            keepalive_timeout=self._limits.idle_timeout,
            lingering_time=LINGERING,
            access_log=None,
        )


class Connection(RequestHandler):
    """A `guest` is one more than there is room for."""

    __slots__ = ("_crowd", "_header_timeout", "_headers_due", "_seen", "_since", "guest")

    def __init__(
        self, server: web.Server, crowd: _Crowd, *, guest: bool, header_timeout: float, **settings: Any
    ) -> None:
        super().__init__(server, **settings)
        self._crowd = crowd
        self._header_timeout = header_timeout
        self._headers_due: asyncio.TimerHandle | None = None
        self.guest = guest
        self._seen = 0
        self._since = self._loop.time()
        crowd.add(self)

    @property
    def idle(self) -> bool:
        """Whether no whole request is here. At the very beginning nothing waits for one yet.

        Nor does anything just after an answer: what comes then is seen with the next bytes, or by `idle_timeout`.
        """
        return self._request_count == 0 or (self._waiter is not None and not self._waiter.done())

    def idle_for(self, seconds: float) -> bool:
        """Whether nothing was asked for so long, as far as looking now and then tells."""
        if self._request_count != self._seen:
            self._seen, self._since = self._request_count, self._loop.time()
        return self.idle and self._loop.time() - self._since >= seconds

    def data_received(self, data: bytes) -> None:
        RequestHandler.data_received(self, data)
        if self.idle:
            if self._headers_due is None:
                self._headers_due = self._loop.call_later(self._header_timeout, self._refuse_headers)
        elif self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def connection_lost(self, exc: BaseException | None) -> None:
        self._crowd.remove(self)
        if self._headers_due is not None:
            self._headers_due.cancel()
        super().connection_lost(exc)

    def give_way(self) -> None:
        """To another client: nothing has been asked here."""
        self._crowd.remove(self)
        self._end(TOO_MANY)

    def _refuse_headers(self) -> None:
        self._headers_due = None
        if self.idle:
            message = f"The headers did not end within {self._header_timeout:g} s."
            self._end(RequestError(408, message, code="header_timeout"))

    def _end(self, error: RequestError) -> None:
        if self.transport is not None:
            self.transport.write(_raw(error))
        self.force_close()


def is_guest(request: web.Request) -> bool:
    return request.protocol.guest  # type: ignore[attr-defined,no-any-return]


class _Crowd:
    """Connections that share a limit, in the order in which they came or were looked at."""

    def __init__(self, most: int, grace: float) -> None:
        self._most = most
        self._grace = grace
        self._all: dict[Connection, None] = {}

    @property
    def full(self) -> bool:
        return len(self._all) >= self._most

    def add(self, connection: Connection) -> None:
        self._all[connection] = None

    def remove(self, connection: Connection) -> None:
        """May be called twice."""
        self._all.pop(connection, None)

    def longest_idle(self) -> Connection | None:
        """One that may give way, if there is any among those that were not looked at for longest."""
        for connection in list(itertools.islice(self._all, _LOOKS)):
            if connection.idle_for(self._grace):
                return connection
            self.remove(connection)
            self.add(connection)
        return None


class _Refusal(asyncio.Protocol):
    """Says no without listening."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(_raw(TOO_MANY))
        transport.close()


class Site(web.BaseSite):
    """Where clients connect."""

    def __init__(self, runner: web.BaseRunner, connections: Connections, host: str, port: int) -> None:
        super().__init__(runner, backlog=BACKLOG)
        self._connections = connections
        self._host, self._port = host, port

    @property
    def name(self) -> str:
        return f"http://{self._host}:{self._port}"

    async def start(self) -> None:
        await super().start()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connections, self._host, self._port, backlog=BACKLOG)


TOO_MANY = RequestError(
    503, "The gateway has too many connections.", kind="server_error", code="too_many_connections", retry_after=1.0
)


def _raw(error: RequestError) -> bytes:
    """An answer to a client that has asked for nothing yet."""
    body = error_body(error)
    reason = {408: "Request Timeout", 503: "Service Unavailable"}[error.status]
    retry = f"Retry-After: {error.retry_after:.0f}\r\n" if error.retry_after else ""
    head = f"HTTP/1.1 {error.status} {reason}\r\nContent-Type: application/json\r\n{retry}"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body

"""Clients that nobody would wish for: they leave, stall, or cut their bodies."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.chaos.traffic import Question

PATIENCE = 60.0
"""Seconds until the gateway has given a client up that stalls."""


Client = Callable[[str, Question, int, random.Random], Coroutine[None, None, None]]
"""Asks a gateway at a URL; the number makes its body differ from others'."""


class Connection(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


async def connect(url: str, *, deaf: bool = False) -> Connection:
    """A deaf one has as little room as can be for what comes."""
    where = urlsplit(url)
    connection = socket.socket()
    connection.setblocking(False)
    if deaf:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    await asyncio.get_running_loop().sock_connect(connection, (where.hostname, where.port))
    return Connection(*await asyncio.open_connection(sock=connection, limit=1024 if deaf else 2**16))


async def leave(url: str, question: Question, number: int, chance: random.Random) -> None:
    """At once, or after some of its stream; in good order, or not."""
    connection = await connect(url)
    body = question.body(number, stream=True)
    connection.writer.write(_head(question, len(body)) + body)
    await connection.writer.drain()
    for _ in range(chance.choice((0, 0, 1, 4))):
        await connection.reader.readline()
    _go(connection, chance)


async def cut_body(url: str, question: Question, number: int, chance: random.Random) -> None:
    """Of a length that was promised, or in chunks; perhaps in the middle of the headers."""
    connection = await connect(url)
    body = question.body(number, stream=True)
    cut = body[: chance.randrange(len(body))]
    head = _head(question, len(body))
    chunked = head.replace(b"Content-Length: %d" % len(body), b"Transfer-Encoding: chunked")
    sent = chance.choice((head + cut, chunked + b"%x\r\n%b" % (len(body), cut), head[: chance.randrange(len(head))]))
    connection.writer.write(sent)
    await connection.writer.drain()
    _go(connection, chance)


async def stall(url: str, question: Question, number: int, chance: random.Random) -> None:
    """With half of its headers, or of its body, until the gateway gives it up."""
    connection = await connect(url)
    body = question.body(number, stream=True)
    whole = _head(question, len(body)) + body
    connection.writer.write(whole[: chance.randrange(10, len(whole))])
    try:
        async with asyncio.timeout(PATIENCE):
            with suppress(ConnectionError):
                await connection.reader.read(-1)
    finally:
        connection.writer.transport.abort()


async def deaf(url: str, question: Question, number: int) -> Connection:
    """One that has asked for a stream, and does not read it."""
    connection = await connect(url, deaf=True)
    body = question.body(number, stream=True)
    connection.writer.write(_head(question, len(body)) + body)
    await connection.writer.drain()
    return connection


def _head(question: Question, length: int) -> bytes:
    head = f"POST {question.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {length}\r\n\r\n".encode()


def _go(connection: Connection, chance: random.Random) -> None:
    if chance.random() < 0.5:
        connection.writer.close()
    else:
        connection.writer.transport.abort()

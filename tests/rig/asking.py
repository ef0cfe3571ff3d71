"""How a test asks a gateway as a client does: whole answers, streams, and bytes that no client library would send."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import openai

from tests.rig.serving import PATIENCE, Prism

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]
ENDLESS = 1_000_000
"""Tokens of an answer that is still under way when its test is over."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's error object; the answer must be one."""
        assert self.headers["Content-Type"] == "application/json"
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error

    @property
    def events(self) -> list[Any]:
        """Server-sent events, decoded; the last must be [DONE]."""
        events = events_of(self.body)
        assert events.pop() == "[DONE]"
        return [json.loads(event) for event in events]


def events_of(body: bytes) -> list[str]:
    """The data of each event; nothing may be between them."""
    pieces = body.decode().split("\n\n")
    assert pieces.pop() == ""
    assert all(piece.startswith("data: ") for piece in pieces)
    return [piece.removeprefix("data: ") for piece in pieces]


def connect(prism: Prism) -> http.client.HTTPConnection:
    where = urlsplit(prism.url)
    assert where.hostname is not None
    return http.client.HTTPConnection(where.hostname, where.port, timeout=PATIENCE)


def ask(prism: Prism, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
    """One request on a connection of its own. A `body` that is not bytes is sent as JSON."""
    connection = connect(prism)
    try:
        return ask_on(connection, method, path, body, headers)
    finally:
        connection.close()


def ask_on(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, data, dict(headers or {}))
    response = connection.getresponse()
    return Answer(response.status, dict(response.headers), response.read())


def chat(prism: Prism, model: str, *, headers: Mapping[str, str] | None = None, **fields: Any) -> Answer:
    return ask(prism, "POST", CHAT, {"model": model, "messages": HELLO, **fields}, headers)


def complete(prism: Prism, model: str, *, headers: Mapping[str, str] | None = None, **fields: Any) -> Answer:
    return ask(prism, "POST", COMPLETIONS, {"model": model, "prompt": "Once", **fields}, headers)


async def ask_raw(prism: Prism, request: bytes, until: bytes = b"") -> bytes:
    """Send exactly these bytes; returns what comes up to `until`, or until the gateway closes the connection."""
    where = urlsplit(prism.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.readuntil(until) if until else reader.read(), PATIENCE)
    finally:
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def session(prism: Prism) -> AsyncIterator[aiohttp.ClientSession]:
    """For many requests at a time."""
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    async with aiohttp.ClientSession(prism.url, timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as client:
        yield client


@asynccontextmanager
async def streaming(
    client: aiohttp.ClientSession, model: str, max_tokens: int, **fields: Any
) -> AsyncIterator[aiohttp.StreamReader]:
    """A streamed chat whose first bytes have come; leaving disconnects."""
    body = {"model": model, "messages": HELLO, "stream": True, "max_tokens": max_tokens, **fields}
    async with client.post(CHAT, json=body) as response:
        assert response.status == 200
        await response.content.readuntil(b"\n\n")
        yield response.content


def openai_client(prism: Prism) -> openai.OpenAI:
    """The official client, which must succeed at once: it may not try again."""
    return openai.OpenAI(base_url=prism.url + "/v1", api_key="none", max_retries=0, timeout=PATIENCE)

"""Streams answers to prompts of random tokens, which never share a prefix with cached ones."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import msgspec

from bench.calibration.subject import TOKEN_IDS
from bench.subjects.rawclient import Address, EventCount, RawEventStream, connect
from simulator.errors import StudyError

LONG, SHORT = 1536, 768
"""Maximum tokens of answers, which are aborted before that. Engines reserve KV cache for the whole answer, so large
batches ask for short ones."""
LARGE = 16
"""Largest batch that asks for long answers."""


@dataclass(frozen=True)
class DecodeRate:
    """The decode rate of a batch."""

    seconds: float
    """Seconds per step."""
    said: float
    """Output tokens of each request in the middle of the measurement."""


class Streams:
    """Sends requests to one gateway. `options` are request fields that only some engines accept."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._options = options
        parts = urlsplit(url)
        self._address = Address(parts.hostname or "127.0.0.1", parts.port or 80)
        self._random = random.Random(0)

    @asynccontextmanager
    async def decoding(self, model: str, prompts: Sequence[int]) -> AsyncIterator[EventCount]:
        """Send prompts of these lengths; inside the block, all have their first token and are decoding.

        Raises:
            StudyError: a request was refused or has ended.
        """
        count = EventCount(len(prompts))
        answer = LONG if len(prompts) <= LARGE else SHORT
        streams = [await self._open(model, tokens, answer, count) for tokens in prompts]
        try:
            await count.settled.wait()
            _check(count, model)
            yield count
            _check(count, model)
        finally:
            for stream in streams:
                stream.close()

    async def first_token(self, model: str, tokens: int) -> float:
        """TTFT in seconds of a prompt of `tokens` tokens. Raises: StudyError."""
        count = EventCount(1)
        began = perf_counter()
        stream = await self._open(model, tokens, SHORT, count)
        try:
            await count.settled.wait()
            _check(count, model)
            return perf_counter() - began
        finally:
            stream.close()

    async def _open(self, model: str, tokens: int, answer: int, count: EventCount) -> RawEventStream:
        request = self._request(model, tokens, answer)
        try:
            return await connect(self._address, partial(RawEventStream, request, count))
        except OSError as error:
            raise StudyError(f"{self._address.url} does not answer: {error}") from error

    def _request(self, model: str, tokens: int, answer: int) -> bytes:
        fields = {
            "model": model,
            "prompt": self._random.choices(TOKEN_IDS, k=tokens),
            "max_tokens": answer,
            "temperature": 0,
            "stream": True,
            **self._options,
        }
        body = msgspec.json.encode(fields)
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {self._address.host}:{self._address.port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


def _check(count: EventCount, model: str) -> None:
    if count.failed:
        raise StudyError(f"{model}: {count.failed} of {count.streams} streams were refused or ended early")


async def rates(counts: Sequence[EventCount], seconds: float) -> list[DecodeRate]:
    """Measure the decode rates of batches for `seconds`."""
    before, began = [count.events for count in counts], perf_counter()
    await asyncio.sleep(seconds)
    took = perf_counter() - began
    return [_rate(count, events, took) for count, events in zip(counts, before, strict=True)]


def _rate(count: EventCount, before: int, took: float) -> DecodeRate:
    """Raises: StudyError if no tokens came."""
    seen = count.events - before
    if not seen:
        raise StudyError(f"no token within {took:.1f} s")
    return DecodeRate(took * count.streams / seen, (before + seen / 2) / count.streams)

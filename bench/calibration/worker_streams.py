"""Streamed answers to prompts of random tokens, of which no beginning was ever in a prefix cache."""

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
"""Tokens of an answer that is given up before it is complete. An engine keeps KV cache for what is still to come, so
that large batches ask for less."""
LARGE = 16
"""The largest batch that asks for long answers."""


@dataclass(frozen=True)
class DecodeRate:
    """Of a batch that decodes."""

    seconds: float
    """Of a step."""
    said: float
    """Tokens of each answer in the middle of the measurement."""


class Streams:
    """Asks one gateway. `options` are fields of a request that only some engines take."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._options = options
        parts = urlsplit(url)
        self._address = Address(parts.hostname or "127.0.0.1", parts.port or 80)
        self._random = random.Random(0)

    @asynccontextmanager
    async def decoding(self, model: str, prompts: Sequence[int]) -> AsyncIterator[EventCount]:
        """A prompt of each of these lengths; all have their first token, and decode until the end of the block.

        Raises:
            StudyError: one was refused or has ended.
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
        """Seconds. Raises: StudyError."""
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
    """Watch batches that decode for so long."""
    before, began = [count.events for count in counts], perf_counter()
    await asyncio.sleep(seconds)
    took = perf_counter() - began
    return [_rate(count, events, took) for count, events in zip(counts, before, strict=True)]


def _rate(count: EventCount, before: int, took: float) -> DecodeRate:
    """Raises: StudyError when nothing came."""
    seen = count.events - before
    if not seen:
        raise StudyError(f"no token within {took:.1f} s")
    return DecodeRate(took * count.streams / seen, (before + seen / 2) / count.streams)

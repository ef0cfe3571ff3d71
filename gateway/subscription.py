"""One subscriber's bounded queue of journal entries. A slow subscriber holds nobody up: it loses the oldest entries."""

from __future__ import annotations

import asyncio
from collections import deque

from msgspec import Struct

from gateway.report import JournalEntry


class Missed(Struct, frozen=True):
    """Read in place of entries that were dropped because the subscriber was too slow."""

    count: int


class Subscription:
    """`async for it in subscription` waits for and reads one entry after another, without end. For a single reader."""

    def __init__(self, capacity: int) -> None:
        self._unread: deque[JournalEntry] = deque(maxlen=capacity)
        self._missed = 0
        self._readable = asyncio.Event()

    def put(self, entry: JournalEntry) -> None:
        """Add an entry, at the expense of the oldest one if the queue is full."""
        if len(self._unread) == self._unread.maxlen:
            self._missed += 1
        self._unread.append(entry)
        self._readable.set()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> JournalEntry | Missed:
        await self._readable.wait()
        if self._missed:
            missed, self._missed = Missed(self._missed), 0
            return missed
        entry = self._unread.popleft()
        if not self._unread:
            self._readable.clear()
        return entry

"""The requests that the gateway has taken in and whose clients are still there, by number."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from gateway.live import LiveRequest


class InFlight(dict[int, LiveRequest]):
    """A dict, since every chunk of an answer looks its request up. Change it with `add` and `remove` only."""

    def __init__(self) -> None:
        super().__init__()
        self._none = asyncio.Event()
        self._none.set()

    def add(self, live: LiveRequest) -> None:
        self[live.id] = live
        self._none.clear()

    def remove(self, live: LiveRequest) -> None:
        del self[live.id]
        if not self:
            self._none.set()

    async def drained(self) -> None:
        """Wait until no request is in flight."""
        await self._none.wait()

    def requeue(self, workers: Collection[int]) -> None:
        """These workers' processes are gone: requests of theirs without a first token can be served elsewhere."""
        for live in self.values():
            if live.worker in workers and live.first_token_at is None:
                live.requeue()

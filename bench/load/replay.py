"""Sends requests on schedule, whether or not the server keeps up."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import suppress
from time import perf_counter

import aiohttp

from bench.load.client import stream_chat
from bench.load.outcomes import RequestOutcome
from bench.load.workload import Arrival
from simulator.percentiles import percentile
from simulator.progress import say, say_again

LATENESS_ALLOWED = 0.05
"""Maximum 99th percentile of lateness, in seconds, in a run that counts as having kept its schedule."""
PROGRESS_EVERY = 1.0
PROGRESS_EVERY_IN_A_LOG = 5.0


class Replay:
    """One run of a plan with the given request `bodies`. `outcomes` contains all requests sent."""

    def __init__(
        self, client: aiohttp.ClientSession, url: str, plan: Sequence[Arrival], bodies: Sequence[bytes], patience: float
    ) -> None:
        self.outcomes: list[RequestOutcome] = []
        self.stopped = False
        self.began = 0.0
        """Start of the run on the performance counter, from which outcomes count."""
        self._client = client
        self._url = url
        self._plan = plan
        self._bodies = bodies
        self._patience = patience
        self._running: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Stop sending and drop requests in flight; `run` returns soon after."""
        self.stopped = True
        self._stop.set()

    async def run(self) -> float:
        """Send all requests and wait for the last answer; returns the seconds taken."""
        self.began = perf_counter()
        progress = asyncio.create_task(self._report())
        try:
            await self._send_all()
            await self._finish()
        finally:
            progress.cancel()
            await self._drop()
        return self._now()

    def _now(self) -> float:
        return perf_counter() - self.began

    async def _send_all(self) -> None:
        for arrival, body in zip(self._plan, self._bodies, strict=True):
            await self._wait_until(arrival.at)
            if self.stopped:
                return
            task = asyncio.create_task(self._send(arrival, body))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _wait_until(self, at: float) -> None:
        """Sleep until the next request is due, or the run is stopped."""
        while (left := at - self._now()) > 0 and not self.stopped:  # the event loop's timers may be 1 ms early
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._stop.wait()
        await asyncio.sleep(0)

    async def _send(self, arrival: Arrival, body: bytes) -> None:
        outcome = RequestOutcome(arrival, sent=self._now())
        self.outcomes.append(outcome)
        await stream_chat(self._client, self._url, body, outcome, self._now, self._patience)

    async def _finish(self) -> None:
        """Wait for requests in flight, each of which has its own timeout."""
        stop = asyncio.create_task(self._stop.wait())
        try:
            while self._running and not self.stopped:
                await asyncio.wait({*self._running, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()

    async def _drop(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _report(self) -> None:
        terminal = sys.stderr.isatty()
        while True:
            await asyncio.sleep(PROGRESS_EVERY if terminal else PROGRESS_EVERY_IN_A_LOG)
            (say_again if terminal else say)(self._progress())

    def _progress(self) -> str:
        failed = sum(outcome.error is not None for outcome in self.outcomes)
        ttfts = [outcome.ttft for outcome in self.outcomes[-1000:] if outcome.ttft is not None]
        ttft = percentile(ttfts, 50)
        recent = "-" if ttft is None else f"{ttft:.3f} s"
        return (
            f"{self._now():7.1f} s  sent {len(self.outcomes)} of {len(self._plan)}  in flight {len(self._running)}"
            f"  failed {failed}  TTFT p50 {recent}"
        )

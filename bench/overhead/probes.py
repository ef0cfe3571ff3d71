"""The measurements, on servers already running. Durations are in seconds, results in the unit of their name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from time import perf_counter

import psutil

from bench.overhead.targets import MODEL, PROMPT, Target, small_chat
from bench.subjects.rawclient import (
    Address,
    Caller,
    EventCount,
    RawConnection,
    RawEventStream,
    RawReply,
    chat_request,
    connect_many,
)
from simulator.errors import StudyError

SETTLE_REQUESTS = 2
"""Requests to settle in at the start of each round at concurrency 1, as other servers have just used the CPU caches."""
ENDLESS = 1_000_000
"""Tokens, more than any stream will receive."""
BEGIN_TIMEOUT = 60.0
SETTLE_STREAMS = 1.0
MEMORY_STEADY = 2**18
"""Maximum change of resident memory per second, in bytes, to count as steady."""


# --- added latency at concurrency 1 ---------------------------------------------------------------------------


@dataclass
class Latencies:
    """Seconds of each correct answer, and the number of others."""

    seconds: list[float] = field(default_factory=list)
    failed: int = 0


async def latency(
    targets: Sequence[Target], requests: dict[str, int], rounds: int, expected: bytes, tick: Callable[[str], None]
) -> dict[str, Latencies]:
    """Send single requests, `requests[name]` to each target in turn, for `rounds` rounds, so that noise affects all
    targets alike.

    Raises:
        StudyError: a target closes the connection.
    """
    found = {target.name: Latencies() for target in targets}
    callers = {target.name: Caller() for target in targets}
    for target in targets:
        await callers[target.name].connect(target.address)
    try:
        for number in range(rounds):
            tick(f"round {number + 1} of {rounds}")
            for target in targets:
                await _one_round(target, callers[target.name], requests[target.name], expected, found[target.name])
    finally:
        for caller in callers.values():
            caller.close()
    return found


async def _one_round(target: Target, caller: Caller, requests: int, expected: bytes, found: Latencies) -> None:
    request = small_chat(target.address)
    for number in range(SETTLE_REQUESTS + requests):
        began = perf_counter()
        reply = await caller.call(request)
        took = perf_counter() - began
        if reply is None:
            raise StudyError(f"{target.name} hung up in the middle of the measurement")
        if not _is_right(reply, expected):
            found.failed += 1
        elif number >= SETTLE_REQUESTS:
            found.seconds.append(took)


def _is_right(reply: RawReply, expected: bytes) -> bool:
    return reply.status == 200 and expected in reply.body


# --- requests per second --------------------------------------------------------------------------------------


class ClosedLoop:
    """Connections that send the next request as soon as they have received the reply to the previous one."""

    def __init__(self, request: bytes, expected: bytes) -> None:
        self.done = 0
        self.failed = 0
        self._request = request
        self._expected = expected
        self._connections: list[RawConnection] = []
        self._stop_at: int | None = None
        self._reached = asyncio.Event()

    async def start(self, address: Address, concurrency: int) -> None:
        """Raises: OSError."""
        self._connections = await connect_many(address, self._connection, concurrency)
        for connection in self._connections:
            connection.send(self._request)

    async def until(self, done: int) -> None:
        """Wait until `done` requests have been answered. Raises: StudyError if all connections are lost."""
        self._stop_at = done
        self._reached.clear()
        if self.done < done and self._connections:
            await self._reached.wait()
        if self.done < done:
            raise StudyError(f"the server closed every connection after {self.done} requests")

    def stop(self) -> None:
        for connection in self._connections:
            connection.close()
        self._connections = []

    def _connection(self) -> RawConnection:
        connection = RawConnection(lambda reply: self._on_reply(connection, reply))
        return connection

    def _on_reply(self, connection: RawConnection, reply: RawReply | None) -> None:
        if reply is None:
            self.failed += 1
            self._connections.remove(connection)
            if not self._connections:
                self._reached.set()
            return
        self.done += 1
        self.failed += not _is_right(reply, self._expected)
        if self.done == self._stop_at:
            self._reached.set()
        connection.send(self._request)


@asynccontextmanager
async def closed_loop(target: Target, concurrency: int, expected: bytes) -> AsyncIterator[ClosedLoop]:
    """Put load on `target` during the block. Raises: StudyError if it accepts no connections."""
    loop = ClosedLoop(small_chat(target.address), expected)
    try:
        await loop.start(target.address, concurrency)
        yield loop
    except OSError as error:
        raise StudyError(f"{target.name} takes no connections: {error}") from error
    finally:
        loop.stop()


@dataclass(frozen=True)
class Throughput:
    requests_per_s: float
    failed: int
    cpu_ms_per_request: float
    """CPU time of the target's own process, without its workers."""


async def throughput(target: Target, concurrency: int, seconds: float, expected: bytes) -> Throughput:
    """Requests per second of a target with `concurrency` requests in flight, after a short warm-up."""
    async with closed_loop(target, concurrency, expected) as loop:
        await asyncio.sleep(seconds / 5)
        before, cpu_before, began = loop.done, _cpu(target), perf_counter()
        await asyncio.sleep(seconds)
        done, cpu, took = loop.done - before, _cpu(target) - cpu_before, perf_counter() - began
    return Throughput(done / took, loop.failed, 1000 * cpu / done if done else 0.0)


def _cpu(target: Target) -> float:
    times = psutil.Process(target.server.pid).cpu_times()
    return float(times.user + times.system)


# --- events per second ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Streaming:
    """What `streams` streams delivered in a steady window."""

    offered_per_s: float
    delivered_per_s: float
    gap_s: Sequence[float]
    """Seconds between reads of a stream that contained events."""
    begun: int
    failed: int
    slowest_per_s: float
    """Events per second of the slowest stream."""


async def streaming(target: Target, streams: int, tokens_per_s: float, window: float) -> Streaming:
    """Open endless streams, wait until all have begun, and count events for `window` seconds."""
    request = chat_request(target.address, MODEL, prompt=PROMPT, max_tokens=ENDLESS, stream=True)
    count = EventCount(streams)
    async with open_streams(target, request, streams, count) as opened:
        await _until_begun(count)
        await asyncio.sleep(SETTLE_STREAMS)
        each_before = [stream.events for stream in opened]
        before, began, count.timing = count.events, perf_counter(), True
        await asyncio.sleep(window)
        count.timing, took = False, perf_counter() - began
        slowest = min(stream.events - then for stream, then in zip(opened, each_before, strict=True))
        delivered = (count.events - before) / took
    return Streaming(streams * tokens_per_s, delivered, count.gaps, count.begun, count.failed, slowest / took)


@asynccontextmanager
async def open_streams(
    target: Target, request: bytes, number: int, count: EventCount
) -> AsyncIterator[list[RawEventStream]]:
    """Keep `number` streams open during the block. Raises: StudyError if the target accepts no connections."""
    opened: list[RawEventStream] = []

    def new_stream() -> RawEventStream:
        opened.append(RawEventStream(request, count))
        return opened[-1]

    try:
        await connect_many(target.address, new_stream, number)
        yield opened
    except OSError as error:
        raise StudyError(f"{target.name} takes no {number} streams: {error}") from error
    finally:
        for stream in opened:
            stream.close()


async def _until_begun(count: EventCount) -> None:
    """Wait until all streams have begun; after a timeout, the target is measured with those that have."""
    with suppress(TimeoutError):
        async with asyncio.timeout(BEGIN_TIMEOUT):
            await count.settled.wait()


# --- memory ---------------------------------------------------------------------------------------------------


async def idle_streams(target: Target, streams: int) -> float:
    """Bytes of resident memory used by `streams` requests that wait for their first token.

    Raises:
        StudyError: some of them failed or were answered.
    """
    request = chat_request(target.address, MODEL, prompt=PROMPT, max_tokens=8, stream=True)
    warm_up, count = EventCount(8), EventCount(streams)
    async with open_streams(target, request, 8, warm_up):
        before = await _steady_memory(target)
        async with open_streams(target, request, streams, count):
            after = await _steady_memory(target)
            if count.failed or count.begun:
                raise StudyError(f"{count.failed} of {streams} idle streams failed and {count.begun} were answered")
    return after - before


async def _steady_memory(target: Target) -> float:
    last = -1.0
    while True:
        await asyncio.sleep(1)
        now = resident(target)
        if abs(now - last) <= MEMORY_STEADY:
            return now
        last = now


async def soak(
    target: Target, concurrency: int, first: int, last: int, expected: bytes, tick: Callable[[str], None]
) -> float:
    """Growth of resident memory, in bytes, from request number `first` to `last`.

    Raises:
        StudyError: a request failed.
    """
    async with closed_loop(target, concurrency, expected) as loop:
        await loop.until(first)
        before = resident(target)
        for part in range(1, 11):
            await loop.until(first + (last - first) * part // 10)
            tick(f"{loop.done} of {last} requests, {resident(target) / 2**20:.1f} MiB")
        if loop.failed:
            raise StudyError(f"{loop.failed} of {last} requests of the soak failed")
        return resident(target) - before


def resident(target: Target) -> float:
    """Resident memory of the target's own process in bytes, without its workers."""
    return float(psutil.Process(target.server.pid).memory_info().rss)

"""One run of the overhead benchmark: starts the servers for each measurement and collects the figures."""

from __future__ import annotations

import platform
import statistics
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import psutil

from bench.overhead import peers, probes
from bench.overhead.targets import LAUNCHES, Target, Timing, answer_of, plain, prism
from simulator.errors import StudyError
from simulator.percentiles import percentile
from simulator.progress import say, say_again

PEERS = ("sglang-router", "litellm")
CONCURRENCY = 32
STREAMS = 1000
PACE = 50
"""Tokens per second and stream."""
DENSE_PACE = 100
"""Tokens per second and stream in the dense measurement, since at PACE no server can exceed STREAMS * PACE."""
SOAK = (20_000, 120_000)
IDLE_TTFT = 3600.0
MEGABYTE = 1e6


@dataclass(frozen=True)
class OverheadEffort:
    """The extent of the measurements."""

    rounds: int
    requests: int
    slow_requests: int
    """Requests per round for servers that are many times slower."""
    throughput_rounds: int
    throughput_seconds: float
    streams: int
    window: float


FULL = OverheadEffort(60, 50, 15, 3, 3.0, STREAMS, 8.0)
QUICK = OverheadEffort(4, 20, 5, 1, 1.0, 100, 2.0)


@dataclass
class OverheadRun:
    """One run of the benchmark, with its settings and results."""

    effort: OverheadEffort
    peers: list[str]
    soak: bool
    direct: dict[str, Any] = field(default_factory=dict)
    prism: dict[str, Any] = field(default_factory=lambda: {"failed": 0})
    of_peers: dict[str, dict[str, Any]] = field(default_factory=dict)

    async def measure(self) -> None:
        """Raises: StudyError."""
        await self.measure_replies()
        await self.measure_streams(PACE, "paced")
        await self.measure_streams(DENSE_PACE, "dense")
        await self.measure_idle()
        if self.soak:
            await self.measure_soak()

    def figures(self) -> dict[str, Any]:
        keys = ("added_p50_ms", "added_p99_ms", "requests_per_s", "events_per_s", "idle_streams_mb", "rss_growth_mb")
        first = {key: self.prism.get(key) for key in keys}
        first["streams"] = self.effort.streams
        return {**first, **self.prism, "direct": self.direct, "peers": self.of_peers, "machine": machine(self.peers)}

    # whole replies

    async def measure_replies(self) -> None:
        async with self.serving(Timing()) as targets:
            expected = await same_answer(targets)
            await self.measure_latency(targets, expected)
            await self.measure_throughput(targets, expected)

    async def measure_latency(self, targets: Sequence[Target], expected: bytes) -> None:
        effort = self.effort
        say("added latency, one request at a time")
        requests = {target.name: effort.requests for target in targets} | {"litellm": effort.slow_requests}
        found = await probes.latency(targets, requests, effort.rounds, expected, say_again)
        direct = found.pop("direct")
        for rank in (50, 99):
            base = 1000 * (percentile(direct.seconds, rank) or 0.0)
            self.direct[f"p{rank}_ms"] = base
            for name, latencies in found.items():
                through = percentile(latencies.seconds, rank)
                self.of(name)[f"added_p{rank}_ms"] = None if through is None else 1000 * through - base
        for name, latencies in found.items():
            self.of(name)["failed"] += latencies.failed

    async def measure_throughput(self, targets: Sequence[Target], expected: bytes) -> None:
        effort = self.effort
        rounds: dict[str, list[probes.Throughput]] = {target.name: [] for target in targets}
        for number in range(effort.throughput_rounds):
            for target in targets:
                say(f"requests per second, {CONCURRENCY} at a time, round {number + 1}: {target.name}")
                rounds[target.name].append(
                    await probes.throughput(target, CONCURRENCY, effort.throughput_seconds, expected)
                )
        for name, found in rounds.items():
            figures = self.of(name)
            figures["requests_per_s"] = statistics.median(each.requests_per_s for each in found)
            figures["cpu_ms_per_request"] = statistics.median(each.cpu_ms_per_request for each in found)
            figures["failed"] = figures.get("failed", 0) + sum(each.failed for each in found)

    # streams

    async def measure_streams(self, pace: int, name: str) -> None:
        """Measure one server at a time, with no other running, as this takes the whole machine."""
        timing = Timing(tpot=1 / pace)
        for target_name in ("direct", "prism", *self.peers):
            async with self.serving(timing, only=target_name) as targets:
                for target in targets:
                    await self.measure_streams_of(target, pace, name)

    async def measure_streams_of(self, target: Target, pace: int, name: str) -> None:
        say(f"{self.effort.streams} streams of {pace} tokens/s: {target.name}")
        try:
            found = await probes.streaming(target, self.effort.streams, pace, self.effort.window)
        except StudyError as error:
            if target.name not in self.peers:
                raise
            self.lose(target.name, error)
        else:
            self.note_streams(self.of(target.name), name, found)

    @staticmethod
    def note_streams(figures: dict[str, Any], name: str, found: probes.Streaming) -> None:
        gap = percentile(found.gap_s, 99)
        figures[name] = {
            "offered": found.offered_per_s,
            "delivered": found.delivered_per_s,
            "gap_p99_ms": None if gap is None else 1000 * gap,
            "begun": found.begun,
            "failed": found.failed,
            "slowest_stream_per_s": found.slowest_per_s,
        }
        figures["events_per_s"] = max(figures.get("events_per_s", 0.0), found.delivered_per_s)
        figures["failed"] = figures.get("failed", 0) + found.failed

    # memory

    async def measure_idle(self) -> None:
        say(f"memory of {STREAMS} streams that wait for their first token")
        async with self.serving(Timing(ttft=IDLE_TTFT), only="prism") as (target,):
            self.prism["idle_streams_mb"] = await probes.idle_streams(target, STREAMS) / MEGABYTE

    async def measure_soak(self) -> None:
        say("memory growth over {:,} to {:,} requests".format(*SOAK))
        async with self.serving(Timing(), only="prism") as (target,):
            expected = await same_answer([target])
            grown = await probes.soak(target, CONCURRENCY, *SOAK, expected, say_again)
            self.prism["rss_growth_mb"] = grown / MEGABYTE

    # servers

    def of(self, name: str) -> dict[str, Any]:
        if name == "direct":
            return self.direct
        return self.prism if name == "prism" else self.of_peers.setdefault(name, {"failed": 0})

    @asynccontextmanager
    async def serving(self, timing: Timing, only: str | None = None) -> AsyncIterator[list[Target]]:
        """Run the plain server, Prism and the peers, or only the named one with its upstream."""
        wanted = ["direct", "prism", *self.peers] if only is None else [only]
        async with AsyncExitStack() as stack:
            targets = []
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prism-bench-")))
            if wanted != ["prism"]:
                upstream = await stack.enter_async_context(plain(timing))
                targets += [upstream] if "direct" in wanted else []
            if "prism" in wanted:
                targets.append(await stack.enter_async_context(prism(timing, folder)))
            for name in [peer for peer in self.peers if peer in wanted]:
                try:
                    targets.append(await stack.enter_async_context(LAUNCHES[name](upstream.address, folder)))
                except StudyError as error:
                    self.lose(name, error)
            yield targets

    def lose(self, peer: str, error: StudyError) -> None:
        """Continue without a peer, whose remaining figures will be missing."""
        say(f"{peer} is missing, so this run proves nothing about it: {error}")
        self.peers.remove(peer)
        self.of(peer)["missing"] = str(error).splitlines()[0]


async def same_answer(targets: Sequence[Target]) -> bytes:
    """Check that all targets give the same answer; returns its text as encoded in JSON.

    Raises:
        StudyError: answers differ, so figures would not be comparable.
    """
    answers = {target.name: await answer_of(target) for target in targets}
    texts = {answer.text for answer in answers.values()}
    if len(set(answers.values())) != 1:
        raise StudyError(f"the servers do not give the same answer: {answers}")
    return msgspec.json.encode(texts.pop())


def machine(used: Sequence[str]) -> dict[str, Any]:
    packages = ("aiohttp", "uvloop", "msgspec")
    return {
        "cpus": len(psutil.Process().cpu_affinity() or []),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in packages} | (peers.versions() if used else {}),
    }

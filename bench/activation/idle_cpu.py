"""Measures the CPU use of idle workers."""

from __future__ import annotations

import asyncio
import time

import psutil

from bench.load.operating import pid_of
from bench.subjects.gateway_under_test import GatewayUnderTest
from simulator.errors import StudyError

BEFORE = 5.0
"""Seconds to wait first, for work that workers do when they become idle, such as capturing graphs."""
WINDOW = 10.0
"""Seconds over which CPU use is measured."""


async def idle_shares(subject: GatewayUnderTest) -> dict[str, float]:
    """Share of a core used by the busiest worker's processes, by state. No requests may be sent meanwhile.

    Raises: StudyError.
    """
    await asyncio.sleep(BEFORE)
    workers = await subject.workers()
    before, began = [_cpu_seconds(pid_of(it)) for it in workers], time.perf_counter()
    await asyncio.sleep(WINDOW)
    after, took = [_cpu_seconds(pid_of(it)) for it in workers], time.perf_counter() - began
    shares: dict[str, float] = {}
    for worker, used, by_now in zip(workers, before, after, strict=True):
        shares[worker.state] = max(shares.get(worker.state, 0.0), (by_now - used) / took)
    return shares


def _cpu_seconds(pid: int) -> float:
    """CPU seconds of a worker's process and its children."""
    try:
        front = psutil.Process(pid)
        times = [process.cpu_times() for process in (front, *front.children(recursive=True))]
    except psutil.NoSuchProcess as error:
        raise StudyError(f"a worker ended while it was idle: {error}") from error
    return sum(it.user + it.system for it in times)

"""Measures how soon a killed worker is replaced and its memory freed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import NamedTuple

from bench.activation.rounds import FREED
from bench.load.operating import pid_of
from bench.subjects.device_memory import DeviceMemory
from bench.subjects.gateway_under_test import GatewayUnderTest
from scheduler.state.phases import Phase
from simulator.errors import StudyError

WITHIN = 120.0
"""Timeout in seconds."""


class Replacement(NamedTuple):
    """Seconds from the kill."""

    blank: float
    """Until a new worker is ready."""
    memory: float | None
    """Until the weights' device memory is free; None on a CPU."""


async def kill(subject: GatewayUnderTest, memory: DeviceMemory | None, model: str) -> Replacement:
    """Activate the model and send SIGKILL to its worker's process. Raises: StudyError."""
    await subject.command("activate", model=model)
    await subject.settled()
    worker = await subject.active_worker(model)
    nbytes = (await subject.models())[model].weight_bytes
    freed = None if memory is None else memory.until_below(memory.used - FREED * nbytes, WITHIN)
    began = time.perf_counter()
    os.kill(pid_of(worker), signal.SIGKILL)
    watching = None if freed is None else asyncio.create_task(freed)
    try:
        await subject.until_workers(
            lambda workers: any(
                it.worker == worker.worker and it.pid != worker.pid and it.state is Phase.BLANK for it in workers
            ),
            "a killed one is replaced",
            WITHIN,
        )
        blank = time.perf_counter() - began
        after = None if watching is None else await watching
    finally:
        if watching is not None:
            watching.cancel()
    if watching is not None and after is None:
        raise StudyError(f"a killed worker's memory is still in use after {WITHIN:g} s")
    return Replacement(blank, after)

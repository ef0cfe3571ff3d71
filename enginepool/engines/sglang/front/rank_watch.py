"""Watches a worker's rank: kills it when it hangs, and measures the GPU memory that it uses."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

import pynvml

from enginepool.engine import EngineLoad
from enginepool.engines.sglang.front.rank_process import RankProcess
from enginepool.engines.sglang.gpu.memory import GpuMemory
from enginepool.engines.sglang.protocol import StartRank
from enginepool.mps import control

log = logging.getLogger("prism.sglang")

SILENCE_CHECKS = 10
"""How many times to check for signs of life from the rank before it counts as hung."""
MEASURE_INTERVAL = 1.0
"""Seconds between measurements of the GPU's memory."""


class RankWatch:
    """Starts watching at once, on the running event loop. Measurements go into `load`.

    The gateway only monitors the front's process, so it is the front that has to notice a hung rank.
    """

    def __init__(self, rank: RankProcess, start: StartRank, load: EngineLoad, *, has_model: Callable[[], bool]) -> None:
        self._rank = rank
        self._mps = start.mps
        self._load = load
        self._has_model = has_model
        self.heard = 0
        """Number of unsolicited messages from the rank; its receiver counts them here."""
        self._heard_before = 0
        watching = (
            self._measure(start.gpu),
            self._kill_if(self._says_nothing, start.patience, "has not said anything"),
            self._kill_if(lambda: rank.stopped, start.silence, "was stopped"),
        )
        self._tasks = [asyncio.get_running_loop().create_task(it) for it in watching]

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def leave_gpu(self) -> None:
        """End the rank's GPU work through MPS, before it is killed. It is in this worker's process group."""
        if self._mps is not None:
            await control.terminate(self._mps.pipes, os.getpgrp())

    async def _measure(self, gpu: str) -> None:
        """Root of the task that measures GPU memory."""
        if not gpu:
            return
        try:
            memory = GpuMemory(gpu, self._rank.pid)
            while True:
                self._load.device_used = await asyncio.to_thread(memory.of_device)
                self._load.process_used = await asyncio.to_thread(memory.of_process)
                await asyncio.sleep(MEASURE_INTERVAL)
        except pynvml.NVMLError as error:
            log.warning("NVML does not report the memory in use on GPU %s: %s", gpu, error)

    async def _kill_if(self, is_hung: Callable[[], bool], patience: float, what: str) -> None:
        """Root of a task that kills the rank once `is_hung` has held for `patience` seconds.

        It counts checks instead of comparing times, so that the rank survives if this process was stopped for a while.
        """
        hung = 0
        while hung < SILENCE_CHECKS:
            await asyncio.sleep(patience / SILENCE_CHECKS)
            hung = hung + 1 if is_hung() else 0
        log.error("the rank %s for %g s and counts as hung", what, patience)
        await self.leave_gpu()
        self._rank.kill()

    def _says_nothing(self) -> bool:
        """Whether the rank said nothing since the last call. One without a model has nothing to say."""
        before, self._heard_before = self._heard_before, self.heard
        return self.heard == before and self._has_model()

"""Memory in use on a device, as its driver counts it, without a CUDA context of our own.

`python -m bench.device_memory cuda:N` is a process with such a context, which does nothing: see `in_use`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pynvml

from bench.errors import BenchError
from bench.processes import Server, running
from config.errors import PoolError
from config.gpus import nvml_handle, visible_name

SAMPLE_EVERY = 0.001
"""Seconds between two looks."""
CONTEXT_TIMEOUT = 120.0
_HELD = "held"


class DeviceMemory:
    """Of one GPU. `used` is in bytes; other processes' memory is in it."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @property
    def used(self) -> int:
        return int(pynvml.nvmlDeviceGetMemoryInfo(self._handle).used)

    async def until_below(self, nbytes: float, within: float) -> float | None:
        """Seconds until less than `nbytes` are in use; None when they still are after `within` seconds."""
        began = time.perf_counter()
        while self.used >= nbytes:
            if time.perf_counter() - began > within:
                return None
            await asyncio.sleep(SAMPLE_EVERY)
        return time.perf_counter() - began


@contextmanager
def device_memory(device: str) -> Iterator[DeviceMemory | None]:
    """For `cuda:N`; None for a CPU. Raises: BenchError when the driver does not answer."""
    if device == "cpu":
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise BenchError(f"{device}: the driver does not answer: {error}") from error
    try:
        yield DeviceMemory(nvml_handle(visible_name(device, os.environ)))
    except (pynvml.NVMLError, PoolError) as error:
        raise BenchError(f"{device}: {error}") from error
    finally:
        pynvml.nvmlShutdown()


@asynccontextmanager
async def in_use(device: str) -> AsyncIterator[None]:
    """Meanwhile some process uses the device, if it is a GPU: the driver takes memory once for all that do.

    Raises:
        BenchError: the process does not start.
    """
    if device == "cpu":
        yield
        return
    command = [sys.executable, "-m", "bench.device_memory", device]
    with tempfile.TemporaryDirectory(prefix="prism-bench-") as folder:
        async with running("a process with a CUDA context", command, Path(folder)) as process:
            await process.until_ready(lambda: _said(process, _HELD), CONTEXT_TIMEOUT)
            yield


async def _said(process: Server, line: str) -> bool:
    return process.said(line) is not None


def _hold_context(device: str) -> None:
    """Until SIGTERM."""
    import torch

    torch.cuda.synchronize(device)
    print(_HELD, flush=True)
    signal.pause()


if __name__ == "__main__":
    _hold_context(sys.argv[1])

"""Measures a device's memory in use through its driver, without creating a CUDA context."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pynvml

from config.errors import PoolError
from config.gpus import bytes_by_process, nvml_handle, visible_name
from simulator.errors import StudyError

SAMPLE_EVERY = 0.001
"""Seconds between samples."""


class DeviceMemory:
    """Memory of one GPU. `used` is in bytes and includes other processes."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @property
    def used(self) -> int:
        return int(pynvml.nvmlDeviceGetMemoryInfo(self._handle).used)

    def by_process(self) -> dict[int, int]:
        """Bytes by process id; empty if the driver does not tell."""
        return bytes_by_process(self._handle)

    async def until_below(self, nbytes: float, within: float) -> float | None:
        """Wait until less than `nbytes` are in use; returns the seconds, or None after `within` seconds."""
        began = time.perf_counter()
        while self.used >= nbytes:
            if time.perf_counter() - began > within:
                return None
            await asyncio.sleep(SAMPLE_EVERY)
        return time.perf_counter() - began


@contextmanager
def device_memory(device: str) -> Iterator[DeviceMemory | None]:
    """The memory of `cuda:N`; None for a CPU. Raises: StudyError if the driver does not answer."""
    if device == "cpu":
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise StudyError(f"{device}: the driver does not answer: {error}") from error
    try:
        yield DeviceMemory(nvml_handle(visible_name(device, os.environ)))
    except (pynvml.NVMLError, PoolError) as error:
        raise StudyError(f"{device}: {error}") from error
    finally:
        pynvml.nvmlShutdown()

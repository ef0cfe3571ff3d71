"""How much of its GPU's memory this process holds."""

from __future__ import annotations

import os

import pynvml
import torch

_CONTEXT = 700 * 2**20
"""Bytes of a CUDA context with its kernels, where NVML does not tell: in some containers it knows no process."""


class GpuMemory:
    """Of one process on the GPU `index`."""

    def __init__(self, index: int) -> None:
        pynvml.nvmlInit()
        self._handle = pynvml.nvmlDeviceGetHandleByIndex(index)

    def used(self) -> int:
        """Bytes, all kinds together."""
        for running in pynvml.nvmlDeviceGetComputeRunningProcesses(self._handle):
            if running.pid == os.getpid() and running.usedGpuMemory is not None:
                return int(running.usedGpuMemory)
        return _CONTEXT + torch.cuda.memory_reserved()

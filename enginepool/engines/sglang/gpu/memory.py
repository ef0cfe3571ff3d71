"""How much of a GPU's memory is in use, by NVML, which needs no CUDA context."""

from __future__ import annotations

import pynvml

from config.gpus import nvml_handle


class GpuMemory:
    """Of the GPU `name`, as CUDA_VISIBLE_DEVICES has it, and of one process there.

    All methods may raise pynvml.NVMLError.
    """

    def __init__(self, name: str, pid: int) -> None:
        pynvml.nvmlInit()
        self._handle = nvml_handle(name)
        self._pid = pid

    def of_device(self) -> int:
        """Bytes, whoever uses them."""
        return int(pynvml.nvmlDeviceGetMemoryInfo(self._handle).used)

    def of_process(self) -> int | None:
        """Bytes, all kinds together. None where NVML does not tell: in some containers it knows no process.

        Clients of an MPS daemon have a list of their own.
        """
        for asked in (pynvml.nvmlDeviceGetComputeRunningProcesses, pynvml.nvmlDeviceGetMPSComputeRunningProcesses):
            for running in asked(self._handle):
                if running.pid == self._pid and running.usedGpuMemory is not None:
                    return int(running.usedGpuMemory)
        return None

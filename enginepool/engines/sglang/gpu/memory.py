"""Measures a GPU's memory in use with NVML, which needs no CUDA context."""

from __future__ import annotations

import pynvml

from config.gpus import bytes_by_process, nvml_handle


class GpuMemory:
    """Memory in use on the GPU that CUDA_VISIBLE_DEVICES calls `name`, in total and by one process.

    All methods may raise pynvml.NVMLError.
    """

    def __init__(self, name: str, pid: int) -> None:
        pynvml.nvmlInit()
        self._handle = nvml_handle(name)
        self._pid = pid

    def of_device(self) -> int:
        """Bytes in use by all processes."""
        return int(pynvml.nvmlDeviceGetMemoryInfo(self._handle).used)

    def of_process(self) -> int | None:
        """Bytes in use by the process; None if NVML does not tell, as in some containers."""
        return bytes_by_process(self._handle).get(self._pid)

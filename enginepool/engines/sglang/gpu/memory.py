"""How much of a GPU's memory is in use, by NVML, which needs no CUDA context."""

from __future__ import annotations

import pynvml

from config.gpus import bytes_by_process, nvml_handle


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
        """Bytes, all kinds together. None where NVML does not tell: in some containers it knows no process."""
        return bytes_by_process(self._handle).get(self._pid)

"""The GPUs that this process may see: cuda:N is the N-th that CUDA_VISIBLE_DEVICES names, and NVML knows them all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pynvml

from config.devices import gpu_index
from config.errors import PoolError

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_name(device: str, environment: Mapping[str, str]) -> str:
    """What CUDA_VISIBLE_DEVICES must be for a process to see the GPU `device` of this `environment` alone.

    Raises:
        PoolError: there is none of that number.
    """
    index, listed = gpu_index(device) or 0, environment.get(VISIBLE)
    if listed is None:
        return str(index)
    names = [name.strip() for name in listed.split(",") if name.strip()]
    if index >= len(names):
        raise PoolError(f"there is no {device}: {VISIBLE} is {listed!r}")
    return names[index]


def uuid_of(device: str, environment: Mapping[str, str]) -> str:
    """The UUID of the GPU `device` of this `environment`.

    Raises:
        PoolError: there is none of that number, or NVML cannot be asked.
    """
    name = visible_name(device, environment)
    if not name.isdigit():
        return name  # it is one already, or the beginning of one
    try:
        pynvml.nvmlInit()
        try:
            return str(pynvml.nvmlDeviceGetUUID(nvml_handle(name)))
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise PoolError(f"the UUID of {device} is not known: {error}") from error


def nvml_handle(name: str) -> Any:
    """NVML's of a GPU that `visible_name` named: by its number, or by its UUID or the beginning of that.

    NVML is to be open. Raises: pynvml.NVMLError.
    """
    if name.isdigit():
        return pynvml.nvmlDeviceGetHandleByIndex(int(name))
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        if pynvml.nvmlDeviceGetUUID(handle).startswith(name):
            return handle
    raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)


def bytes_by_process(handle: Any) -> dict[int, int]:
    """Bytes of the GPU's memory by process id; a process is left out where NVML does not tell.

    Clients of an MPS daemon may be in a list of their own. NVML is to be open. Raises: pynvml.NVMLError.
    """
    running = [
        *pynvml.nvmlDeviceGetComputeRunningProcesses(handle),
        *pynvml.nvmlDeviceGetMPSComputeRunningProcesses(handle),
    ]
    return {it.pid: int(it.usedGpuMemory) for it in running if it.usedGpuMemory is not None}

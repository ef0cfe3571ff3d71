"""GPUs visible to this process: cuda:N is the N-th entry of CUDA_VISIBLE_DEVICES, whereas NVML lists all GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pynvml

from config.devices import gpu_index
from config.errors import PoolError

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_name(device: str, environment: Mapping[str, str]) -> str:
    """The CUDA_VISIBLE_DEVICES with which a process sees only the GPU that `environment` calls `device`.

    Raises:
        PoolError: `environment` has no GPU of that number.
    """
    index, listed = gpu_index(device) or 0, environment.get(VISIBLE)
    if listed is None:
        return str(index)
    names = [name.strip() for name in listed.split(",") if name.strip()]
    if index >= len(names):
        raise PoolError(f"there is no {device}: {VISIBLE} is {listed!r}")
    return names[index]


def uuid_of(device: str, environment: Mapping[str, str]) -> str:
    """The UUID of the GPU that `environment` calls `device`.

    Raises:
        PoolError: `environment` has no GPU of that number, or NVML fails.
    """
    name = visible_name(device, environment)
    if not name.isdigit():
        return name  # already a UUID, or the beginning of one
    try:
        pynvml.nvmlInit()
        try:
            return str(pynvml.nvmlDeviceGetUUID(nvml_handle(name)))
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise PoolError(f"cannot determine the UUID of {device}: {error}") from error


def nvml_handle(name: str) -> Any:
    """NVML's handle of the GPU with a name from `visible_name`: a number, a UUID or the beginning of a UUID.

    NVML must be initialised. Raises: pynvml.NVMLError.
    """
    if name.isdigit():
        return pynvml.nvmlDeviceGetHandleByIndex(int(name))
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        if pynvml.nvmlDeviceGetUUID(handle).startswith(name):
            return handle
    raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)


def bytes_by_process(handle: Any) -> dict[int, int]:
    """GPU memory in bytes by process id; processes whose usage NVML does not report are left out.

    NVML may list the clients of an MPS daemon separately. NVML must be initialised. Raises: pynvml.NVMLError.
    """
    running = [
        *pynvml.nvmlDeviceGetComputeRunningProcesses(handle),
        *pynvml.nvmlDeviceGetMPSComputeRunningProcesses(handle),
    ]
    return {it.pid: int(it.usedGpuMemory) for it in running if it.usedGpuMemory is not None}

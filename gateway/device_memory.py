"""How much memory of each device the scheduler may allocate."""

from __future__ import annotations

import os
from collections.abc import Mapping

import pynvml

from config.device_memory import SHARE, oversize
from config.devices import is_accounted, is_gpu
from config.errors import PoolError
from config.gpus import nvml_handle, visible_name
from config.registry import PoolConfig, Registry


def capacities(pool: PoolConfig) -> dict[str, int]:
    """Bytes that may be allocated on each device whose memory is accounted for.

    Raises:
        PoolError: a GPU's memory cannot be queried.
    """
    accounted = [device for device in pool.devices if is_accounted(pool, device)]
    gpus = {device: visible_name(device, os.environ) for device in accounted if is_gpu(device)}
    if pool.device_memory is not None:
        return dict.fromkeys(accounted, pool.device_memory)
    return {device: int(SHARE * _total(device, gpu)) for device, gpu in gpus.items()}


def never_fitting(registry: Registry, there: Mapping[str, int]) -> list[str]:
    """One line per model that is too large for every device, as far as its files tell."""
    pool = registry.pool
    if not there or len(there) < len(pool.devices):
        return []
    largest = max(there.values())
    faults = {model.name: oversize(registry, model, largest) for model in registry.models}
    return [f"{name} can never fit: expected {f[0]}, got {f[1]}" for name, f in faults.items() if f is not None]


def _total(device: str, gpu: str) -> int:
    try:
        pynvml.nvmlInit()
        try:
            handle = nvml_handle(gpu)
            return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        hint = "set pool.device_memory, or leave the device out of pool.devices"
        raise PoolError(f"the memory of {device} is not known: {error}; {hint}") from error

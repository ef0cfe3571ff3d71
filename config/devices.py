"""PoolConfig settings whose default depends on the kind of device."""

from __future__ import annotations

import re

from config.engines import facts_of
from config.registry import PoolConfig

_GPU = re.compile(r"cuda:([0-9]{1,3})")


def gpu_index(device: str) -> int | None:
    """The N of cuda:N; None if the device is not a GPU."""
    found = _GPU.fullmatch(device)
    return int(found[1]) if found else None


def is_gpu(device: str) -> bool:
    return gpu_index(device) is not None


def is_used_gpu(pool: PoolConfig, device: str) -> bool:
    """Whether the device is a GPU and the engine runs on it."""
    return facts_of(pool).uses_gpus and is_gpu(device)


def is_accounted(pool: PoolConfig, device: str) -> bool:
    """Whether the memory of the device is shared out by the scheduler."""
    if facts_of(pool).needs_devices:
        return is_used_gpu(pool, device)
    return pool.device_memory is not None


def blank_reserve(pool: PoolConfig, device: str) -> int:
    """Number of the device's workers that are kept blank."""
    if pool.blank_reserve is not None:
        return pool.blank_reserve
    return min(1, pool.workers_per_device - 1) if is_used_gpu(pool, device) else 0


def copies_at_a_time(pool: PoolConfig, device: str) -> int | None:
    """Maximum number of concurrent activations on the device; None for no limit."""
    if pool.activations_per_device is not None:
        return pool.activations_per_device
    return 1 if is_gpu(device) else None

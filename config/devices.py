"""What the registry leaves open about a device, because it depends on what the device is."""

from __future__ import annotations

import re

from config.registry import PoolConfig

_GPU = re.compile(r"cuda:([0-9]{1,3})")


def gpu_index(device: str) -> int | None:
    """The N of cuda:N; None for what is no GPU."""
    found = _GPU.fullmatch(device)
    return int(found[1]) if found else None


def is_gpu(device: str) -> bool:
    return gpu_index(device) is not None


def is_accounted(pool: PoolConfig, device: str) -> bool:
    """Whether the memory of the device is shared out by the scheduler."""
    if pool.engine == "simulated":
        return pool.device_memory is not None
    return pool.engine == "sglang" and is_gpu(device)


def blank_reserve(pool: PoolConfig, device: str) -> int:
    """Workers of the device that are kept blank."""
    if pool.blank_reserve is not None:
        return pool.blank_reserve
    return min(1, pool.workers_per_device - 1) if pool.engine == "sglang" and is_gpu(device) else 0


def copies_at_a_time(pool: PoolConfig, device: str) -> int | None:
    """Activations that may be under way on the device; None for any number."""
    if pool.activations_per_device is not None:
        return pool.activations_per_device
    return 1 if is_gpu(device) else None

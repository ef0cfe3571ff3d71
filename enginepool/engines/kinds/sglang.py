"""The engine `sglang`, on GPUs or, for tests, the CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from config.devices import is_gpu
from config.gpus import visible_name
from config.registry import PoolConfig
from enginepool.engine import Emit, Engine
from enginepool.engines.kinds.base import EngineKind
from enginepool.messages import Spawn

if TYPE_CHECKING:
    from enginepool.weights.loader import LoadWeights

RANK_SILENCE = 30
"""How many multiples of `pool.silence` a rank may be silent before it counts as hung: compiling takes it minutes."""


class Sglang(EngineKind):
    def environment(self, pool: PoolConfig, current: Mapping[str, str]) -> dict[str, str]:
        if not _on_gpus(pool):
            return {}
        from enginepool.host.gpu_environment import gpu_environment

        return gpu_environment(current)

    def warm(self, pool: PoolConfig) -> None:
        from enginepool.engines.sglang import warm

        warm(gpu=_on_gpus(pool))

    def weight_loader(self, pool: PoolConfig) -> LoadWeights:
        from enginepool.engines.sglang.loading.weights import load

        return partial(load, max_running=pool.max_running, device=pool.devices[0])

    def create(self, pool: PoolConfig, spawn: Spawn, emit: Emit) -> Engine:
        from enginepool.engines.sglang import SglangEngine
        from enginepool.engines.sglang.protocol import StartRank

        device = spawn.device
        kv_memory, memory = _kv_memory(pool, device), pool.device_memory or 0
        gpu = visible_name(device, os.environ) if is_gpu(device) else ""
        patience = RANK_SILENCE * pool.silence
        start = StartRank(
            device, pool.threads, pool.max_running, kv_memory, memory, gpu, patience, spawn.mps, pool.silence
        )
        return SglangEngine(emit, start, pool.limits)


def _on_gpus(pool: PoolConfig) -> bool:
    """One template serves all devices, so the first stands for all of them."""
    return pool.devices[0] != "cpu"


def _kv_memory(pool: PoolConfig, device: str) -> int:
    """Bytes that one worker's KV cache may ever grow to; 0 for what the device has, where limits move at run time."""
    return pool.kv_memory // pool.workers_per_device if device == "cpu" else 0

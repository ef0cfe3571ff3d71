"""The engines by name. A new one needs its class, a branch in each function here, and a name in the registry."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from config.devices import is_gpu
from config.gpus import visible_name
from config.registry import EngineName, PoolConfig
from enginepool.engine import Emit, Engine
from enginepool.messages import Spawn

if TYPE_CHECKING:  # it imports torch, which the gateway has no use for
    from enginepool.weights.loader import LoadWeights


def needs_weights(engine: EngineName) -> bool:
    """Whether an activation needs the model's weights in host memory first."""
    return engine != "simulated"


def warm(pool: PoolConfig) -> None:
    """Import what the engine needs, in the template, before any fork. Starts no thread."""
    if pool.engine == "transformers":
        from enginepool.engines.transformers import warm as warm_transformers

        warm_transformers()
    elif pool.engine == "sglang":
        from enginepool.engines.sglang import warm as warm_sglang

        warm_sglang(gpu=pool.devices[0] != "cpu")
    else:
        import enginepool.engines.simulated  # noqa: F401


def environment(pool: PoolConfig, current: Mapping[str, str]) -> dict[str, str]:
    """Variables that the template and all its children need, beside `current`.

    Raises:
        PoolError: a package that the engine needs is missing.
    """
    if pool.engine == "sglang" and pool.devices[0] != "cpu":
        from enginepool.host.gpu_environment import gpu_environment

        return gpu_environment(current)
    return {}


def after_fork() -> None:
    """To be called first of all in a forked child, while it has one thread.

    torch (2.13, aten/src/ATen/ParallelOpenMP.cpp) replaces its thread pool at its first use after a fork, and without a
    lock: two threads that come to it together can fail with "Invalid thread pool!".
    """
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(torch.get_num_threads())


def weight_loader(pool: PoolConfig) -> LoadWeights:
    """How a loader reads a model for the weight store."""
    if pool.engine == "sglang":
        from enginepool.engines.sglang.loading.weights import load as load_sglang

        return partial(load_sglang, max_running=pool.max_running, device=pool.devices[0])
    from enginepool.engines.transformers.weights import load

    return load


RANK_SILENCE = 30
"""Times `pool.silence` for which a rank may say nothing: while it compiles kernels, that is a minute or two."""


def create(pool: PoolConfig, spawn: Spawn, emit: Emit) -> Engine:
    """The engine of the worker that was spawned; call it on the worker's event loop."""
    device = spawn.device
    if pool.engine == "transformers":
        from enginepool.engines.transformers import TransformersEngine

        seconds = pool.limits.preparation
        return TransformersEngine(emit, max_running=pool.max_running, threads=pool.threads, preparation=seconds)
    if pool.engine == "sglang":
        from enginepool.engines.sglang import SglangEngine
        from enginepool.engines.sglang.protocol import StartRank

        kv_memory, memory = _kv_memory(pool, device), pool.device_memory or 0
        gpu = visible_name(device, os.environ) if is_gpu(device) else ""
        patience = RANK_SILENCE * pool.silence
        start = StartRank(device, pool.threads, pool.max_running, kv_memory, memory, gpu, patience, spawn.mps)
        return SglangEngine(emit, start, pool.limits)
    from enginepool.engines.simulated import SimulatedEngine

    return SimulatedEngine(emit, max_running=pool.max_running, **pool.engine_args)


def _kv_memory(pool: PoolConfig, device: str) -> int:
    """Bytes that one worker's KV cache may ever grow to; 0 for what the device has, where limits move at run time."""
    return pool.kv_memory // pool.workers_per_device if device == "cpu" else 0

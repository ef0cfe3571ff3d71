"""The engine `transformers`, on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from config.registry import PoolConfig
from enginepool.engine import Emit, Engine
from enginepool.engines.kinds.base import EngineKind
from enginepool.messages import Spawn

if TYPE_CHECKING:
    from enginepool.weights.loader import LoadWeights


class Transformers(EngineKind):
    def warm(self, pool: PoolConfig) -> None:
        from enginepool.engines.transformers import warm

        warm()

    def weight_loader(self, pool: PoolConfig) -> LoadWeights:
        from enginepool.engines.transformers.weights import load

        return load

    def create(self, pool: PoolConfig, spawn: Spawn, emit: Emit) -> Engine:
        from enginepool.engines.transformers import TransformersEngine

        seconds = pool.limits.preparation
        return TransformersEngine(emit, max_running=pool.max_running, threads=pool.threads, preparation=seconds)

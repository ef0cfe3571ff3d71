"""The engine `simulated`: no model, and so nothing to import or to load."""

from __future__ import annotations

from config.registry import PoolConfig
from enginepool.engine import Emit, Engine
from enginepool.engines.kinds.base import EngineKind
from enginepool.messages import Spawn


class Simulated(EngineKind):
    def warm(self, pool: PoolConfig) -> None:
        import enginepool.engines.simulated  # noqa: F401

    def create(self, pool: PoolConfig, spawn: Spawn, emit: Emit) -> Engine:
        from enginepool.engines.simulated import SimulatedEngine

        return SimulatedEngine(emit, max_running=pool.max_running, **pool.engine_args)

"""What the pool's processes ask of an engine as such. What they ask of the one in a worker: `enginepool.engine`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

from config.errors import EngineError
from config.registry import PoolConfig
from enginepool.engine import Emit, Engine
from enginepool.messages import Spawn

if TYPE_CHECKING:  # it imports torch, which the gateway has no use for
    from enginepool.weights.loader import LoadWeights


class EngineKind(ABC):
    """One object per engine, in every process of the pool.

    The gateway has it too and must not load torch, so an engine's own packages are imported inside these methods only.
    """

    def environment(self, pool: PoolConfig, current: Mapping[str, str]) -> dict[str, str]:
        """Variables that the template and all its children need, beside `current`. Called in the gateway.

        Raises:
            PoolError: a package that the engine needs is missing.
        """
        return {}

    @abstractmethod
    def warm(self, pool: PoolConfig) -> None:
        """Import what a worker needs, before any fork. Called in the template; must leave no thread behind.

        Raises:
            EngineError: the engine is not installed, or in a version that was not tested.
        """

    def weight_loader(self, pool: PoolConfig) -> LoadWeights:
        """The function that reads a model into host memory. Called in a loader.

        Raises:
            EngineError: the engine needs no weights.
        """
        raise EngineError(f"the engine {pool.engine} loads no weights")

    @abstractmethod
    def create(self, pool: PoolConfig, spawn: Spawn, emit: Emit) -> Engine:
        """The engine of the worker that was spawned. Called on the worker's event loop."""

"""The engines by name. What configuration knows of them is in `config.engines`."""

from __future__ import annotations

from config.registry import EngineName, PoolConfig
from enginepool.engines.kinds.base import EngineKind
from enginepool.engines.kinds.sglang import Sglang
from enginepool.engines.kinds.simulated import Simulated
from enginepool.engines.kinds.transformers import Transformers

KINDS: dict[EngineName, EngineKind] = {
    "transformers": Transformers(),
    "sglang": Sglang(),
    "simulated": Simulated(),
}


def kind_of(pool: PoolConfig) -> EngineKind:
    return KINDS[pool.engine]

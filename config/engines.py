"""What the registry's rules and defaults need to know of each engine. How an engine is run: `enginepool.engines`."""

from __future__ import annotations

from dataclasses import dataclass

from config.registry import EngineName, PoolConfig


@dataclass(frozen=True, slots=True)
class EngineFacts:
    needs_weights: bool = True
    """Serves a model from its files, by way of host memory. If not, a model is as large as its `engine_args` say."""
    needs_devices: bool = True
    """Runs on the devices that the registry names. If not, these are names for what it pretends to have."""
    uses_gpus: bool = False
    """Runs on GPUs too, and not on CPUs alone."""
    serves_groups: bool = False
    """Serves a model on several devices at a time (`tensor_parallel`)."""
    takes_colons: bool = True
    """Serves a model whose name has a colon."""


ENGINES: dict[EngineName, EngineFacts] = {
    "transformers": EngineFacts(),
    "sglang": EngineFacts(uses_gpus=True, takes_colons=False),
    "simulated": EngineFacts(needs_weights=False, needs_devices=False, serves_groups=True),
}


def facts_of(pool: PoolConfig) -> EngineFacts:
    return ENGINES[pool.engine]

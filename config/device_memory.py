"""Device memory that a registry's models need, as far as their files tell."""

from __future__ import annotations

from config.engines import facts_of
from config.model_files import weight_bytes
from config.registry import ModelConfig, Registry
from config.units import format_size

SHARE = 0.92
"""Share of a GPU's memory that is used. The rest is for what nobody can account for, such as fragments."""


def device_bytes(registry: Registry, model: ModelConfig) -> int:
    """Bytes of the model's weights, on all of its devices together; 0 where they are not known."""
    if facts_of(registry.pool).needs_weights:
        return weight_bytes(model)
    return int(model.engine_args.get("weights", 0))


def bytes_needed(registry: Registry, model: ModelConfig) -> int:
    """Bytes that each of the model's devices needs to serve it alone: its shard, workspace and minimal KV cache."""
    pool = registry.pool
    return -(-device_bytes(registry, model) // model.tensor_parallel) + pool.workspace + pool.kv_minimum


def oversize(registry: Registry, model: ModelConfig, capacity: int) -> tuple[str, str] | None:
    """If the model can never fit into `capacity` bytes: the expected and the actual size, as text; else None."""
    if bytes_needed(registry, model) <= capacity:
        return None
    pool = registry.pool
    room = format_size(max(0, capacity - pool.workspace - pool.kv_minimum))
    expected = f"weights of at most {room} beside workspace and kv_minimum on a device of {format_size(capacity)}"
    return expected, format_size(-(-device_bytes(registry, model) // model.tensor_parallel))

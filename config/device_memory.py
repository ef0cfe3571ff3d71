"""What the models of a registry take of a device, as far as their files tell."""

from __future__ import annotations

from config.model_files import weight_bytes
from config.registry import ModelConfig, Registry
from config.units import format_size


def device_bytes(registry: Registry, model: ModelConfig) -> int:
    """Bytes of the model's weights, on all of its devices together; 0 where they are not known."""
    if registry.pool.engine == "simulated":
        return int(model.engine_args.get("weights", 0))
    return weight_bytes(model)


def bytes_needed(registry: Registry, model: ModelConfig) -> int:
    """Bytes that each of its devices must have for `model` alone."""
    pool = registry.pool
    return -(-device_bytes(registry, model) // model.tensor_parallel) + pool.workspace + pool.kv_minimum


def oversize(registry: Registry, model: ModelConfig, capacity: int) -> tuple[str, str] | None:
    """What was expected of a model's size and what it is, if it can never fit into `capacity` bytes."""
    if bytes_needed(registry, model) <= capacity:
        return None
    pool = registry.pool
    room = format_size(max(0, capacity - pool.workspace - pool.kv_minimum))
    expected = f"weights of at most {room}, beside workspace and kv_minimum on a device of {format_size(capacity)}"
    return expected, format_size(-(-device_bytes(registry, model) // model.tensor_parallel))

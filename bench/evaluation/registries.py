"""Turns a scenario's models into a registry, and selects those that can be simulated."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from bench.evaluation.scenarios import Scenario
from bench.evaluation.sizes import write_sizes
from config.registry import ModelConfig, PoolConfig, Registry, WeightStoreConfig
from simulator.calibration import Calibration
from simulator.errors import StudyError
from simulator.models import costs_of

WORKERS = 10
"""Minimum number of workers per GPU."""
MAX_RUNNING = 128
HOST_MEMORY = 2 * 2**40


def registry_of(scenario: Scenario, folder: Path) -> Registry:
    """The registry of a scenario, with all weights in host memory; shapes are written into `folder`.

    Raises:
        OSError: they cannot be written.
    """
    write_sizes(folder)
    pool = PoolConfig(
        engine="sglang",
        devices=tuple(f"cuda:{index}" for index in range(scenario.gpus)),
        workers_per_device=workers_on(scenario.gpus, scenario.number_of_models),
        max_running=MAX_RUNNING,
    )
    models = tuple(
        ModelConfig(
            name=f"{group.size}-{chr(ord('a') + place)}{index}",
            shape=folder / f"{group.size}.json",
            tensor_parallel=group.tensor_parallel,
            preload=True,
        )
        for place, group in enumerate(scenario.models)
        for index in range(group.number)
    )
    return Registry(pool=pool, weight_store=WeightStoreConfig(host_memory=HOST_MEMORY), models=models)


def workers_on(gpus: int, models: int) -> int:
    """Workers per GPU: enough for every model to be active at once, and one to spare."""
    return max(WORKERS, -(-models // gpus) + 1)


def simulable(registry: Registry, calibration: Calibration) -> tuple[Registry, dict[str, str]]:
    """The registry restricted to models that can be simulated, and the reasons for the others.

    Raises:
        StudyError: no model can be simulated.
    """
    left_out: dict[str, str] = {}
    for model in registry.models:
        try:
            costs_of((model,), calibration)
        except StudyError as error:
            left_out[model.name] = str(error).removeprefix(f"{model.name}: ")
    kept = tuple(model for model in registry.models if model.name not in left_out)
    if not kept:
        raise StudyError("\n".join(f"{name}: {why}" for name, why in left_out.items()))
    return replace(registry, models=kept), left_out

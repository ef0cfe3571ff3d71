"""Adapts a registry to the simulator: replaces its devices with GPUs and computes each model's costs."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from config.errors import ShapeError
from config.model_files import config_file, weight_bytes
from config.registry import ModelConfig, Registry
from config.shape import read_shape
from simulator.calibration import Calibration
from simulator.costs import Costs
from simulator.errors import StudyError, UsageError


def on_gpus(registry: Registry, gpus: int | None, workers: int | None) -> Registry:
    """The registry with its pool on `gpus` GPUs with `workers` workers each; None keeps the registry's number.

    Raises:
        UsageError: the blank reserve would take all workers.
    """
    pool = registry.pool
    names = tuple(f"cuda:{index}" for index in range(gpus or len(pool.devices)))
    per_device = workers or pool.workers_per_device
    if (pool.blank_reserve or 0) >= per_device:
        raise UsageError(f"--workers: expected more than pool.blank_reserve ({pool.blank_reserve}), got {per_device}")
    pool = replace(pool, engine="sglang", devices=names, workers_per_device=per_device, device_memory=None)
    return replace(registry, pool=pool)


def has_mps(registry: Registry) -> bool:
    """Whether the simulated workers share their GPU through MPS."""
    return registry.pool.mps != "off"


def with_objectives(registry: Registry, *, ttft: float, tpot: float) -> Registry:
    """The registry with all TTFT and TPOT objectives multiplied by `ttft` and `tpot`."""
    models = tuple(
        replace(model, slo=replace(model.slo, ttft=model.slo.ttft * ttft, tpot=model.slo.tpot * tpot))
        for model in registry.models
    )
    return replace(registry, models=models)


def costs_of(models: Iterable[ModelConfig], calibration: Calibration) -> dict[str, Costs]:
    """The costs of each model, by name.

    Raises:
        StudyError: models cannot be simulated; the message names each and says why.
    """
    costs, faults = {}, []
    for model in models:
        try:
            costs[model.name] = _costs(model, calibration)
        except StudyError as error:
            faults.append(f"{model.name}: {error}")
    if faults:
        raise StudyError("\n".join(faults))
    return costs


def _costs(model: ModelConfig, calibration: Calibration) -> Costs:
    file = config_file(model)
    if file is None:
        raise StudyError("its size is unknown: it has neither a shape nor a path")
    try:
        shape = read_shape(file)
    except ShapeError as error:
        raise StudyError(str(error)) from error
    return Costs(calibration, shape, weight_bytes(model) or shape.weight_bytes, model.tensor_parallel)

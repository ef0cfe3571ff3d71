"""Objectives that are not the registry's: how fast each model is when it has a GPU to itself.

The paper's base: the 95th percentile of a model's own requests, served alone by a model that is always active.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from msgspec.structs import replace

from config.registry import ModelConfig, Registry, SchedulerConfig, Slo
from simulator.calibration import Calibration
from simulator.costs import Costs
from simulator.models import on_gpus
from simulator.percentiles import percentile
from simulator.simulation import Simulation
from simulator.traces.trace import Request, Trace

RANK = 95


def alone(
    registry: Registry,
    trace: Trace,
    costs: Mapping[str, Costs],
    calibration: Calibration,
    *,
    capacity: int,
    report: Callable[[str], None] = lambda text: None,
) -> Registry:
    """The registry with the p95 of each model alone on a GPU of `capacity` bytes, at the trace's own rate, as its SLOs.

    A model of which the trace cannot say (no request, or answers of one token) keeps what it has.
    """
    asked: dict[str, list[Request]] = {model.name: [] for model in registry.models}
    for request in trace:
        asked[request.model].append(request)
    models: list[ModelConfig] = []
    for model in registry.models:
        report(f"{model.name} alone on a GPU")
        own = Trace.of(asked[model.name], duration=trace.duration)
        simulation = Simulation(
            _of_one(registry, model), {model.name: costs[model.name]}, calibration, capacity=capacity, warmed=True
        )
        models.append(replace(model, slo=_slo(model.slo, simulation, own)))
    return replace(registry, models=tuple(models))


def _of_one(registry: Registry, model: ModelConfig) -> Registry:
    only = replace(registry, models=(replace(model, pinned=True),), scheduler=SchedulerConfig(policy="lru"))
    return on_gpus(replace(only, pool=replace(only.pool, blank_reserve=0)), model.tensor_parallel, 1)


def _slo(before: Slo, simulation: Simulation, own: Trace) -> Slo:
    answers = simulation.run(own).answers
    return Slo(
        ttft=_high([answer.ttft for answer in answers]) or before.ttft,
        tpot=_high([answer.tpot for answer in answers]) or before.tpot,
    )


def _high(times: Sequence[float | None]) -> float | None:
    return percentile([time for time in times if time is not None], RANK)

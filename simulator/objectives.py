"""SLOs derived from each model's speed on a GPU of its own, as in the Prism paper.

The base is the 95th percentile over a model's own requests, served alone by a model that is always active.
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
from simulator.traces.trace import Trace, TraceRequest

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
    """The registry with new SLOs: each model's p95 alone on a GPU of `capacity` bytes, at the trace's own rate.

    A model keeps its SLOs where the trace yields no measurement (no requests, or answers of one token).
    """
    asked: dict[str, list[TraceRequest]] = {model.name: [] for model in registry.models}
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

"""A series of runs on the same models, machine and trace."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from config.registry import Registry
from simulator.calibration import Calibration
from simulator.costs import Costs
from simulator.models import on_gpus, with_objectives
from simulator.outcomes import MemorySample, SimulationResult
from simulator.report import RunRow, Setting, describe, row
from simulator.simulation import Simulation
from simulator.traces.trace import Trace


@dataclass(frozen=True, slots=True)
class Series:
    registry: Registry
    trace: Trace
    costs: Mapping[str, Costs]
    calibration: Calibration
    capacity: int
    """Bytes of each GPU that Prism may use."""
    workers: int | None = None
    """Workers per GPU; None for the registry's number."""
    ttft_scale: float | None = None
    """Scale of the TTFT objectives, overriding a setting's `slo_scale`."""
    tpot_scale: float | None = None
    """Scale of the TPOT objectives, overriding a setting's `slo_scale`."""
    validate: bool = False
    mps: bool = False
    warmed: bool = False
    """Whether every worker process has served every model before."""


@dataclass(frozen=True, slots=True)
class Order:
    """A run to simulate. `memory_every` is the number of seconds between memory samples; None takes none."""

    setting: Setting
    memory_every: float | None = None


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A finished run. `ttfts` are the TTFTs of all requests that got a first token, in seconds, sorted."""

    row: RunRow
    ttfts: NDArray[np.float32]
    memory: list[MemorySample]
    summary: str


def simulate(series: Series, order: Order, report: Callable[[str], None]) -> FinishedRun:
    """Simulate one run; the work function for `run_each`."""
    setting = order.setting
    registry = set_up(series, setting)
    name = title(setting)
    began = time.perf_counter()
    simulation = Simulation(
        registry,
        series.costs,
        series.calibration,
        capacity=series.capacity,
        mps=series.mps,
        warmed=series.warmed,
        validate=series.validate,
        memory_every=order.memory_every,
        progress=lambda seconds: report(f"{name}: {seconds:.0f} of {series.trace.duration:.0f} s"),
    )
    result = simulation.run(series.trace.scaled(setting.rate_scale, setting.seed))
    return FinishedRun(
        row(setting, result, {model.name: model.slo for model in registry.models}),
        _ttfts(result),
        result.memory,
        f"{name}: {describe(result)} (simulated in {time.perf_counter() - began:.1f} s)",
    )


def set_up(series: Series, setting: Setting) -> Registry:
    """The registry of one run. Raises: UsageError."""
    registry = on_gpus(series.registry, setting.gpus, series.workers)
    registry = replace(registry, scheduler=replace(registry.scheduler, policy=setting.policy))
    return with_objectives(
        registry, ttft=series.ttft_scale or setting.slo_scale, tpot=series.tpot_scale or setting.slo_scale
    )


def title(setting: Setting) -> str:
    return f"{setting.policy}, {setting.gpus} GPUs, rate x{setting.rate_scale:g}, SLO x{setting.slo_scale:g}"


def _ttfts(result: SimulationResult) -> NDArray[np.float32]:
    return np.sort(np.array([answer.ttft for answer in result.answers if answer.ttft is not None], np.float32))

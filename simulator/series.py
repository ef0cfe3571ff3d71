"""One run after another on the same models, machine and trace: what they share, and what each of them brings."""

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
from simulator.outcomes import MemorySample, Result
from simulator.report import Row, Setting, describe, row
from simulator.simulation import Simulation
from simulator.traces.trace import Trace


@dataclass(frozen=True, slots=True)
class Series:
    registry: Registry
    trace: Trace
    costs: Mapping[str, Costs]
    calibration: Calibration
    capacity: int
    """Bytes of each GPU for Prism."""
    workers: int | None = None
    """On each GPU, if not as many as the registry has."""
    ttft_scale: float | None = None
    """In place of a setting's `slo_scale`, for this objective; likewise:"""
    tpot_scale: float | None = None
    validate: bool = False
    mps: bool = False
    warmed: bool = False
    """Whether every process has served every model before."""


@dataclass(frozen=True, slots=True)
class Order:
    """A run that is wanted. `memory_every` are seconds between two looks at the memory; None is never."""

    setting: Setting
    memory_every: float | None = None


@dataclass(frozen=True, slots=True)
class Ran:
    """A run that is over. `ttfts` are seconds, sorted, of those requests that had a first token."""

    row: Row
    ttfts: NDArray[np.float32]
    memory: list[MemorySample]
    summary: str


def simulate(series: Series, order: Order, report: Callable[[str], None]) -> Ran:
    """Work for `run_each`."""
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
    return Ran(
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


def _ttfts(result: Result) -> NDArray[np.float32]:
    return np.sort(np.array([answer.ttft for answer in result.answers if answer.ttft is not None], np.float32))

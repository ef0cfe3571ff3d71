"""Cases, that is scenarios under a workload with a seed, and runs of one policy in a case."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench.evaluation.registries import registry_of, simulable, workers_on
from bench.evaluation.scenarios import Scenario
from bench.evaluation.workloads import make
from config.device_memory import SHARE
from simulator.calibration import Calibration
from simulator.errors import StudyError
from simulator.models import costs_of
from simulator.outcomes import SimulationResult
from simulator.parallel import Report
from simulator.report import RunRow, Setting, row
from simulator.series import Series, set_up
from simulator.simulation import Simulation

GPU_MEMORY = 80 * 2**30
"""Bytes of a GPU in the paper."""
TTFT_SCALE = 5.0
TPOT_SCALE = 2.0
GOAL = 0.99
"""Attainment of both objectives at which a rate counts as held."""


@dataclass(frozen=True, slots=True)
class Case:
    scenario: Scenario
    workload: str
    seed: int
    series: Series
    words: str
    """Description of the trace's source."""
    left_out: Mapping[str, str]
    """Models that cannot be simulated, and why."""
    scale: float = 1.0
    """The fixed rate at which policies are compared, relative to the trace's."""
    reference: str = ""
    """The policy for which the fixed rate is the highest it holds."""
    held: bool = True
    """Whether the reference policy holds any rate."""

    @property
    def name(self) -> str:
        return f"{self.scenario.name}, {self.workload}, seed {self.seed}"

    @property
    def judged(self) -> int:
        """Number of requests after the warm-up, at the trace's own rate."""
        return sum(request.at >= self.scenario.warm_up for request in self.series.trace)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of a case. `placement` is the seed for the policy `static`; `seconds` shortens the trace."""

    policy: str
    gpus: int
    scale: float
    placement: int | None = None
    seconds: float | None = None


def open_case(
    scenario: Scenario, workload: str, seed: int, *, calibration: Calibration, traces: Path | None, folder: Path
) -> Case:
    """Prepare a case, writing shapes into `folder`. Its objectives are replaced later by those of the comparison.

    Raises:
        StudyError: a trace is invalid, or a file cannot be written.
    """
    try:
        registry, left_out = simulable(registry_of(scenario, folder), calibration)
    except OSError as error:
        raise StudyError(f"{folder}: cannot be written: {error}") from error
    trace, words = make(workload, scenario, [model.name for model in registry.models], seed, traces)
    series = Series(
        registry,
        trace,
        costs_of(registry.models, calibration),
        calibration,
        capacity=int(SHARE * GPU_MEMORY),
        ttft_scale=TTFT_SCALE,
        tpot_scale=TPOT_SCALE,
    )
    return Case(scenario, workload, seed, series, words, left_out)


def attempt(case: Case, wanted: Attempt, report: Report) -> RunRow:
    """Simulate one run. Only requests after the warm-up are judged, or all of a shortened trace."""
    models = case.series.registry.models
    series = dataclasses.replace(case.series, workers=workers_on(wanted.gpus, len(models)))
    setting = Setting(wanted.policy, wanted.gpus, wanted.scale, 1.0, case.seed)
    registry = set_up(series, setting)
    if wanted.placement is not None:
        scheduler = msgspec.structs.replace(registry.scheduler, placement_seed=wanted.placement)
        registry = msgspec.structs.replace(registry, scheduler=scheduler)
    simulation = Simulation(
        registry,
        series.costs,
        series.calibration,
        capacity=series.capacity,
        progress=lambda at: report(
            f"{case.name}: {wanted.policy}, {wanted.gpus} GPUs, x{wanted.scale:.3g}, {at:.0f} s"
        ),
    )
    trace = series.trace.scaled(wanted.scale, case.seed)
    if wanted.seconds is None:
        result = judged(simulation.run(trace), case.scenario.warm_up)
    else:
        result = simulation.run(trace.window(0.0, wanted.seconds))
    return row(setting, result, {model.name: model.slo for model in registry.models})


def judged(result: SimulationResult, warm_up: float) -> SimulationResult:
    """The result without the requests that arrived before `warm_up` seconds."""
    answers = [answer for answer in result.answers if answer.asked.at >= warm_up]
    return dataclasses.replace(result, answers=answers, seconds=result.seconds - warm_up)


def holds(row: RunRow) -> bool:
    """Whether 99% of the requests met each objective; without requests it counts as met."""
    return all(share is None or share >= GOAL for share in (row.ttft_attainment, row.tpot_attainment))

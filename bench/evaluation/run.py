"""Runs the whole evaluation in several processes: prepares all cases, then measures every policy in each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.evaluation.cases import Case, open_case
from bench.evaluation.scenarios import Scenario
from bench.evaluation.trials import PolicyResult, SearchEffort, TrialRun, Trials, measure
from bench.evaluation.workloads import missing
from simulator.calibration import Calibration
from simulator.objectives import alone
from simulator.parallel import Report, run_each
from simulator.progress import say, say_again


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    scenarios: Sequence[Scenario]
    policies: Sequence[str]
    reference: str
    """The policy that sets the fixed rate."""
    effort: SearchEffort
    calibration: Calibration
    traces: Path | None
    """The folder of recorded traces."""
    jobs: int = 1

    def policies_of(self, scenario: Scenario) -> list[str]:
        return [policy for policy in self.policies if scenario.policies is None or policy in scenario.policies]


@dataclass(frozen=True, slots=True)
class CaseOutcome:
    """A case, the runs that fixed its rate, and the policies' results in the plan's order."""

    case: Case
    fixing: Sequence[TrialRun]
    found: Sequence[PolicyResult]

    def of(self, policy: str) -> PolicyResult | None:
        return next((found for found in self.found if found.policy == policy), None)


@dataclass(frozen=True, slots=True)
class Fixed:
    case: Case
    runs: Sequence[TrialRun]


@dataclass(frozen=True, slots=True)
class Task:
    case: int
    policy: str


def evaluate(plan: EvaluationPlan) -> list[CaseOutcome]:
    """Raises: StudyError."""
    fixed = run_each(_fix, plan, open_cases(plan), jobs=plan.jobs, done=_say_fixed)
    shared = (plan.effort, [each.case for each in fixed])
    tasks = [
        Task(case, policy)
        for case in _longest_first(shared[1])
        for policy in plan.policies_of(shared[1][case].scenario)
    ]
    found = dict(zip(tasks, run_each(_measure, shared, tasks, jobs=plan.jobs, done=_say_found), strict=True))
    return [
        CaseOutcome(each.case, each.runs, [found[task] for task in tasks if task.case == number])
        for number, each in enumerate(fixed)
    ]


def open_cases(plan: EvaluationPlan) -> list[Case]:
    """The cases whose traces are available; missing files of the others are reported. Raises: StudyError."""
    cases = []
    with TemporaryDirectory(prefix="prism-evaluation-") as folder:
        for scenario in plan.scenarios:
            for workload in scenario.workloads:
                if lacking := missing(workload, plan.traces):
                    say(f"{scenario.name}: no {workload}, for want of {', '.join(lacking)} (--traces)")
                    continue
                cases += [
                    open_case(
                        scenario,
                        workload,
                        seed,
                        calibration=plan.calibration,
                        traces=plan.traces,
                        folder=Path(folder),
                    )
                    for seed in scenario.seeds
                ]
    return cases


def _fix(plan: EvaluationPlan, case: Case, report: Report) -> Fixed:
    """The case with its objectives, at the highest rate the reference policy holds; for goodput, at the trace's own."""
    series = case.series
    registry = alone(
        series.registry, series.trace, series.costs, series.calibration, capacity=series.capacity, report=report
    )
    case = dataclasses.replace(case, series=dataclasses.replace(series, registry=registry), reference=plan.reference)
    if case.scenario.measures == ("goodput",):
        return Fixed(case, ())
    trials = Trials(case, plan.reference, plan.effort, report, placed_at=case.scale)
    scale = trials.highest_scale()
    return Fixed(dataclasses.replace(case, scale=scale or case.scale, held=scale is not None), trials.runs)


def _measure(shared: tuple[SearchEffort, list[Case]], task: Task, report: Report) -> PolicyResult:
    effort, cases = shared
    return measure(cases[task.case], task.policy, effort, report)


def _longest_first(cases: Sequence[Case]) -> list[int]:
    """So that none is begun when all else is done."""

    def requests(number: int) -> float:
        case = cases[number]
        return case.scale * case.scenario.rate * case.scenario.duration

    return sorted(range(len(cases)), key=requests, reverse=True)


def _say_fixed(fixed: Fixed) -> None:
    case = fixed.case
    if not fixed.runs:
        return
    rate = f"{case.scale:.3g} times its rate" if case.held else "no rate; compared at its own"
    say_again("")
    say(f"{case.name}: {case.reference} holds {rate}")


def _say_found(found: PolicyResult) -> None:
    said = [f"{found.scale:.3g} times the rate" if found.scale else "", f"{found.gpus} GPUs" if found.gpus else ""]
    said += [f"{goodput:.2f} good requests/s at x{times:g}" for times, goodput in found.goodput.items()]
    say_again("")
    say(f"{found.case}, {found.policy}: {', '.join(filter(None, said)) or 'nothing holds'}")

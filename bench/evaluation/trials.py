"""Measures one policy in one case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bench.evaluation.cases import Attempt, Case, attempt, holds
from bench.evaluation.placements import PLACEMENTS, SCREENED_AT, SCREENED_FOR, best_placement
from bench.evaluation.scenarios import GOODPUT_AT, HEADLINE
from bench.evaluation.search import fewest, highest
from simulator.parallel import Report
from simulator.report import RunRow

STATIC = "static"
LEAST, MOST = 1 / 32, 32.0
"""Range, in multiples of the fixed rate, in which the highest rate held is searched."""
JUDGED = 100
"""Minimum number of judged requests; with fewer, a single miss would already be too many."""
SECOND_LOOK = 0.75
"""Multiple of the fixed rate at which placements are chosen again if it is not known what `static` holds."""
MOST_GPUS = 4
"""Maximum number of GPUs to try, as a multiple of the scenario's."""


@dataclass(frozen=True, slots=True)
class SearchEffort:
    """Effort per figure: the ratio at which the search for a rate ends, and the number of placements to try."""

    precision: float = 1.05
    placements: int = PLACEMENTS
    """On the scenario's own number of GPUs."""
    placements_elsewhere: int = PLACEMENTS // 4
    """On each other number of GPUs."""


@dataclass(frozen=True, slots=True)
class TrialRun:
    """One simulated run that counted. `placement` is the seed of `static`'s placement."""

    row: RunRow
    placement: int | None = None


@dataclass(frozen=True, slots=True)
class PolicyResult:
    """The result of one policy in a case. None means not measured, or that nothing holds."""

    case: str
    policy: str
    scale: float | None = None
    """The highest rate held on the scenario's GPUs, as a multiple of the trace's."""
    gpus: int | None = None
    """The fewest GPUs that hold the fixed rate."""
    goodput: Mapping[float, float] = field(default_factory=dict)
    """Requests per second that met both objectives, by multiple of the trace's own rate."""
    runs: tuple[TrialRun, ...] = ()


class Trials:
    """Runs of one policy in one case, cached. `placed_at` is the rate scale at which placements are chosen."""

    def __init__(self, case: Case, policy: str, effort: SearchEffort, report: Report, *, placed_at: float) -> None:
        self._case = case
        self._policy = policy
        self._effort = effort
        self._report = report
        self._placed_at = placed_at
        self._placements: dict[int, int] = {}
        self._runs: dict[tuple[int, float], TrialRun] = {}

    @property
    def runs(self) -> tuple[TrialRun, ...]:
        return tuple(self._runs.values())

    def run(self, gpus: int, scale: float) -> RunRow:
        if (gpus, scale) not in self._runs:
            placement = self._placement(gpus) if self._policy == STATIC else None
            made = self._attempt(gpus, scale, placement)
            self._runs[gpus, scale] = TrialRun(made, placement)
        return self._runs[gpus, scale].row

    def highest_scale(self) -> float | None:
        gpus = self._case.scenario.gpus
        return highest(
            lambda scale: holds(self.run(gpus, scale)),
            start=self._case.scale,
            precision=self._effort.precision,
            least=max(LEAST * self._case.scale, JUDGED / max(JUDGED, self._case.judged)),
            most=MOST * self._case.scale,
        )

    def fewest_gpus(self) -> int | None:
        gpus, scale = self._case.scenario.gpus, self._case.scale
        return fewest(lambda number: holds(self.run(number, scale)), start=gpus, most=MOST_GPUS * gpus)

    def goodput(self) -> dict[float, float]:
        gpus, scale = self._case.scenario.gpus, self._case.scale
        return {times: self.run(gpus, times * scale).goodput_rps for times in GOODPUT_AT}

    def _attempt(self, gpus: int, scale: float, placement: int | None, seconds: float | None = None) -> RunRow:
        return attempt(self._case, Attempt(self._policy, gpus, scale, placement, seconds), self._report)

    def _placement(self, gpus: int) -> int:
        if gpus not in self._placements:
            home, at = gpus == self._case.scenario.gpus, self._placed_at
            self._placements[gpus] = best_placement(
                lambda placement: self._good(gpus, SCREENED_AT * at, placement, SCREENED_FOR),
                lambda placement: self._good(gpus, at, placement, None),
                self._effort.placements if home else self._effort.placements_elsewhere,
            )
        return self._placements[gpus]

    def _good(self, gpus: int, scale: float, placement: int, seconds: float | None) -> float:
        """The share of requests that meet both objectives under a placement; 1 without requests."""
        row = self._attempt(gpus, scale, placement, seconds)
        judged_for = seconds or self._case.series.trace.duration - self._case.scenario.warm_up
        return row.goodput_rps * judged_for / row.requests if row.requests else 1.0


def measure(case: Case, policy: str, effort: SearchEffort, report: Report) -> PolicyResult:
    """All measures of the case's scenario."""
    measures = case.scenario.measures
    placed_at = case.scale * (HEADLINE if "goodput" in measures else 1.0)
    trials = Trials(case, policy, effort, report, placed_at=placed_at)
    gpus = trials.fewest_gpus() if "gpus" in measures else None
    goodput = trials.goodput() if "goodput" in measures else {}
    scale = _highest_scale(trials, case, policy) if "rate" in measures else None
    runs = trials.runs
    if policy == STATIC and {"rate", "gpus"} & {*measures}:
        # a placement that is best far above what it can hold need not be best where it just holds: another try
        again = Trials(case, policy, effort, report, placed_at=scale or SECOND_LOOK * placed_at)
        if "rate" in measures:
            scale = max(scale or 0.0, again.highest_scale() or 0.0) or None
        if "gpus" in measures:
            gpus = min((number for number in (gpus, again.fewest_gpus()) if number is not None), default=None)
        runs += again.runs
    return PolicyResult(case.name, policy, scale, gpus, goodput, runs)


def _highest_scale(trials: Trials, case: Case, policy: str) -> float | None:
    """The highest scale held; known without a search for the reference policy, which determined the scale."""
    if policy == case.reference:
        return case.scale if case.held else None
    return trials.highest_scale()

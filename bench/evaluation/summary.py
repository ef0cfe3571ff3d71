"""Summarises a scenario's cases: the result of each policy, and ratios between policies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.evaluation.run import CaseOutcome
from bench.evaluation.scenarios import HEADLINE
from bench.evaluation.trials import PolicyResult
from simulator.report import RunRow

Quantity = Callable[[CaseOutcome, PolicyResult], float]


def rate(outcome: CaseOutcome, found: PolicyResult) -> float:
    """The highest rate held, relative to the fixed rate; 0 if none is held."""
    return (found.scale or 0.0) / outcome.case.scale


def gpus(outcome: CaseOutcome, found: PolicyResult) -> float:
    """The fewest GPUs that hold the fixed rate; infinite if no number does."""
    return math.inf if found.gpus is None else float(found.gpus)


def goodput(outcome: CaseOutcome, found: PolicyResult, times: float = HEADLINE) -> float:
    """Goodput in requests per second at `times` the trace's own rate."""
    return found.goodput[times]


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over several cases. Mean and range cover the finite values."""

    finite: tuple[float, ...]
    nothing: int
    """Number of cases in which the figure does not exist."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        finite = tuple(value for value in values if math.isfinite(value))
        return cls(finite, len(values) - len(finite))

    @property
    def cases(self) -> int:
        return len(self.finite) + self.nothing

    @property
    def mean(self) -> float:
        """NaN without cases."""
        return float(np.mean(self.finite)) if self.finite else math.nan

    def text(self, digits: int = 3) -> str:
        if not self.finite:
            return "none" if self.nothing else "-"
        low, high = min(self.finite), max(self.finite)
        spread = "" if len(self.finite) == 1 else f" ({low:.{digits}g} to {high:.{digits}g})"
        none = f"; none in {self.nothing} of {self.cases}" if self.nothing else ""
        return f"{self.mean:.{digits}g}{spread}{none}"


def of_policy(outcomes: Sequence[CaseOutcome], policy: str, quantity: Quantity) -> Spread:
    found = [(outcome, reached) for outcome in outcomes if (reached := outcome.of(policy)) is not None]
    return Spread.of([quantity(outcome, reached) for outcome, reached in found])


def at_fixed_rate(outcomes: Sequence[CaseOutcome], policy: str) -> list[RunRow]:
    """The runs at the fixed rates on the scenario's own number of GPUs."""
    found = []
    for outcome in outcomes:
        reached, setting = outcome.of(policy), (outcome.case.scenario.gpus, outcome.case.scale)
        rows = [run.row for run in reached.runs] if reached is not None else []
        # Of two runs with different placements, the first placement was chosen at this rate.
        found += [row for row in rows if (row.gpus, row.rate_scale) == setting][:1]
    return found


@dataclass(frozen=True, slots=True)
class Ratio:
    """The ratio of one policy's figure to another's, case by case; infinite if only the other has none."""

    values: tuple[float, ...]
    undecided: int
    """Number of cases in which neither has a figure."""

    @property
    def mean(self) -> float:
        """Mean of the finite ratios; NaN if there are none."""
        finite = [value for value in self.values if math.isfinite(value)]
        return float(np.mean(finite)) if finite else (math.inf if self.values else math.nan)

    def text(self) -> str:
        finite = [value for value in self.values if math.isfinite(value)]
        parts = []
        if finite:
            parts.append(f"{np.mean(finite):.2f}x ({min(finite):.2f} to {max(finite):.2f}, {_cases(len(finite))})")
        if endless := len(self.values) - len(finite):
            parts.append(f"the other reaches nothing in {endless}")
        if self.undecided:
            parts.append(f"neither reaches anything in {self.undecided}")
        return "; ".join(parts) or "not measured"


def _cases(number: int) -> str:
    return "1 case" if number == 1 else f"{number} cases"


def ratio(outcomes: Sequence[CaseOutcome], quantity: Quantity, one: str, other: str) -> Ratio:
    """The ratio of `one` to `other` over all cases that have both."""
    values, undecided = [], 0
    for outcome in outcomes:
        first, second = outcome.of(one), outcome.of(other)
        if first is None or second is None:
            continue
        above, below = quantity(outcome, first), quantity(outcome, second)
        if above == below and (above == 0 or math.isinf(above)):
            undecided += 1
        elif below == 0 or math.isinf(above):
            values.append(math.inf)
        else:
            values.append(above / below)
    return Ratio(tuple(values), undecided)


def of_scenario(outcomes: Sequence[CaseOutcome], name: str) -> list[CaseOutcome]:
    return [outcome for outcome in outcomes if outcome.case.scenario.name == name]

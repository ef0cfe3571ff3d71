"""Goals of the evaluation next to the paper's figures, and whether they are met."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.evaluation.run import CaseOutcome
from bench.evaluation.summary import Quantity, Ratio, goodput, gpus, of_policy, of_scenario, rate, ratio
from bench.goals import VERDICTS

PRISM, PAPER = "prism", "prism-paper"
BASELINES = ("static", "space", "swap", "serverless")
NEAR = 0.25
"""Maximum relative deviation of `prism-paper` from the paper's ratio."""


@dataclass(frozen=True, slots=True)
class GoalResult:
    text: str
    reached: bool | None
    """None if it was not measured."""


@dataclass(frozen=True, slots=True)
class EvaluationGoal:
    scenario: str
    figure: str
    wanted: str
    paper: str
    measured: Callable[[Sequence[CaseOutcome]], GoalResult]


def _ratio(
    scenario: str,
    figure: str,
    quantity: Quantity,
    one: str,
    other: str,
    wanted: str,
    paper: str,
    low: float,
    high: float,
) -> EvaluationGoal:
    """A goal that requires the mean ratio to lie between two bounds."""

    def measured(outcomes: Sequence[CaseOutcome]) -> GoalResult:
        found = ratio(outcomes, quantity, one, other)
        return GoalResult(found.text(), _within(found, low, high))

    return EvaluationGoal(scenario, figure, wanted, paper, measured)


def _within(found: Ratio, low: float, high: float) -> bool | None:
    return None if math.isnan(found.mean) else low <= found.mean <= high


def _least(
    scenario: str, figure: str, quantity: Quantity, one: str, other: str, least: float, paper: str
) -> EvaluationGoal:
    return _ratio(scenario, figure, quantity, one, other, f"≥ {least:g}x", paper, least, math.inf)


def _near(scenario: str, figure: str, quantity: Quantity, other: str, paper: float) -> EvaluationGoal:
    low, high = paper * (1 - NEAR), paper * (1 + NEAR)
    wanted = f"{low:.2f}x to {high:.2f}x"
    return _ratio(scenario, figure, quantity, PAPER, other, wanted, f"{paper:g}x", low, high)


def _few_gpus(outcomes: Sequence[CaseOutcome]) -> GoalResult:
    found = of_policy(outcomes, PRISM, gpus)
    reached = None if not found.cases else not found.nothing and found.mean <= 4
    return GoalResult(found.text(), reached)


def _others_need_more(outcomes: Sequence[CaseOutcome]) -> GoalResult:
    texts, reached = [], []
    for other in BASELINES:
        there = of_policy(outcomes, other, gpus)
        if not there.cases:
            continue
        times = ratio(outcomes, gpus, other, PRISM)
        texts.append(f"`{other}` {there.text()}")
        reached.append(not there.finite or there.mean > 8 or times.mean >= 2)
    return GoalResult(", ".join(texts) or "not measured", all(reached) if reached else None)


GOALS = (
    _near("eight", "rate, `prism-paper` against `space`", rate, "space", 2.3),
    _near("eight", "rate, `prism-paper` against `static`", rate, "static", 3.5),
    _least("eight", "rate, `prism` against `space`", rate, PRISM, "space", 2.5, "2.3x"),
    _least("eight", "rate, `prism` against `static`", rate, PRISM, "static", 4.0, "3.5x"),
    EvaluationGoal("eighteen", "GPUs, `prism`", "≤ 4", "4 to 5", _few_gpus),
    EvaluationGoal("eighteen", "GPUs, the others", "> 8, or ≥ 2x", "more than 8", _others_need_more),
    _least("fifty-eight", "GPUs, `space` against `prism`", gpus, "space", PRISM, 2.0, "2x (32 and 16)"),
    _least("unequal", "goodput, `prism` against `static`", goodput, PRISM, "static", 0.98, "`prism-paper` lost 24.6%"),
    _least("rotating", "goodput, `prism` against `prism-paper`", goodput, PRISM, PAPER, 1.15, "-"),
    _near("rotating", "goodput, `prism-paper` against `static`", goodput, "static", 1.079),
)


def goal_table(outcomes: Sequence[CaseOutcome]) -> str:
    """Markdown."""
    lines = ["| scenario | figure | goal | measured | | paper |", "| --- | --- | --- | --- | --- | --- |"]
    for goal in GOALS:
        measured = goal.measured(of_scenario(outcomes, goal.scenario))
        cells = (goal.scenario, goal.figure, goal.wanted, measured.text, VERDICTS[measured.reached], goal.paper)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)

"""Writes the evaluation's report: all runs as JSON, and a Markdown page that includes hand-written notes."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from bench.evaluation.cases import GOAL, GPU_MEMORY, TPOT_SCALE, TTFT_SCALE
from bench.evaluation.goals import goal_table
from bench.evaluation.placements import FINALISTS, SCREENED_AT, SCREENED_FOR
from bench.evaluation.run import CaseOutcome, EvaluationPlan
from bench.evaluation.scenarios import GOODPUT_AT, HEADLINE, Scenario
from bench.evaluation.summary import Quantity, Spread, at_fixed_rate, goodput, gpus, of_policy, of_scenario, rate
from bench.evaluation.trials import JUDGED, TrialRun
from config.units import format_size
from simulator.errors import StudyError

NAME = "scheduler"
WIDTH = 120
NOTES = f"{NAME}_notes.md"
"""The file of hand-written notes next to the report, which is only read."""


def write_report(plan: EvaluationPlan, outcomes: Sequence[CaseOutcome], command: str, folder: Path) -> list[Path]:
    """Write `scheduler.json` and `scheduler.md` into `folder`; returns their paths. Raises: StudyError."""
    data, page, notes = folder / f"{NAME}.json", folder / f"{NAME}.md", folder / NOTES
    try:
        folder.mkdir(parents=True, exist_ok=True)
        data.write_text(json.dumps(figures(plan, outcomes, command), indent=1) + "\n")
        page.write_text(markdown(plan, outcomes, command, notes.read_text() if notes.exists() else ""))
    except OSError as error:
        raise StudyError(f"{folder}: cannot be written: {error}") from error
    return [data, page]


def figures(plan: EvaluationPlan, outcomes: Sequence[CaseOutcome], command: str) -> dict[str, Any]:
    """All results and the runs they are based on."""
    return {
        "command": command,
        "calibration": plan.calibration.machine,
        "assumed": plan.calibration.assumptions,
        "gpu_memory_bytes": GPU_MEMORY,
        "reference": plan.reference,
        "precision": plan.effort.precision,
        "placements": plan.effort.placements,
        "placements_elsewhere": plan.effort.placements_elsewhere,
        "cases": [_case(outcome) for outcome in outcomes],
    }


def _case(outcome: CaseOutcome) -> dict[str, Any]:
    case = outcome.case
    slos = {model.name: model.slo for model in case.series.registry.models}
    return {
        "scenario": case.scenario.name,
        "workload": case.workload,
        "seed": case.seed,
        "trace": case.words,
        "fixed_rate_scale": case.scale,
        "held_by_reference": case.held,
        "left_out": dict(case.left_out),
        "slo_base": {name: {"ttft_s": slo.ttft, "tpot_s": slo.tpot} for name, slo in slos.items()},
        "fixed_by": [_run(run) for run in outcome.fixing],
        "found": [
            {
                "policy": found.policy,
                "highest_scale": found.scale,
                "fewest_gpus": found.gpus,
                "goodput_rps": {f"{times:g}": value for times, value in found.goodput.items()},
                "runs": [_run(run) for run in found.runs],
            }
            for found in outcome.found
        ],
    }


def _run(run: TrialRun) -> dict[str, Any]:
    return asdict(run.row) | ({} if run.placement is None else {"placement_seed": run.placement})


def markdown(plan: EvaluationPlan, outcomes: Sequence[CaseOutcome], command: str, notes: str) -> str:
    scenarios = [scenario for scenario in plan.scenarios if of_scenario(outcomes, scenario.name)]
    parts = [
        "# The scheduler's policies, compared in the simulator",
        f"`{command}`. Written by `bench.evaluation`, but for the text from [{NOTES}]({NOTES}).",
        _method(plan),
        "## Goals",
        goal_table(outcomes),
        "Means over all workloads and seeds, with the least and the most.",
        f"![Rates, GPUs and goodput by policy]({NAME}.png)",
        notes.strip(),
        *(part for scenario in scenarios for part in _section(plan, scenario, of_scenario(outcomes, scenario.name))),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _method(plan: EvaluationPlan) -> str:
    assumed = ", ".join(plan.calibration.assumptions) or "nothing"
    effort, times = plan.effort, ", ".join(f"{times:g}" for times in GOODPUT_AT)
    text = f"""GPUs of {format_size(GPU_MEMORY)}, otherwise calibrated on {plan.calibration.machine}; assumed, not
    measured: {assumed}. Objectives: {TTFT_SCALE:g} times the p95 TTFT and {TPOT_SCALE:g} times the p95 TPOT of each
    model alone on such a GPU, with its own requests of the trace at its own rate. A rate is held when {GOAL:.0%} of the
    requests meet each of the two; what is not answered has missed both. A trace's warm-up is simulated and not judged.
    Rates are varied by leaving requests out or adding copies, until two that differ by a factor of
    {effort.precision:g} hold and do not; none at which fewer than {JUDGED} requests would be judged counts as held. The
    fixed rate of a case is the highest that `{plan.reference}` holds; where it holds none, and where goodput is
    compared, the trace's own. `static` gets the best of {effort.placements} placements, tried on {SCREENED_FOR:g} s of
    the trace at {SCREENED_AT:g} times the rate, the best {FINALISTS} of
    them on the whole; another {effort.placements_elsewhere} for each other number of GPUs, and {effort.placements}
    again at the rate that it was found to hold. Goodput counts requests that met both objectives, at {times} times the
    trace's own rate; goals are about {HEADLINE:g} times."""
    return "## How\n\n" + textwrap.fill(" ".join(text.split()), WIDTH, break_long_words=False)


def _section(plan: EvaluationPlan, scenario: Scenario, outcomes: Sequence[CaseOutcome]) -> list[str]:
    parts = [f"## {scenario.name}: {scenario.text}", _models(scenario, outcomes[0])]
    titles: dict[str, tuple[str, Quantity]] = {
        "rate": (f"Highest rate held on {scenario.gpus} GPUs, in times the fixed one:", rate),
        "gpus": ("Fewest GPUs that hold the fixed rate:", gpus),
    }
    for measure in scenario.measures:
        if measure == "goodput":
            parts += [
                "Goodput, requests a second, by times the trace's own rate:",
                _goodput_table(plan, scenario, outcomes),
            ]
        else:
            title, quantity = titles[measure]
            parts += [title, _table(plan, scenario, outcomes, quantity)]
    parts += [f"At the fixed rate, on {scenario.gpus} GPUs (means):", _fixed_table(plan, scenario, outcomes)]
    return [*parts, "The fixed rates:", _rates(outcomes)]


def _models(scenario: Scenario, outcome: CaseOutcome) -> str:
    groups = ", ".join(
        f"{group.number} {group.size}" + (f" (TP {group.tensor_parallel})" if group.tensor_parallel > 1 else "")
        for group in scenario.models
    )
    text = f"{groups}. {scenario.duration:g} s, of which {scenario.warm_up:g} s are warm-up."
    if left_out := outcome.case.left_out:
        why = "; ".join(sorted(set(left_out.values())))
        text += f" **Without {len(left_out)} of them** ({', '.join(left_out)}): {why}."
    return text


def _table(plan: EvaluationPlan, scenario: Scenario, outcomes: Sequence[CaseOutcome], quantity: Quantity) -> str:
    """A line per policy and a column per workload: mean and range over the seeds."""
    workloads = [name for name in scenario.workloads if any(outcome.case.workload == name for outcome in outcomes)]
    lines = [["policy", *workloads, "all"]]
    for policy in plan.policies_of(scenario):
        columns = [[outcome for outcome in outcomes if outcome.case.workload == name] for name in workloads]
        lines.append([f"`{policy}`", *(of_policy(each, policy, quantity).text() for each in [*columns, outcomes])])
    return _aligned(lines)


def _goodput_table(plan: EvaluationPlan, scenario: Scenario, outcomes: Sequence[CaseOutcome]) -> str:
    lines = [["policy", *(f"x{times:g}" for times in GOODPUT_AT)]]
    for policy in plan.policies_of(scenario):
        spreads = [of_policy(outcomes, policy, partial(goodput, times=times)) for times in GOODPUT_AT]
        lines.append([f"`{policy}`", *(spread.text() for spread in spreads)])
    return _aligned(lines)


def _fixed_table(plan: EvaluationPlan, scenario: Scenario, outcomes: Sequence[CaseOutcome]) -> str:
    lines = [["policy", "TTFT attained", "TPOT attained", "goodput/s", "activations", "migrations"]]
    for policy in plan.policies_of(scenario):
        rows = at_fixed_rate(outcomes, policy)
        attained = [_percent([row.ttft_attainment for row in rows]), _percent([row.tpot_attainment for row in rows])]
        counted = [
            Spread.of([row.goodput_rps for row in rows]),
            Spread.of([row.activations for row in rows]),
            Spread.of([row.migrations for row in rows]),
        ]
        lines.append([f"`{policy}`", *attained, *(f"{spread.mean:.3g}" for spread in counted)])
    return _aligned(lines)


def _percent(shares: Sequence[float | None]) -> str:
    known = Spread.of([100 * share for share in shares if share is not None])
    return f"{known.text()}%" if known.cases else "-"


def _rates(outcomes: Sequence[CaseOutcome]) -> str:
    lines = [["workload", "seed", "times its rate", "requests/s", "judged", "trace"]]
    for outcome in outcomes:
        case = outcome.case
        scale = f"{case.scale:.3g}" if case.held else f"{case.scale:.3g} ({case.reference} holds none)"
        times = [request.at for request in case.series.trace.scaled(case.scale, case.seed)]
        judged = sum(at >= case.scenario.warm_up for at in times)
        rate_rps = len(times) / case.series.trace.duration
        lines.append([case.workload, str(case.seed), scale, f"{rate_rps:.2f}", str(judged), case.words])
    return _aligned(lines)


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    rows = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([rows[0], f"|{' --- |' * len(lines[0])}", *rows[1:]])

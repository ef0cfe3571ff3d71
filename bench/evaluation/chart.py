"""Plots an evaluation on one page: for each scenario and measure, all policies over workloads and seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from bench.evaluation.run import CaseOutcome, EvaluationPlan
from bench.evaluation.scenarios import GOODPUT_AT, Scenario
from bench.evaluation.summary import Quantity, goodput, gpus, of_policy, of_scenario, rate
from bench.evaluation.trials import MOST_GPUS
from simulator.pictures import ALL, BAD, save

Panel = Callable[[Axes], None]


def draw(path: Path, plan: EvaluationPlan, outcomes: Sequence[CaseOutcome]) -> None:
    """Write the page as PNG. Raises: StudyError when it cannot be written."""
    palette = plt.get_cmap("tab10")
    colours = {policy: palette(index % 10) for index, policy in enumerate(plan.policies)}
    panels = [
        panel
        for scenario in plan.scenarios
        if (own := of_scenario(outcomes, scenario.name))
        for panel in _panels(plan, scenario, own, colours)
    ]
    lines = ceil(len(panels) / 2)
    layout = ConstrainedLayoutEngine(hspace=0.06, wspace=0.04)
    figure, axes = plt.subplots(lines, 2, figsize=(13, 3.7 * lines + 0.6), layout=layout, dpi=110, squeeze=False)
    for axis, panel in zip(axes.flat, panels, strict=False):
        panel(axis)
        axis.grid(axis="y", alpha=0.25)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(11)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    handles = [Patch(color=colour, label=policy) for policy, colour in colours.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=9, frameon=False)
    save(figure, path)


def _panels(
    plan: EvaluationPlan, scenario: Scenario, outcomes: Sequence[CaseOutcome], colours: Mapping[str, Any]
) -> list[Panel]:
    colours = {policy: colours[policy] for policy in plan.policies_of(scenario)}
    bars = partial(_bars, outcomes=outcomes, workloads=scenario.workloads, colours=colours)
    made: dict[str, Panel] = {
        "rate": partial(
            bars,
            quantity=rate,
            title=f"{scenario.name}: highest rate held on {scenario.gpus} GPUs",
            unit=f"times the rate {plan.reference} holds",
            line=1.0,
        ),
        "gpus": partial(
            bars,
            quantity=gpus,
            title=f"{scenario.name}: GPUs that hold the fixed rate (∅: not {MOST_GPUS * scenario.gpus})",
            unit="GPUs",
            line=float(scenario.gpus),
        ),
        "goodput": partial(_goodput, scenario=scenario, outcomes=outcomes, colours=colours),
    }
    return [made[measure] for measure in scenario.measures]


def _bars(
    axis: Axes,
    outcomes: Sequence[CaseOutcome],
    workloads: Sequence[str],
    colours: Mapping[str, Any],
    quantity: Quantity,
    title: str,
    unit: str,
    line: float,
) -> None:
    """A group per workload and a bar per policy: the mean over the seeds, with its range."""
    width = 0.8 / len(colours)
    shown = [name for name in workloads if any(outcome.case.workload == name for outcome in outcomes)]
    for group, workload in enumerate(shown):
        own = [outcome for outcome in outcomes if outcome.case.workload == workload]
        for place, (policy, colour) in enumerate(colours.items()):
            at = group + (place - (len(colours) - 1) / 2) * width
            spread = of_policy(own, policy, quantity)
            if spread.finite:
                axis.bar(at, spread.mean, width * 0.92, color=colour)
            if len(spread.finite) > 1:
                error = [[spread.mean - min(spread.finite)], [max(spread.finite) - spread.mean]]
                axis.errorbar(at, spread.mean, error, color=ALL, linewidth=0.9, capsize=2)
            if not any(spread.finite):
                axis.text(at, 0, "∅", ha="center", va="bottom", fontsize=9, color=colour)
    axis.axhline(line, color=BAD, linestyle="--", linewidth=0.9)
    axis.set_xticks(range(len(shown)), shown)
    axis.set(title=title, ylabel=unit)
    if quantity is gpus:
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlim(-0.6, len(shown) - 0.4)
    axis.set_ylim(bottom=0)


def _goodput(axis: Axes, scenario: Scenario, outcomes: Sequence[CaseOutcome], colours: Mapping[str, Any]) -> None:
    """Goodput over the request rate: a line per policy, with a band for its range."""
    for policy, colour in colours.items():
        spreads = [of_policy(outcomes, policy, partial(goodput, times=times)) for times in GOODPUT_AT]
        if not all(spread.finite for spread in spreads):
            continue
        lows, highs = [min(spread.finite) for spread in spreads], [max(spread.finite) for spread in spreads]
        axis.plot(GOODPUT_AT, [spread.mean for spread in spreads], marker="o", markersize=4, color=colour)
        axis.fill_between(GOODPUT_AT, lows, highs, color=colour, alpha=0.12, linewidth=0)
    axis.set_xticks(GOODPUT_AT, [f"x{times:g}" for times in GOODPUT_AT])
    axis.set(title=f"{scenario.name}: goodput on {scenario.gpus} GPUs", xlabel="times the trace's own rate")
    axis.set_ylabel("requests/s within both SLOs")
    axis.set_ylim(bottom=0)

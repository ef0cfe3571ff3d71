"""Charts a load test: TTFT, TPOT, and attainment of objectives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from bench.load.outcomes import ClientSlo, RequestOutcome
from simulator.pictures import ALL, BAD, GOOD, LATE, save

MOST_LINES = 8
"""Number of models with their own line; the others share one."""
WIDE = 20.0
"""Ratio of longest to shortest time above which the axis is logarithmic."""
SLOTS = 5
"""Minimum number of bars to leave room for, so that few bars do not become too thick."""

Value = Callable[[RequestOutcome], float | None]


def draw(
    path: Path,
    title: str,
    outcomes: Sequence[RequestOutcome],
    slos: Mapping[str, ClientSlo],
    figures: Mapping[str, Any],
) -> None:
    """Write the chart as PNG. Raises: StudyError when the file cannot be written."""
    ended = [outcome for outcome in outcomes if outcome.ended is not None]
    bars = max(3.0, 0.28 * len(slos))
    figure, axes = plt.subplots(
        2, 2, figsize=(13, 4.2 + bars + 0.8), height_ratios=(4.2, bars), layout="constrained", dpi=110
    )
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    _distribution(axes[0][0], "Time to first token", ended, slos, lambda o: o.ttft, lambda slo: slo.ttft)
    _distribution(axes[0][1], "Time per output token", ended, slos, lambda o: o.tpot, lambda slo: slo.tpot)
    _attainment(axes[1][0], slos, figures["models"])
    _timeline(axes[1][1], ended, slos, figures["took_s"])
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(11)
    save(figure, path)


def _distribution(
    axis: Axes,
    title: str,
    ended: Sequence[RequestOutcome],
    slos: Mapping[str, ClientSlo],
    value: Value,
    objective: Callable[[ClientSlo], float | None],
) -> None:
    """Cumulative distribution of a time, over all answers and for the busiest models."""
    colours = plt.get_cmap("tab10")
    for rank, model in enumerate(_busiest(ended)):
        _steps(axis, [o for o in ended if o.arrival.model == model], value, model, colours(rank % 10), 1.2)
    _steps(axis, ended, value, "all", ALL, 2.2)
    for limit in {objective(slo) for slo in slos.values()} - {None}:
        assert limit is not None
        axis.axvline(limit, color=BAD, linestyle="--", linewidth=1, label="SLO")
    axis.set(title=title, xlabel="seconds", ylabel="share of answers", ylim=(0, 1.02))
    axis.grid(alpha=0.25)
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        _scale(axis)
        once = dict(zip(labels, handles, strict=True))
        axis.legend(once.values(), once.keys(), fontsize=8, frameon=False, loc="upper left")


def _scale(axis: Axes) -> None:
    """Make the axis logarithmic if times differ by orders of magnitude."""
    low, high = np.quantile(np.concatenate([line.get_xdata() for line in axis.lines]), (0.02, 1))
    if low > 0 and high / low > WIDE:
        axis.set_xscale("log")
        axis.set_xlim(left=low / 1.5)
        axis.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
        axis.xaxis.set_minor_formatter("")


def _busiest(ended: Sequence[RequestOutcome]) -> list[str]:
    models = [outcome.arrival.model for outcome in ended]
    return sorted(set(models), key=lambda model: (-models.count(model), model))[:MOST_LINES]


def _steps(axis: Axes, ended: Sequence[RequestOutcome], value: Value, label: str, colour: object, width: float) -> None:
    times = sorted(found for outcome in ended if outcome.completed and (found := value(outcome)) is not None)
    if times:
        shares = np.arange(1, len(times) + 1) / len(times)
        axis.step(times, shares, where="post", label=label, color=colour, linewidth=width)


def _attainment(axis: Axes, slos: Mapping[str, ClientSlo], models: Mapping[str, Any]) -> None:
    """A bar per model: the share of its requests that met both objectives."""
    names = [name for name in slos if models[name]["requests"]][::-1]
    shares = [models[name]["attainment"]["both"] for name in names]
    axis.barh(names, [100] * len(names), color="#eceef1", height=0.7)
    axis.barh(names, [100 * (share or 0.0) for share in shares], color=GOOD, height=0.7)
    for row, (name, share) in enumerate(zip(names, shares, strict=True)):
        asked = f"of {models[name]['requests']}"
        text = f"no SLO, {asked}" if share is None else f"{100 * share:.1f}% {asked}"
        axis.text(102, row, text, va="center", fontsize=8, color=ALL)
    axis.set(
        title="Requests that met both SLOs (a failure is a miss)", xlabel="%", xlim=(0, 125), xticks=range(0, 101, 20)
    )
    axis.tick_params(axis="y", labelsize=8)
    axis.set_ylim(len(names) - 0.4 - max(len(names), SLOTS), len(names) - 0.4)


def _timeline(axis: Axes, ended: Sequence[RequestOutcome], slos: Mapping[str, ClientSlo], took: float) -> None:
    """Requests per second by arrival time, split by outcome."""
    width = max(1.0, round(took / 60))
    edges = np.arange(0, took + width, width)
    kinds: dict[str, tuple[str, list[float]]] = {
        "met its SLOs": (GOOD, [o.arrival.at for o in ended if slos[o.arrival.model].met(o)]),
        "late": (LATE, [o.arrival.at for o in ended if o.completed and not slos[o.arrival.model].met(o)]),
        "failed": (BAD, [o.arrival.at for o in ended if not o.completed]),
    }
    base = np.zeros(len(edges) - 1)
    for label, (colour, arrived) in kinds.items():
        rate = np.histogram(arrived, edges)[0] / width
        axis.bar(edges[:-1], rate, width * 0.9, bottom=base, align="edge", label=label, color=colour)
        base += rate
    axis.set(title="Arrivals, by what became of them", xlabel="seconds from the start", ylabel="requests per second")
    axis.legend(fontsize=8, frameon=False, ncols=3, loc="upper right")
    axis.set_ylim(0, 1.25 * max(base.max(), 1e-9))

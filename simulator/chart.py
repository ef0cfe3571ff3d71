"""Plots a series of runs on one page: SLO attainment by each varied setting, TTFT distributions, memory over time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import ceil
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from simulator.pictures import ALL, BAD, save
from simulator.report import RunRow, Setting
from simulator.series import FinishedRun, title
from simulator.typical import typical

NAMED = 12
"""Number of models with their own colour in the memory plots."""
OTHERS = "#d5d8dc"
GOAL = 99.0
"""Percent of requests at which attainment plots draw a reference line."""
GB = 1e9
LONG = 300.0
"""Seconds above which the time axis is in minutes."""

STYLES: dict[str, Literal["-", ":"]] = {"TTFT": "-", "TPOT": ":"}
VARIED = {"rate_scale": "rate, times the trace's", "slo_scale": "scale of the SLOs", "gpus": "number of GPUs"}

Panel = Callable[[Axes], None]


def draw(path: Path, ran: Sequence[FinishedRun], *, capacity: int) -> None:
    """Write the page as PNG; `capacity` is the bytes of each GPU. Raises: StudyError when it cannot be written."""
    shown = _typical_runs(ran)
    colours = _colours([each.row.policy for each in ran])
    models = _biggest(shown)
    rows = [each.row for each in ran]
    panels: list[Panel] = [
        partial(_attainment, rows=rows, key=key, name=name, colours=colours)
        for key, name in VARIED.items()
        if len({getattr(row, key) for row in rows}) > 1
    ]
    panels += [
        partial(_first_tokens, shown=shown, colours=colours),
        partial(_activations, shown=shown, colours=colours),
    ]
    panels += [
        partial(_memory, ran=each, models=models, whole=each.row.gpus * capacity, unit=_unit(shown))
        for each in shown
        if each.memory
    ]
    figure = _page(panels)
    _legend_of_policies(figure, colours)
    if models:
        _legend_of_models(figure, models)
    save(figure, path)


def _page(panels: Sequence[Panel]) -> Figure:
    lines = ceil(len(panels) / 2)
    layout = ConstrainedLayoutEngine(hspace=0.06, wspace=0.04)
    figure, axes = plt.subplots(lines, 2, figsize=(13, 3.7 * lines + 0.7), layout=layout, dpi=110, squeeze=False)
    for axis, panel in zip(axes.flat, panels, strict=False):
        panel(axis)
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(11)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    return figure


def _legend_of_policies(figure: Figure, colours: Mapping[str, Any]) -> None:
    handles: list[Artist] = [Patch(color=colour, label=policy) for policy, colour in colours.items()]
    handles += [Line2D([], [], color=ALL, linestyle=style, label=name) for name, style in STYLES.items()]
    handles.append(Line2D([], [], color=BAD, linestyle="--", linewidth=0.9, label=f"{GOAL:g}%; all memory"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=9, frameon=False)


def _legend_of_models(figure: Figure, models: Mapping[str, Any]) -> None:
    handles = [Patch(color=colour, label=name) for name, colour in {**models, "others": OTHERS}.items()]
    figure.legend(
        handles=handles,
        title="memory by model",
        title_fontsize=9,
        loc="outside lower center",
        ncols=7,
        fontsize=8,
        frameon=False,
    )


def _typical_runs(ran: Sequence[FinishedRun]) -> list[FinishedRun]:
    chosen = typical([setting_of(each.row) for each in ran])
    return [each for each in ran if setting_of(each.row) in chosen]


def setting_of(row: RunRow) -> Setting:
    return Setting(row.policy, row.gpus, row.rate_scale, row.slo_scale, row.seed)


def _colours(policies: Sequence[str]) -> dict[str, Any]:
    palette = plt.get_cmap("tab10")
    return {policy: palette(index % 10) for index, policy in enumerate(dict.fromkeys(policies))}


def _at(setting: Setting, without: str = "") -> str:
    """Describes a setting in words, without its policy and without the key `without`."""
    words = {
        "gpus": f"{setting.gpus} GPUs",
        "rate_scale": f"rate x{setting.rate_scale:g}",
        "slo_scale": f"SLO x{setting.slo_scale:g}",
    }
    return ", ".join(word for key, word in words.items() if key != without)


def _attainment(axis: Axes, rows: Sequence[RunRow], key: str, name: str, colours: Mapping[str, Any]) -> None:
    """One line per policy and objective; the other varied settings are those of the typical run."""
    places = sorted({getattr(row, key) for row in rows})
    for typical_run in typical([setting_of(row) for row in rows]):
        line = _along(rows, key, typical_run)
        at = [places.index(getattr(row, key)) for row in line]
        for objective, style in STYLES.items():
            shares = [row.ttft_attainment if objective == "TTFT" else row.tpot_attainment for row in line]
            percent = [np.nan if share is None else 100 * share for share in shares]
            colour = colours[typical_run.policy]
            axis.plot(at, percent, style, marker="o", markersize=3.5, color=colour, linewidth=1.6)
    axis.axhline(GOAL, color=BAD, linestyle="--", linewidth=0.9)
    axis.set_xticks(range(len(places)), [f"{place:g}" if key == "gpus" else f"x{place:g}" for place in places])
    held = {_at(setting, without=key) for setting in typical([setting_of(row) for row in rows])}
    axis.set(title=f"Requests within their SLO\n{'; '.join(sorted(held))}", xlabel=name, ylabel="% of requests")
    axis.set_ylim(top=101)


def _along(rows: Sequence[RunRow], key: str, held: Setting) -> list[RunRow]:
    """The runs of `held`'s policy that differ from `held` only in `key`, sorted by it."""
    others = ("policy", *(other for other in VARIED if other != key))
    line = [row for row in rows if all(getattr(row, other) == getattr(held, other) for other in others)]
    return sorted(line, key=attrgetter(key))


def _first_tokens(axis: Axes, shown: Sequence[FinishedRun], colours: Mapping[str, Any]) -> None:
    for each in shown:
        if not len(each.ttfts):
            continue
        share = 100 * np.arange(1, len(each.ttfts) + 1) / each.row.requests
        axis.step(each.ttfts, share, where="post", color=colours[each.row.policy], linewidth=1.6)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
    axis.xaxis.set_minor_formatter("")
    axis.set(title="Time to first token", xlabel="seconds", ylabel="% of requests answered within", ylim=(0, 101))
    _say_setting(axis, shown)


def _activations(axis: Axes, shown: Sequence[FinishedRun], colours: Mapping[str, Any]) -> None:
    """One bar per policy, with migrations hatched."""
    for place, each in enumerate(shown):
        row = each.row
        axis.barh(place, row.activations, color=colours[row.policy], height=0.6)
        axis.barh(place, row.migrations, color="none", edgecolor="white", hatch="///", height=0.6, linewidth=0)
        text = f" {row.activations}" + (f", {row.migrations} of them migrations" if row.migrations else "")
        axis.text(row.activations, place, text, va="center", fontsize=8, color=ALL)
    axis.set_yticks(range(len(shown)), [each.row.policy for each in shown])
    axis.set_ylim(max(len(shown), 4) - 0.4, -0.6)
    axis.set(title="Activations (hatched: of a model that was served already)", xlabel="activations in the run")
    axis.set_xlim(0, 1.45 * max(1, *(each.row.activations for each in shown)))
    _say_setting(axis, shown)


def _say_setting(axis: Axes, shown: Sequence[FinishedRun]) -> None:
    settings = {_at(setting_of(each.row)) for each in shown}
    axis.set_title(f"{axis.get_title()}\n{'; '.join(sorted(settings))}")


def _memory(axis: Axes, ran: FinishedRun, models: Mapping[str, Any], whole: int, unit: float) -> None:
    """Stacked weights and KV cache of the named models and of all others together."""
    at = np.array([sample.at for sample in ran.memory])
    named = [[sample.held.get(name, 0) for sample in ran.memory] for name in models]
    others = [sum(held for name, held in sample.held.items() if name not in models) for sample in ran.memory]
    axis.stackplot(
        at / unit, np.array([*named, others]) / GB, colors=[*models.values(), OTHERS], step="post", linewidth=0
    )
    axis.axhline(whole / GB, color=BAD, linestyle="--", linewidth=0.9)
    axis.set(
        title=f"Weights and mapped KV cache: {title(setting_of(ran.row))}",
        xlabel=f"{'minutes' if unit > 1 else 'seconds'} from the trace's start",
        ylabel="GB on all GPUs",
        xlim=(0, max(at[-1] / unit, 1e-9)),
        ylim=(0, 1.08 * whole / GB),
    )


def _unit(shown: Sequence[FinishedRun]) -> float:
    """Seconds per unit of the time axis."""
    last = max((each.memory[-1].at for each in shown if each.memory), default=0.0)
    return 60.0 if last > LONG else 1.0


def _biggest(shown: Sequence[FinishedRun]) -> dict[str, Any]:
    """The models that hold most memory over all plotted runs, with their colours."""
    held: Counter[str] = Counter()
    for each in shown:
        for sample in each.memory:
            held.update(sample.held)
    palette = plt.get_cmap("tab20")
    return {name: palette(index) for index, (name, _) in enumerate(held.most_common(NAMED))}

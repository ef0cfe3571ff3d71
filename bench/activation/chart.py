"""Charts activations: the phases that the first token waited for, by model and state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from simulator.pictures import save

TEXT = "#222222"
STATES = ("cold", "disk", "blank", "other", "parked")
"""One plot per state, slowest first, as their scales differ by orders of magnitude."""


def draw(path: Path, figures: Mapping[str, Any]) -> None:
    """Write the chart as PNG. Raises: StudyError when the file cannot be written."""
    by_state = {state: [row for row in figures["rows"] if row["state"] == state] for state in STATES}
    shown = {state: rows for state, rows in by_state.items() if rows}
    heights = [0.9 + 0.36 * len(rows) for rows in shown.values()]
    figure = plt.figure(figsize=(11, sum(heights) + 1.0), layout="constrained", dpi=110)
    axes = figure.subplots(len(shown), 1, height_ratios=heights, squeeze=False)
    colours = _colours(figures["rows"])
    for axis, (state, rows) in zip(axes[:, 0], shown.items(), strict=True):
        _bars(axis, state, rows, colours)
    axes[-1][0].set_xlabel("milliseconds from the request to the first token, median")
    handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in colours.values()]
    figure.legend(handles, list(colours), loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    save(figure, path)


def _colours(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys(name for row in rows for name in row["phases_s"])
    palette = plt.get_cmap("tab20")
    return {name: palette(index % 20) for index, name in enumerate(names)}


def _bars(axis: Axes, state: str, rows: Sequence[Mapping[str, Any]], colours: Mapping[str, Any]) -> None:
    longest = max(1000 * row["first_token_s"] for row in rows)
    for place, row in enumerate(rows):
        left = 0.0
        for name, took in row["phases_s"].items():
            axis.barh(place, 1000 * took, left=left, color=colours[name], height=0.7)
            left += 1000 * took
        axis.text(left + 0.01 * longest, place, f"{left:.0f} ms", va="center", fontsize=8, color=TEXT)
    axis.set_yticks(range(len(rows)), [f"{row['model']}, {row['bytes'] / 1e9:.3g} GB" for row in rows], fontsize=8)
    axis.set_title(state, loc="left", fontsize=11)
    axis.set_xlim(0, 1.15 * longest)
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.25)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)

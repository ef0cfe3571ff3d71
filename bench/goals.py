"""Goals for Prism's own overhead, and a table of whether they are met."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Figures = Mapping[str, Any]
"""The JSON results of `bench.overhead`. A figure that was not measured is None."""


@dataclass(frozen=True)
class OverheadGoal:
    """One line of the table."""

    figure: str
    text: str
    bound: Callable[[Figures], float | None]
    """The number to compare with; None if this run cannot tell."""
    at_least: bool = False

    def reached(self, figures: Figures) -> bool | None:
        """Whether the goal is met; None if the figure or its bound was not measured."""
        measured, bound = figures.get(self.figure), self.bound(figures)
        if measured is None or bound is None:
            return None
        return bool(measured >= bound if self.at_least else measured <= bound)


def of_peer(peer: str, figure: str, factor: float) -> Callable[[Figures], float | None]:
    """A bound of `factor` times the peer's figure in the same run."""

    def bound(figures: Figures) -> float | None:
        measured = figures["peers"].get(peer, {}).get(figure)
        return None if measured is None else factor * measured

    return bound


def of_streams(value: float, streams: int) -> Callable[[Figures], float | None]:
    """A bound of `value`, if the run had that many streams."""
    return lambda figures: value if figures["streams"] >= streams else None


def fixed(value: float) -> Callable[[Figures], float | None]:
    return lambda _: value


GOALS = (
    OverheadGoal("added_p50_ms", "at most sglang-router's", of_peer("sglang-router", "added_p50_ms", 1)),
    OverheadGoal("added_p50_ms", "at most 1/16 of LiteLLM's", of_peer("litellm", "added_p50_ms", 1 / 16)),
    OverheadGoal("added_p99_ms", "at most 2 ms", fixed(2)),
    OverheadGoal("requests_per_s", "at least 3,000", fixed(3000), at_least=True),
    OverheadGoal(
        "requests_per_s",
        "at least 0.75 of sglang-router's",
        of_peer("sglang-router", "requests_per_s", 0.75),
        at_least=True,
    ),
    OverheadGoal("events_per_s", "at least 50,000 over 1,000 streams", of_streams(50_000, 1000), at_least=True),
    OverheadGoal("idle_streams_mb", "at most 50 MB for 1,000", fixed(50)),
    OverheadGoal("rss_growth_mb", "at most 5 MB", fixed(5)),
)
VERDICTS = {True: "reached", False: "MISSED", None: "not measured"}


def goal_table(figures: Figures) -> str:
    """One line per goal: figure, measured, goal in words and as a number, verdict."""
    return "\n".join(_goal_line(goal, figures) for goal in GOALS)


def _goal_line(goal: OverheadGoal, figures: Figures) -> str:
    bound = goal.bound(figures)
    wanted = goal.text if bound is None else f"{goal.text} ({number(bound)})"
    return f"{goal.figure:<16} {number(figures.get(goal.figure)):>10}  {wanted:<44} {VERDICTS[goal.reached(figures)]}"


COLUMNS = ("added_p50_ms", "added_p99_ms", "requests_per_s", "events_per_s", "failed")


def comparison_table(figures: Figures) -> str:
    """One line per server with the same figures for each."""
    servers = {"direct": figures["direct"], "prism": figures, **figures["peers"]}
    lines = [f"{'':<16}" + "".join(f"{column:>16}" for column in COLUMNS)]
    for name, measured in servers.items():
        cells = "".join(f"{number(measured.get(column)):>16}" for column in COLUMNS)
        lines.append(f"{name:<16}{cells}")
        if "missing" in measured:
            lines.append(f"{'':<16}  missing, so nothing is proved about it: {measured['missing']}")
    return "\n".join(lines)


def number(value: float | None) -> str:
    """Formats with at least three significant digits and grouped thousands; a dash if not measured."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"

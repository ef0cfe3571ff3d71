"""A table of a trace's statistics next to those published in the Prism paper."""

from __future__ import annotations

import math
from typing import NamedTuple

from simulator.traces.statistics import Statistics, TokenDistribution


class Published(NamedTuple):
    """A range that the Prism paper reports of production, bounds included."""

    low: float
    high: float
    text: str

    def verdict(self, value: float) -> str:
        if math.isnan(value):
            return "unknown"
        if value < self.low:
            return "below"
        return "above" if value > self.high else "within"


ACTIVE = Published(0.23, 0.50, "23 to 50%")
CHANGES = Published(54, 766, "54 to 766")
IDLE_GAPS = Published(40, 100, "40 to 100")
MINUTE_CV = Published(1, math.inf, "above 1")


def table(statistics: Statistics) -> str:
    """The text table. Its last column says whether the trace is below, within or above the paper's range."""
    low, high = statistics.active_share_range
    lines = [
        _line("", "this trace", "Prism"),
        _compared("models active", statistics.active_share, ACTIVE, f"{_percent(statistics.active_share)}"),
        _line("  from 5th to 95th percentile", f"{_percent(low)} to {_percent(high)}"),
        _compared("active-set changes an hour", statistics.changes_per_hour, CHANGES),
        _compared("idle gaps over 10 s, an hour and model", statistics.idle_gaps_per_hour, IDLE_GAPS),
        _compared("CV of requests a minute, median model", statistics.minute_cv, MINUTE_CV),
        _line("  of all models together", _number(statistics.minute_cv_of_all)),
        _line("CV of gaps between requests, median model", _number(statistics.gap_cv)),
        _line("top model's share of requests", _percent(statistics.top_share)),
        _line("prompt tokens, mean (p50, p99)", _tokens(statistics.prompt_tokens)),
        _line("output tokens, mean (p50, p99)", _tokens(statistics.output_tokens)),
    ]
    return "\n".join((headline(statistics), "", *lines))


def headline(statistics: Statistics) -> str:
    silent = f" ({statistics.silent_models} without any)" if statistics.silent_models else ""
    return (
        f"{statistics.requests} requests to {statistics.models} models{silent} in {statistics.duration:.0f} s, "
        f"{statistics.rate:.2f} a second"
    )


def _compared(name: str, value: float, published: Published, text: str = "") -> str:
    return _line(name, text or _number(value), published.text, published.verdict(value))


def _line(name: str, value: str, published: str = "", verdict: str = "") -> str:
    return f"{name:<43}{value:>18}  {published:<11}{verdict}".rstrip()


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.0f}%"


def _tokens(spread: TokenDistribution) -> str:
    return f"{_number(spread.mean)} ({spread.p50:.0f}, {spread.p99:.0f})"

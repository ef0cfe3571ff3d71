"""Figures and tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}", *(f"| {' | '.join(row)} |" for row in rows)]


def ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f}"


def percent(error: float) -> str:
    return f"{100 * error:+.0f}%"


def times(slowdown: float | None) -> str:
    return "-" if slowdown is None else f"{slowdown:.2f}x"

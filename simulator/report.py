"""Reports simulated runs as a table and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from config.registry import Slo
from simulator.errors import StudyError
from simulator.outcomes import SimulationResult
from simulator.percentiles import percentile


@dataclass(frozen=True, slots=True)
class Setting:
    """The settings that distinguish the runs of a series."""

    policy: str
    gpus: int
    rate_scale: float
    slo_scale: float
    seed: int


@dataclass(frozen=True, slots=True)
class RunRow:
    """The figures of one run. Attainment is a share of all requests; an unanswered one misses both objectives."""

    policy: str
    gpus: int
    rate_scale: float
    slo_scale: float
    seed: int
    requests: int
    ttft_attainment: float | None
    """None if there were no requests."""
    tpot_attainment: float | None
    goodput_rps: float
    """Requests per second that met both objectives."""
    activations: int
    migrations: int


HEADER = ("policy", "GPUs", "rate", "SLO", "requests", "TTFT", "TPOT", "goodput/s", "activations", "migrations")


def row(setting: Setting, result: SimulationResult, slos: Mapping[str, Slo]) -> RunRow:
    """Compute a run's figures; `slos` are its scaled objectives."""
    ttft = [_within(answer.ttft, slos[answer.asked.model].ttft) for answer in result.answers]
    tpot = [_within(answer.tpot, slos[answer.asked.model].tpot) for answer in result.answers]
    good = sum(first and rest for first, rest in zip(ttft, tpot, strict=True))
    return RunRow(
        **asdict(setting),
        requests=len(result.answers),
        ttft_attainment=_share(ttft),
        tpot_attainment=_share(tpot),
        goodput_rps=good / result.seconds,
        activations=result.activations,
        migrations=result.migrations,
    )


def describe(result: SimulationResult) -> str:
    """Summarises how requests ended, and the TTFT of those that were answered."""
    ends = Counter(answer.ended for answer in result.answers)
    waits = [answer.ttft for answer in result.answers if answer.ttft is not None]
    found = [f"{how}: {number}" for how, number in ends.most_common()]
    for rank in (50, 99):
        if (seconds := percentile(waits, rank)) is not None:
            found.append(f"TTFT p{rank} {seconds:.3g} s")
    return ", ".join(found)


def table(rows: Sequence[RunRow]) -> str:
    """A text table with one line per run."""
    cells = [HEADER, *(_cells(entry) for entry in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADER))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def write_json(rows: Sequence[RunRow], path: Path) -> None:
    """Write the runs as a JSON list. Raises: StudyError."""
    try:
        path.write_text(json.dumps([asdict(entry) for entry in rows], indent=2) + "\n")
    except OSError as error:
        raise StudyError(f"{path}: cannot be written: {error.strerror}") from error


def _cells(entry: RunRow) -> tuple[str, ...]:
    return (
        entry.policy,
        str(entry.gpus),
        f"{entry.rate_scale:g}",
        f"{entry.slo_scale:g}",
        str(entry.requests),
        _percent(entry.ttft_attainment),
        _percent(entry.tpot_attainment),
        f"{entry.goodput_rps:.2f}",
        str(entry.activations),
        str(entry.migrations),
    )


def _within(seconds: float | None, objective: float) -> bool:
    return seconds is not None and seconds <= objective


def _share(attained: Sequence[bool]) -> float | None:
    return sum(attained) / len(attained) if attained else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"

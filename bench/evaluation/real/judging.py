"""Judges a run's requests, measured or simulated: shares within the objectives, and medians."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.load.outcomes import RequestOutcome
from config.registry import Slo
from simulator.outcomes import SimulatedAnswer
from simulator.percentiles import percentile


@dataclass(frozen=True, slots=True)
class Ended:
    """A request's times in seconds; None if it failed, in which case it misses both objectives."""

    model: str
    ttft: float | None
    tpot: float | None
    """0 for an answer of one token."""


@dataclass(frozen=True, slots=True)
class Shares:
    """Shares of requests that met an objective, 0 to 1; None without requests."""

    ttft: float | None
    tpot: float | None
    both: float | None


def measured(outcomes: Iterable[RequestOutcome], after: float) -> list[Ended]:
    """The measured requests that arrived no earlier than `after` seconds."""
    return [
        Ended(it.arrival.model, it.ttft, it.tpot or 0.0) if it.completed else Ended(it.arrival.model, None, None)
        for it in outcomes
        if it.arrival.at >= after
    ]


def simulated(answers: Iterable[SimulatedAnswer], after: float) -> list[Ended]:
    """Likewise."""
    return [
        Ended(it.asked.model, it.ttft, it.tpot) if it.ended == "finished" else Ended(it.asked.model, None, None)
        for it in answers
        if it.asked.at >= after
    ]


def shares(ended: Sequence[Ended], slos: Mapping[str, Slo]) -> Shares:
    if not ended:
        return Shares(None, None, None)
    ttft = [it.ttft is not None and it.ttft <= slos[it.model].ttft for it in ended]
    tpot = [it.tpot is not None and it.tpot <= slos[it.model].tpot for it in ended]
    both = [first and rest for first, rest in zip(ttft, tpot, strict=True)]
    return Shares(*(sum(met) / len(ended) for met in (ttft, tpot, both)))


def by_model(real: Sequence[Ended], virtual: Sequence[Ended], slos: Mapping[str, Slo]) -> dict[str, dict[str, Any]]:
    """Requests, shares, and medians in seconds of every model; simulated figures have names that say so."""
    found = {}
    for name in slos:
        ours, theirs = ([it for it in ended if it.model == name] for ended in (real, virtual))
        found[name] = {
            "requests": len(ours),
            "failed": sum(it.ttft is None for it in ours),
            **_figures(ours, slos),
            **{f"simulated_{key}": value for key, value in _figures(theirs, slos).items()},
        }
    return found


def _figures(ended: Sequence[Ended], slos: Mapping[str, Slo]) -> dict[str, float | None]:
    """A median is of those that were answered; that of TPOT, of answers of two tokens and more."""
    met = shares(ended, slos)
    return {
        "ttft": met.ttft,
        "tpot": met.tpot,
        "both": met.both,
        "ttft_p50_s": percentile([it.ttft for it in ended if it.ttft is not None], 50),
        "tpot_p50_s": percentile([it.tpot for it in ended if it.tpot], 50),
    }

"""Statistics of a trace, in the terms in which the Prism paper describes production traffic."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from simulator.percentiles import percentile
from simulator.traces.drawing import Floats
from simulator.traces.trace import Trace

ACTIVE_FOR = 120.0
"""Seconds after a request during which its model counts as active."""
IDLE_GAP = 10.0
"""Seconds without a request above which a gap counts as idle."""
_SAMPLES_EVERY = 5.0


@dataclass(frozen=True, slots=True)
class TokenDistribution:
    mean: float
    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Statistics:
    """NaN where the trace is too short for a statistic."""

    models: int
    silent_models: int
    requests: int
    duration: float
    """Seconds."""
    active_share: float
    """Share of models that are active, averaged over time without the first two minutes, when activity before the start
    is unknown."""
    active_share_range: tuple[float, float]
    """5th and 95th percentile of that share."""
    changes_per_hour: float
    """How often a model becomes active or inactive."""
    idle_gaps_per_hour: float
    """Mean over the models that have requests."""
    minute_cv: float
    """Coefficient of variation of the requests per minute: median over the models that have requests."""
    minute_cv_of_all: float
    """Coefficient of variation of the requests per minute of all models together."""
    gap_cv: float
    """Coefficient of variation of the times between a model's requests: median over models with three or more."""
    top_share: float
    """Share of the requests that go to the most requested model."""
    prompt_tokens: TokenDistribution
    output_tokens: TokenDistribution

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.duration if self.duration else math.nan


def describe(trace: Trace) -> Statistics:
    """Compute the statistics, reading the trace once."""
    times = {name: array("d") for name in trace.models}
    prompts, outputs = array("q"), array("q")
    for request in trace:
        times[request.model].append(request.at)
        prompts.append(request.prompt_tokens)
        outputs.append(request.output_tokens)
    arrivals = [np.array(found) for found in times.values() if found]
    hours = trace.duration / 3600
    shares = _active_shares(arrivals, len(times), trace.duration)
    return Statistics(
        models=len(times),
        silent_models=len(times) - len(arrivals),
        requests=len(prompts),
        duration=trace.duration,
        active_share=_mean(shares),
        active_share_range=(_percentile(shares, 5), _percentile(shares, 95)),
        changes_per_hour=_changes_per_hour(arrivals, trace.duration),
        idle_gaps_per_hour=_mean([np.count_nonzero(np.diff(found) > IDLE_GAP) / hours for found in arrivals]),
        minute_cv=_percentile([_minute_cv(found, trace.duration) for found in arrivals], 50),
        minute_cv_of_all=_minute_cv(np.concatenate(arrivals), trace.duration) if arrivals else math.nan,
        gap_cv=_percentile([_cv(np.diff(found)) for found in arrivals if len(found) > 2], 50),
        top_share=max((len(found) for found in arrivals), default=0) / max(1, len(prompts)),
        prompt_tokens=_spread(prompts),
        output_tokens=_spread(outputs),
    )


def _settled(duration: float) -> float:
    """Seconds from the start after which it is known which models are active."""
    return min(ACTIVE_FOR, duration)


def _active_shares(arrivals: Iterable[Floats], models: int, duration: float) -> Floats:
    moments = np.arange(_settled(duration), duration, _SAMPLES_EVERY)
    active = np.zeros(len(moments))
    for times in arrivals:
        before = np.searchsorted(times, moments, "right") - 1
        active += (before >= 0) & (moments - times[before] < ACTIVE_FOR)
    return active / max(1, models)


def _changes_per_hour(arrivals: Iterable[Floats], duration: float) -> float:
    settled = _settled(duration)
    changes = 0
    for times in arrivals:
        breaks = np.diff(times) >= ACTIVE_FOR
        begins = np.concatenate((times[:1], times[1:][breaks]))
        ends = np.concatenate((times[:-1][breaks], times[-1:])) + ACTIVE_FOR
        changes += int(np.sum(begins >= settled) + np.sum((ends >= settled) & (ends < duration)))
    return 3600 * changes / (duration - settled) if duration > settled else math.nan


def _minute_cv(times: Floats, duration: float) -> float:
    """Coefficient of variation of the requests per whole minute."""
    minutes = int(duration // 60)
    return _cv(np.bincount((times // 60).astype(int), minlength=minutes)[:minutes]) if minutes > 1 else math.nan


def _cv(values: Sequence[float] | np.ndarray) -> float:
    mean = np.mean(values)
    return float(np.std(values) / mean) if mean else math.nan


def _spread(values: Sequence[float]) -> TokenDistribution:
    return TokenDistribution(_mean(values), _percentile(values, 50), _percentile(values, 99))


def _mean(values: Sequence[float] | Floats) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _percentile(values: Sequence[float] | Floats, rank: float) -> float:
    """The percentile of the values that are not NaN; NaN without any."""
    found = percentile([value for value in values if not math.isnan(value)], rank)
    return math.nan if found is None else found

"""Computes a load test's figures. Durations are in seconds, as their names say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bench.load.outcomes import ClientSlo, RequestOutcome
from bench.load.replay import LATENESS_ALLOWED
from simulator.percentiles import percentile, spread


def summarize(outcomes: Sequence[RequestOutcome], slos: Mapping[str, ClientSlo], took: float) -> dict[str, Any]:
    """All figures of the run, per model and in total. `took` is its duration in seconds.

    Requests still in flight when the run was stopped are only counted as unfinished.
    """
    ended = [outcome for outcome in outcomes if outcome.ended is not None]
    lateness = [outcome.lateness for outcome in outcomes]
    late = percentile(lateness, 99)
    return {
        "took_s": took,
        "kept_schedule": late is None or late <= LATENESS_ALLOWED,
        "lateness_s": spread(lateness),
        "unfinished": len(outcomes) - len(ended),
        "tpot_from": _tpot_source(ended),
        "all": _group(ended, slos, took),
        "models": {
            name: _group([outcome for outcome in ended if outcome.arrival.model == name], slos, took) for name in slos
        },
    }


def _tpot_source(ended: Sequence[RequestOutcome]) -> str:
    """Whether tokens were counted by the server, or by events with text if it does not report them."""
    counted = {outcome.completion_tokens is not None for outcome in ended if outcome.completed}
    return {frozenset({True}): "usage", frozenset({False}): "chunks"}.get(frozenset(counted), "usage and chunks")


def _group(ended: Sequence[RequestOutcome], slos: Mapping[str, ClientSlo], took: float) -> dict[str, Any]:
    done = [outcome for outcome in ended if outcome.completed]
    good = sum(slos[outcome.arrival.model].met(outcome) for outcome in ended)
    return {
        "requests": len(ended),
        "completed": len(done),
        "failed": len(ended) - len(done),
        "errors": dict(Counter(outcome.error for outcome in ended if outcome.error)),
        "ttft_s": spread(_known(done, lambda outcome: outcome.ttft)),
        "tpot_s": spread(_known(done, lambda outcome: outcome.tpot)),
        "inter_token_s": spread([gap for outcome in done for gap in outcome.gaps]),
        "e2e_s": spread(_known(done, lambda outcome: outcome.e2e)),
        "slo": _objectives({outcome.arrival.model for outcome in ended}, slos),
        "attainment": _attainment(ended, slos),
        "goodput_rps": good / took,
        "output_tokens_per_s": sum(outcome.output_tokens for outcome in done) / took,
        "prompt_tokens": _prompt_tokens(done),
        "answer_tokens": _answer_tokens(done),
    }


def _known(outcomes: Sequence[RequestOutcome], value: Callable[[RequestOutcome], float | None]) -> list[float]:
    return [found for outcome in outcomes if (found := value(outcome)) is not None]


def _objectives(models: set[str], slos: Mapping[str, ClientSlo]) -> dict[str, float | None] | None:
    """The objectives common to all `models`, with None where they differ."""
    found = {slos[model] for model in models}
    if len(found) != 1:
        return None
    slo = found.pop()
    return {"ttft_s": slo.ttft, "tpot_s": slo.tpot}


def _attainment(ended: Sequence[RequestOutcome], slos: Mapping[str, ClientSlo]) -> dict[str, float | None]:
    """Shares of requests that met their model's objectives; None without an objective."""
    return {
        "ttft": _share([slo.ttft_met(outcome) for outcome, slo in _judged(ended, slos) if slo.ttft is not None]),
        "tpot": _share([slo.tpot_met(outcome) for outcome, slo in _judged(ended, slos) if slo.tpot is not None]),
        "both": _share([slo.met(outcome) for outcome, slo in _judged(ended, slos) if slo != ClientSlo()]),
    }


def _judged(ended: Sequence[RequestOutcome], slos: Mapping[str, ClientSlo]) -> list[tuple[RequestOutcome, ClientSlo]]:
    return [(outcome, slos[outcome.arrival.model]) for outcome in ended]


def _share(met: Sequence[bool]) -> float | None:
    return sum(met) / len(met) if met else None


def _prompt_tokens(done: Sequence[RequestOutcome]) -> dict[str, float | None]:
    """Deviation of prompt lengths from the requested ones, by the server's count."""
    return _closeness([(outcome.arrival.prompt_tokens, outcome.prompt_tokens) for outcome in done])


def _answer_tokens(done: Sequence[RequestOutcome]) -> dict[str, float | None]:
    """Deviation of answer lengths from the requested ones, by the server's count."""
    return _closeness([(outcome.arrival.output_tokens, outcome.completion_tokens) for outcome in done])


def _closeness(pairs: Sequence[tuple[int, int | None]]) -> dict[str, float | None]:
    """Statistics of pairs of requested and counted lengths. `off` is counted minus requested, `off_most` the largest
    deviation of either sign."""
    counted = [(asked, count) for asked, count in pairs if count is not None]
    off = [count - asked for asked, count in counted]
    return {
        "asked_mean": _mean([asked for asked, _ in counted]),
        "counted_mean": _mean([count for _, count in counted]),
        "off_mean": _mean(off),
        "off_most": max(off, key=abs, default=None),
        "exact": _share([not each for each in off]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None

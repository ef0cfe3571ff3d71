"""The traces of a comparison, used identically for gateway and simulator."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.load.workload import Arrival
from simulator.errors import UsageError
from simulator.traces.readers import read_trace
from simulator.traces.synthetic_text import parse_synthetic
from simulator.traces.trace import Trace, TraceRequest, map_models

SHORTEST = 24
"""Minimum tokens of a prompt, as the chat template alone takes that many."""
NAMED = re.compile(r"zipf-(\d+)")


@dataclass(frozen=True)
class TraceSettings:
    """`seconds` is the length of a run after scaling the trace by `time_scale`; `rate` applies to zipf-SEED."""

    models: Sequence[str]
    rate: float
    seconds: float
    time_scale: float = 1.0
    max_prompt_tokens: int | None = None
    max_tokens: int | None = None


def open_trace(text: str, wanted: TraceSettings) -> Trace:
    """Raises: StudyError."""
    own_seconds = wanted.seconds / wanted.time_scale
    trace = _source(text, wanted, own_seconds).window(0.0, own_seconds).stored()
    if not trace.models:
        raise UsageError(f"{text}: no request in the first {own_seconds:g} s")
    mapping = map_models(trace, wanted.models)
    changed = [_changed(request, mapping[request.model], wanted) for request in trace]
    return Trace.of(changed, wanted.models, wanted.seconds)


def name_of(text: str, time_scale: float) -> str:
    """The trace's name in results."""
    name = text if text.partition(":")[1] else Path(text).name
    return name if time_scale == 1 else f"{name} in {time_scale:g}x the time"


def plan_of(trace: Trace) -> list[Arrival]:
    return [Arrival(it.at, it.model, it.prompt_tokens, it.output_tokens) for it in trace]


def _source(text: str, wanted: TraceSettings, seconds: float) -> Trace:
    if named := NAMED.fullmatch(text):
        text = (
            f"zipf:models={len(wanted.models)},rate={wanted.rate:g},duration={seconds:g},on_time=40,pause=5,"
            f"seed={named[1]}"
        )
    if ":" in text:
        return parse_synthetic(text).trace()
    return read_trace(Path(text), duration=seconds)


def _changed(request: TraceRequest, model: str, wanted: TraceSettings) -> TraceRequest:
    prompt = max(SHORTEST, min(request.prompt_tokens, wanted.max_prompt_tokens or request.prompt_tokens))
    answer = min(request.output_tokens, wanted.max_tokens or request.output_tokens)
    return TraceRequest(request.at * wanted.time_scale, model, prompt, answer)

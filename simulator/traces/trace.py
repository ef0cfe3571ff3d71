"""A trace: requests and when they arrive. Times are seconds from the trace's start, lengths are in tokens."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

import msgspec
from numpy.random import PCG64, Generator

from simulator.errors import StudyError

COPY_SPREAD = 2.0
"""Seconds over which a request's copies are spread: avoids simultaneous twins, yet well below an idle gap."""


class TraceRequest(msgspec.Struct, frozen=True, gc=False):
    at: float
    model: str
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in time order, at times in [0, duration). Each iteration generates the same requests again."""

    models: tuple[str, ...]
    """All models, including those without requests."""
    duration: float
    source: Callable[[], Iterator[TraceRequest]]

    @classmethod
    def of(cls, requests: Sequence[TraceRequest], models: Sequence[str] = (), duration: float | None = None) -> Trace:
        """Create a trace from requests in any order; without `duration` it ends with the last one."""
        ordered = tuple(sorted(requests, key=attrgetter("at")))
        named = tuple(dict.fromkeys((*models, *(request.model for request in ordered))))
        if duration is None:
            duration = math.nextafter(ordered[-1].at, math.inf) if ordered else 0.0
        return cls(named, duration, ordered.__iter__)

    def __iter__(self) -> Iterator[TraceRequest]:
        return self.source()

    def stored(self) -> Trace:
        """The same trace held in memory, for repeated iteration."""
        return Trace.of(tuple(self), self.models, self.duration)

    def window(self, start: float, length: float) -> Trace:
        """The requests in [start, start + length), shifted to start at 0."""
        length = max(0.0, min(length, self.duration - start))
        return replace(self, duration=length, source=lambda: _cut(self, start, length))

    def scaled(self, factor: float, seed: int = 0) -> Trace:
        """The trace at `factor` times its rate, by dropping or copying requests of all models alike.

        Compressing time instead would also shorten idle gaps and on and off times, and so change more than the rate
        for a scheduler. The requests kept at a lower factor are a subset of those at a higher one.
        """
        return replace(self, source=lambda: _multiplied(self, factor, seed))

    def at_rate(self, rate: float, seed: int = 0) -> Trace:
        """The trace `scaled` to a mean of `rate` requests per second. Raises: StudyError if it has no requests."""
        number = sum(1 for _ in self)
        if not number:
            raise StudyError("a trace without requests has no rate to scale")
        return self.scaled(rate * self.duration / number, seed)

    def renamed(self, mapping: Mapping[str, str]) -> Trace:
        """The trace with each request's model replaced by what it maps to."""
        named = tuple(dict.fromkeys(mapping[name] for name in self.models))
        return replace(self, models=named, source=lambda: _renamed(self, mapping))

    def requests_by_model(self) -> dict[str, int]:
        """Number of requests per model, highest first; ties in the order of `models`."""
        counted = Counter(request.model for request in self)
        return dict(sorted(((name, counted[name]) for name in self.models), key=lambda entry: -entry[1]))


def merged(traces: Sequence[Trace]) -> Trace:
    """Overlays traces from a common start; the result is as long as the longest."""
    models = tuple(dict.fromkeys(name for trace in traces for name in trace.models))
    duration = max((trace.duration for trace in traces), default=0.0)
    return Trace(models, duration, lambda: heapq.merge(*traces, key=attrgetter("at")))


def map_models(trace: Trace, registered: Sequence[str]) -> dict[str, str]:
    """Assigns a registered model to each model of the trace: the one of the same name, or else by rank of requests.

    The most requested unknown model gets the first registered model whose name does not occur in the trace, and so on,
    starting over when they run out. The result is for `Trace.renamed`.
    """
    free = [name for name in registered if name not in trace.models] or list(registered)
    unknown = [name for name in trace.requests_by_model() if name not in registered]
    by_rank = {name: free[rank % len(free)] for rank, name in enumerate(unknown)}
    return {name: by_rank.get(name, name) for name in trace.models}


def _cut(requests: Trace, start: float, length: float) -> Iterator[TraceRequest]:
    for request in requests:
        at = request.at - start
        if at >= length:
            return
        if at >= 0:
            yield _moved(request, at)


def _multiplied(trace: Trace, factor: float, seed: int) -> Iterator[TraceRequest]:
    """Repeats or drops requests; copies that are not due yet wait in a heap."""
    # Streams 1 and 2, not 0: to NumPy [seed, 0] equals seed, which a caller may use for something else.
    luck, delays = Generator(PCG64([seed, 1])), Generator(PCG64([seed, 2]))
    waiting: list[tuple[float, int, TraceRequest]] = []
    added = 0
    for request in trace:
        while waiting and waiting[0][0] <= request.at:
            yield heapq.heappop(waiting)[2]
        for copy in range(int(factor + luck.random())):
            at = request.at + COPY_SPREAD * delays.random() if copy else request.at
            if at < trace.duration:
                added += 1
                heapq.heappush(waiting, (at, added, _moved(request, at)))
    while waiting:
        yield heapq.heappop(waiting)[2]


def _moved(request: TraceRequest, at: float) -> TraceRequest:
    return TraceRequest(at, request.model, request.prompt_tokens, request.output_tokens)


def _renamed(trace: Trace, mapping: Mapping[str, str]) -> Iterator[TraceRequest]:
    for request in trace:
        yield TraceRequest(request.at, mapping[request.model], request.prompt_tokens, request.output_tokens)

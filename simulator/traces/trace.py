"""A trace: which request arrives when. Times are seconds from the trace's start, lengths are tokens."""

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
"""Seconds within which a request's copies arrive: no burst of twins, and well below what counts as an idle gap."""


class Request(msgspec.Struct, frozen=True, gc=False):
    at: float
    model: str
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in time order, at times of [0, duration). Each iteration makes them anew, and the same ones."""

    models: tuple[str, ...]
    """Every model, also those that nobody asks for."""
    duration: float
    source: Callable[[], Iterator[Request]]

    @classmethod
    def of(cls, requests: Sequence[Request], models: Sequence[str] = (), duration: float | None = None) -> Trace:
        """Requests in any order; without a duration the trace ends with the last of them."""
        ordered = tuple(sorted(requests, key=attrgetter("at")))
        named = tuple(dict.fromkeys((*models, *(request.model for request in ordered))))
        if duration is None:
            duration = math.nextafter(ordered[-1].at, math.inf) if ordered else 0.0
        return cls(named, duration, ordered.__iter__)

    def __iter__(self) -> Iterator[Request]:
        return self.source()

    def stored(self) -> Trace:
        """The same with every request in memory, for iterating often."""
        return Trace.of(tuple(self), self.models, self.duration)

    def window(self, start: float, length: float) -> Trace:
        """The requests of [start, start + length), at times from 0."""
        length = max(0.0, min(length, self.duration - start))
        return replace(self, duration=length, source=lambda: _cut(self, start, length))

    def scaled(self, factor: float, seed: int = 0) -> Trace:
        """The trace at `factor` times its rate, by leaving requests out or adding copies of them, each model alike.

        Not by compressing time: that would shorten idle gaps and on and off times with the factor, and with them change
        what a scheduler has to cope with besides the rate. The requests of a lower factor are among those of a higher.
        """
        return replace(self, source=lambda: _multiplied(self, factor, seed))

    def at_rate(self, rate: float, seed: int = 0) -> Trace:
        """`scaled` to `rate` requests a second in the mean. Raises: StudyError."""
        number = sum(1 for _ in self)
        if not number:
            raise StudyError("a trace without requests has no rate to scale")
        return self.scaled(rate * self.duration / number, seed)

    def renamed(self, mapping: Mapping[str, str]) -> Trace:
        """Each request sent to what its model maps to."""
        named = tuple(dict.fromkeys(mapping[name] for name in self.models))
        return replace(self, models=named, source=lambda: _renamed(self, mapping))

    def requests_by_model(self) -> dict[str, int]:
        """Most asked for first; equal ones in the order of `models`."""
        counted = Counter(request.model for request in self)
        return dict(sorted(((name, counted[name]) for name in self.models), key=lambda entry: -entry[1]))


def merged(traces: Sequence[Trace]) -> Trace:
    """All of them at once, from the same start, for as long as the longest."""
    models = tuple(dict.fromkeys(name for trace in traces for name in trace.models))
    duration = max((trace.duration for trace in traces), default=0.0)
    return Trace(models, duration, lambda: heapq.merge(*traces, key=attrgetter("at")))


def map_models(trace: Trace, registered: Sequence[str]) -> dict[str, str]:
    """Which registered model serves each of the trace's: the one of its name, else by rank of requests.

    The most asked for takes the first registered model that no name claims, and so on, from the front again when there
    are more than those. For `Trace.renamed`, and to be printed.
    """
    free = [name for name in registered if name not in trace.models] or list(registered)
    unknown = [name for name in trace.requests_by_model() if name not in registered]
    by_rank = {name: free[rank % len(free)] for rank, name in enumerate(unknown)}
    return {name: by_rank.get(name, name) for name in trace.models}


def _cut(requests: Trace, start: float, length: float) -> Iterator[Request]:
    for request in requests:
        at = request.at - start
        if at >= length:
            return
        if at >= 0:
            yield _moved(request, at)


def _multiplied(trace: Trace, factor: float, seed: int) -> Iterator[Request]:
    """A heap holds the copies that are not due yet."""
    # from 1: NumPy takes [seed, 0] for seed, with which a caller may draw something else
    luck, delays = Generator(PCG64([seed, 1])), Generator(PCG64([seed, 2]))
    waiting: list[tuple[float, int, Request]] = []
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


def _moved(request: Request, at: float) -> Request:
    return Request(at, request.model, request.prompt_tokens, request.output_tokens)


def _renamed(trace: Trace, mapping: Mapping[str, str]) -> Iterator[Request]:
    for request in trace:
        yield Request(request.at, mapping[request.model], request.prompt_tokens, request.output_tokens)

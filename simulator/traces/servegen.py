"""Turns ServeGen's published clients (alibaba/ServeGen) into traces, one model per client.

For each client, ServeGen publishes the rate and the gap distribution of every 600 s window in which it was seen, and
token lengths over the whole trace. The requests themselves are not published; they are drawn here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from simulator.errors import StudyError
from simulator.traces.csv_rows import CsvRow, read_rows
from simulator.traces.drawing import Floats, GapKind, Gaps, LengthDistribution, generator, requests_at
from simulator.traces.trace import Trace, TraceRequest, merged

RATE_COLUMNS = ("client", "window_start_s", "rate_rps", "arrival_pattern", "param_1", "param_2")
_PROMPT = ("prompt_mean", "prompt_p99", "prompt_p50")
_OUTPUT = ("output_mean", "output_p99", "output_p50")
_PATTERNS: dict[str, GapKind] = {"Gamma": "gamma", "Weibull": "weibull"}

WINDOW = 600.0
"""Length of a window, in seconds."""


class Window(NamedTuple):
    start: float
    requests: int
    gaps: Gaps


class TokenLengths(NamedTuple):
    prompts: LengthDistribution
    outputs: LengthDistribution


@dataclass(frozen=True, slots=True)
class ServeGenClient:
    """One client. `seed` determines its requests; `kept` is the share of them to keep when the rate is reduced."""

    name: str
    windows: Sequence[Window]
    lengths: TokenLengths
    seed: tuple[int, ...]
    kept: float

    def trace(self, start: float, duration: float) -> Trace:
        seen = [window for window in self.windows if start - WINDOW < window.start < start + duration]
        whole = Trace((self.name,), start + duration, lambda: self._requests(seen))
        return whole.window(start, duration)

    def _requests(self, seen: Sequence[Window]) -> Iterator[TraceRequest]:
        for window in seen:
            rng = generator(*self.seed, int(window.start))
            times = [_arrivals(window, self.kept, rng)]
            yield from requests_at(self.name, times, self.lengths.prompts, self.lengths.outputs, rng)


def read_servegen(
    rates: Path,
    lengths: Path,
    *,
    models: int | None = None,
    start: float = 0.0,
    duration: float = 3600.0,
    rate: float | None = None,
    seed: int = 0,
) -> Trace:
    """Draw `duration` seconds from `start` on of `models` clients, chosen by `seed`; of all clients if None.

    A client without requests in that time is still a model. A window's requests do not depend on `start`. With `rate`,
    a mean in requests per second, each request is kept with the same probability, as in `Trace.scaled`.

    Raises:
        StudyError: a file cannot be read, or it has too few clients, no requests in that time, or a lower rate.
    """
    by_client = _read_windows(rates)
    known = _read_lengths(lengths)
    if models is not None and models > len(by_client):
        raise StudyError(f"{rates}: expected {models} clients to draw, found {len(by_client)}")
    drawn = generator(seed).permutation(len(by_client))[:models]
    names = [list(by_client)[index] for index in drawn]
    published = sum(_overlap(window, start, duration) for name in names for window in by_client[name]) / duration
    if not published:
        raise StudyError(f"{rates}: these clients send no request between {start:g} and {start + duration:g} s")
    if rate is not None and rate > published:
        raise StudyError(f"{rates}: these clients send {published:.2f} requests per second then, fewer than {rate:g}")
    kept = 1.0 if rate is None else rate / published
    clients = [
        ServeGenClient(f"client-{name}", by_client[name], _lengths_of(name, known, seed, index), (seed, index), kept)
        for index, name in enumerate(names)
    ]
    return merged([client.trace(start, duration) for client in clients])


def _read_windows(path: Path) -> dict[str, list[Window]]:
    found: dict[str, list[Window]] = {}
    for row in read_rows(path, RATE_COLUMNS):
        found.setdefault(row.text("client"), []).append(_window(row))
    return {name: sorted(windows, key=lambda window: window.start) for name, windows in found.items()}


def _window(row: CsvRow) -> Window:
    pattern = _PATTERNS.get(row.cells["arrival_pattern"]) or row.wrong("arrival_pattern", "Gamma or Weibull")
    gaps = Gaps(pattern, row.positive("param_1"), row.positive("param_2"))
    return Window(row.seconds("window_start_s"), round(row.positive("rate_rps") * WINDOW), gaps)


def _read_lengths(path: Path) -> dict[str, TokenLengths]:
    """Token lengths of the clients for which they are published. Raises: StudyError."""
    found = {}
    for row in read_rows(path, ("client", *_PROMPT, *_OUTPUT)):
        if any(row.has(column) for column in (*_PROMPT, *_OUTPUT)):
            prompts, outputs = (LengthDistribution.fit(*map(row.positive, columns)) for columns in (_PROMPT, _OUTPUT))
            found[row.text("client")] = TokenLengths(prompts, outputs)
    if not found:
        raise StudyError(f"{path}: expected the lengths of at least one client")
    return found


def _lengths_of(name: str, known: dict[str, TokenLengths], seed: int, index: int) -> TokenLengths:
    """The client's own lengths; where they are not published, those of a randomly drawn client."""
    return known.get(name) or list(known.values())[generator(seed, index).integers(len(known))]


def _overlap(window: Window, start: float, duration: float) -> float:
    """Requests of the window that fall into the given time if they are spread evenly."""
    shared = min(window.start + WINDOW, start + duration) - max(window.start, start)
    return window.requests * max(0.0, shared) / WINDOW


def _arrivals(window: Window, kept: float, rng: Generator) -> Floats:
    """Draw exactly the window's number of requests, then keep the share `kept`.

    If their gaps add up to less than the window, they form one burst at a random position in it: that is how the
    published parameters describe clients whose gaps are far below 1 / rate. If they add up to more, they are compressed
    to fit.
    """
    gaps = np.minimum(window.gaps.draw(rng, window.requests), WINDOW)
    gaps[:1] = 0.0
    offsets = np.cumsum(gaps)
    room = WINDOW * (1 - 1 / max(window.requests, 2))
    offsets *= min(1.0, room / max(float(offsets[-1]), 1e-9))
    offsets += rng.random() * (WINDOW - float(offsets[-1]))
    return window.start + offsets[rng.random(window.requests) < kept]

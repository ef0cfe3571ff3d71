"""ServeGen's published clients (alibaba/ServeGen) as models: one client, one model.

A client has a rate and a distribution of gaps for each window of 600 s in which it was seen, and its token lengths over
the whole trace; the requests themselves are not published and are drawn here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from simulator.errors import StudyError
from simulator.traces.drawing import Floats, GapKind, Gaps, Lengths, generator, requests_at
from simulator.traces.rows import Row, read_rows
from simulator.traces.trace import Request, Trace, merged

RATE_COLUMNS = ("client", "window_start_s", "rate_rps", "arrival_pattern", "param_1", "param_2")
_PROMPT = ("prompt_mean", "prompt_p99", "prompt_p50")
_OUTPUT = ("output_mean", "output_p99", "output_p50")
_PATTERNS: dict[str, GapKind] = {"Gamma": "gamma", "Weibull": "weibull"}

WINDOW = 600.0
"""Seconds for which a rate holds."""


class Window(NamedTuple):
    start: float
    requests: int
    gaps: Gaps


class TokenLengths(NamedTuple):
    prompts: Lengths
    outputs: Lengths


@dataclass(frozen=True, slots=True)
class Client:
    """`seed` makes its requests its own; `kept` is the share of them that a lower rate leaves."""

    name: str
    windows: Sequence[Window]
    lengths: TokenLengths
    seed: tuple[int, ...]
    kept: float

    def trace(self, start: float, duration: float) -> Trace:
        seen = [window for window in self.windows if start - WINDOW < window.start < start + duration]
        whole = Trace((self.name,), start + duration, lambda: self._requests(seen))
        return whole.window(start, duration)

    def _requests(self, seen: Sequence[Window]) -> Iterator[Request]:
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
    """`duration` seconds from `start` of as many clients as `models` says, drawn by `seed`; of all if it says nothing.

    A client that is silent for all that time is still a model. A window's requests are the same wherever `start` is.
    With a `rate` (requests a second in the mean) each request is kept with the same probability, as in `Trace.scaled`;
    without one all are kept.

    Raises:
        StudyError: a file cannot be read, or has fewer clients, no request then, or a lower rate.
    """
    by_client = _read_windows(rates)
    known = _read_lengths(lengths)
    if models is not None and models > len(by_client):
        raise StudyError(f"{rates}: expected {models} clients to draw, found {len(by_client)}")
    drawn = generator(seed).permutation(len(by_client))[:models]
    names = [list(by_client)[index] for index in drawn]
    published = sum(_overlap(window, start, duration) for name in names for window in by_client[name]) / duration
    if not published:
        raise StudyError(f"{rates}: no request of these clients between {start:g} and {start + duration:g} s")
    if rate is not None and rate > published:
        raise StudyError(f"{rates}: these clients ask {published:.2f} times a second then, fewer than {rate:g}")
    kept = 1.0 if rate is None else rate / published
    clients = [
        Client(f"client-{name}", by_client[name], _lengths_of(name, known, seed, index), (seed, index), kept)
        for index, name in enumerate(names)
    ]
    return merged([client.trace(start, duration) for client in clients])


def _read_windows(path: Path) -> dict[str, list[Window]]:
    found: dict[str, list[Window]] = {}
    for row in read_rows(path, RATE_COLUMNS):
        found.setdefault(row.text("client"), []).append(_window(row))
    return {name: sorted(windows, key=lambda window: window.start) for name, windows in found.items()}


def _window(row: Row) -> Window:
    pattern = _PATTERNS.get(row.cells["arrival_pattern"]) or row.wrong("arrival_pattern", "Gamma or Weibull")
    gaps = Gaps(pattern, row.positive("param_1"), row.positive("param_2"))
    return Window(row.seconds("window_start_s"), round(row.positive("rate_rps") * WINDOW), gaps)


def _read_lengths(path: Path) -> dict[str, TokenLengths]:
    """Of the clients for which they are published."""
    found = {}
    for row in read_rows(path, ("client", *_PROMPT, *_OUTPUT)):
        if any(row.has(column) for column in (*_PROMPT, *_OUTPUT)):
            prompts, outputs = (Lengths.fit(*map(row.positive, columns)) for columns in (_PROMPT, _OUTPUT))
            found[row.text("client")] = TokenLengths(prompts, outputs)
    if not found:
        raise StudyError(f"{path}: expected the lengths of one client at least")
    return found


def _lengths_of(name: str, known: dict[str, TokenLengths], seed: int, index: int) -> TokenLengths:
    """Those of another client, drawn, where its own are not published."""
    return known.get(name) or list(known.values())[generator(seed, index).integers(len(known))]


def _overlap(window: Window, start: float, duration: float) -> float:
    """Requests of the window that fall into the time, were they evenly spread."""
    shared = min(window.start + WINDOW, start + duration) - max(window.start, start)
    return window.requests * max(0.0, shared) / WINDOW


def _arrivals(window: Window, kept: float, rng: Generator) -> Floats:
    """Exactly the window's number of requests before any is left out.

    Where their gaps take less than the window they are one burst at some place of it, which is how the published
    parameters describe clients whose gaps are far below 1 / rate; where they take more they are compressed to fit.
    """
    gaps = np.minimum(window.gaps.draw(rng, window.requests), WINDOW)
    gaps[:1] = 0.0
    offsets = np.cumsum(gaps)
    room = WINDOW * (1 - 1 / max(window.requests, 2))
    offsets *= min(1.0, room / max(float(offsets[-1]), 1e-9))
    offsets += rng.random() * (WINDOW - float(offsets[-1]))
    return window.start + offsets[rng.random(window.requests) < kept]
